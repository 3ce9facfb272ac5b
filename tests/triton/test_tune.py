"""Tuning measures sizes and walks, keeps only what is right, and continues where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from attnbench.backend import Backend
from attnbench.errors import AttnbenchError
from attnbench.problem import Causal, Documents, Softcap, make_inputs


@pytest.fixture
def tune(triton_backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with a cache of its own."""
    from attnbench_backends.triton import configurations, tune

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    configurations.tuned.cache_clear()
    yield tune
    configurations.tuned.cache_clear()


def test_a_rehearsal_tries_every_walk_of_every_kernel_and_keeps_one(tune: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tune.main(["--rehearse", "--sizes", "none", "--out", str(out)]) == 0
    tried = [json.loads(line) for line in (out / "tried.jsonl").read_text().splitlines()]
    walks = {(row["kernel"], row["waves"], row["persistent"]) for row in tried}
    assert walks == set(product(("forward", "dk_dv", "dq"), (0, 3, 1000), (0, 1, 2)))
    assert {row["block_q"] for row in tried if not row["persistent"]} == {32}
    assert {row["block_q"] for row in tried if row["persistent"]} == {16, 32}
    kept = json.loads((out / "configurations.json").read_text())
    assert set(kept) == {f"sm_90/{kernel}/fp32/d16/dense/plain" for kernel in ("forward", "dk_dv", "dq")}
    for entry, fields in kept.items():
        rows = [row for row in tried if row["kernel"] == entry.split("/")[1]][1:]  # the first was the size
        best = min(rows, key=lambda row: row["elapsed_ms"])
        assert fields.items() <= best.items()

    # Again: everything is done.
    before = (out / "tried.jsonl").read_text()
    assert tune.main(["--rehearse", "--sizes", "none", "--out", str(out)]) == 0
    assert (out / "tried.jsonl").read_text() == before


def test_a_lost_context_ends_the_tuning(tune: Any, a_case: Any, monkeypatch: Any) -> None:
    from attnbench_backends.triton.configurations import Configuration

    tried: list[int] = []

    def milliseconds(inputs: Any, kernel: str, tiles: Any) -> float:
        tried.append(tiles(kernel).block_q)
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(tune, "milliseconds", milliseconds)
    candidates = [Configuration(16, n, 4, 1) for n in (16, 32)]
    with pytest.raises(AttnbenchError, match="lost the GPU's context"):
        tune.fastest(make_inputs(a_case()), "forward", (9, 0), candidates, lambda *_: None)
    assert len(tried) == 1


def test_the_fastest_that_is_wrong_is_not_kept(tune: Any, a_case: Any, monkeypatch: Any) -> None:
    from attnbench_backends.triton.configurations import Configuration

    inputs = make_inputs(a_case(direction="fwd_bwd"))
    slow, fast, broken = (Configuration(16, n, 4, 1) for n in (16, 32, 64))

    def milliseconds(inputs: Any, kernel: str, tiles: Any) -> float:
        tile = tiles(kernel)
        if tile == broken:
            raise RuntimeError("out of resource: shared memory")
        return {slow: 2.0, fast: 1.0}[tile]

    monkeypatch.setattr(tune, "milliseconds", milliseconds)
    monkeypatch.setattr(tune, "is_right", lambda case, device, tiles: tiles("dq") != fast)
    told: list[Any] = []
    candidates = [broken, fast, slow]
    assert tune.fastest(inputs, "dq", (9, 0), candidates, lambda *note: told.append(note)) == (slow, 2.0)
    assert [note[2] for note in told] == [fast, slow]
    with pytest.raises(AttnbenchError, match="no configuration of dq is right"):
        tune.fastest(inputs, "dq", (9, 0), [fast], lambda *note: None)


def test_what_was_tuned_takes_precedence_over_the_rule(tune: Any, a_case: Any) -> None:
    from attnbench_backends.triton.ahead_of_time import Specimen
    from attnbench_backends.triton.configurations import Configuration, cache_file, chosen, key, rule, tuned

    case = a_case(q_len=4096, k_len=4096, head_dim=64, dtype="bf16")
    tile = Configuration(64, 32, 4, 3, waves=0, persistent=2)
    assert chosen("forward", case, (9, 0)) == rule("forward", case, (9, 0)) != tile
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(json.dumps({key("forward", case, (9, 0)): asdict(tile)}))
    tuned.cache_clear()
    assert chosen("forward", case, (9, 0)) == tile
    assert chosen("forward", case, (8, 0)) == rule("forward", case, (8, 0))
    # What is compiled ahead of time and held against the committed table is what all users have.
    assert Specimen(case).tiles((9, 0))("forward") == rule("forward", case, (9, 0))
    # Tuned with a plain mask: its tile may not fit code that needs more registers.
    for changes in ({"scores": (Softcap(3.0),)}, {"mask": Causal() & Documents((4096,))}):
        other = replace(case, **changes)
        assert chosen("forward", other, (9, 0)) == rule("forward", other, (9, 0))


def test_the_cache_keeps_what_was_measured_here_and_not_what_is_shipped(
    tune: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from attnbench_backends.triton import configurations

    shipped, out = tmp_path / "shipped.json", tmp_path / "out"
    tile = configurations.Configuration(16, 16, 4, 1)
    shipped.write_text(json.dumps({"sm_90/forward/fp32/d16/sparse/plain": asdict(tile)}))
    monkeypatch.setattr(configurations, "SHIPPED", shipped)
    monkeypatch.setattr(tune, "tuned_for", lambda *arguments: [("sm_90/dq/fp32/d16/dense/plain", tile, 1.0)])
    assert tune.main(["--rehearse", "--out", str(out)]) == 0
    assert len(configurations.tuned()) == 1
    assert set(json.loads((out / "configurations.json").read_text())) == {"sm_90/dq/fp32/d16/dense/plain"}
