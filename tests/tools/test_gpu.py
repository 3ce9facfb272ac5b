"""The GPU script plans what it says, resumes where it stopped, and keeps its time limit; needs no GPU."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from attnbench.sweep.suite import load_suite
from tests.tools.loaded import tool


@pytest.fixture(scope="module")
def gpu() -> Any:
    return tool("gpu.py")


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def test_every_sweep_is_a_suite_of_cases_of_16k_tokens(gpu: Any, tmp_path: Path) -> None:
    planned = [step for step in gpu.steps(tmp_path) if step.suite]
    assert [step.name for step in planned][:3] == ["headline", "masks", "scores"]
    ids: dict[str, list[str]] = {}
    for step in planned:
        (tmp_path / "suite.toml").write_text(step.suite)
        cases = [plan.case for plan in load_suite(tmp_path / "suite.toml").cases("cuda")]
        ids[step.name] = [case.id for case in cases]
        for case in cases:
            assert case.dtype == "bf16"
            assert case.q_heads * case.head_dim == (4096 if step.name == "decode" else 2048)
            if case.q_len > 1 and case.q_len <= 16_384 and step.name != "masks":
                assert case.batch * case.q_len == 16_384
    assert len(ids["headline"]) == 2
    assert len(ids["dense-d64"]) == 14  # 512 to 32k, causal and full
    assert len(ids["masks"]) == 5
    assert not any(
        set(ids["headline"]) & set(others) for name, others in ids.items() if name.startswith("dense")
    )


def test_the_program_takes_every_command_line(gpu: Any, tmp_path: Path) -> None:
    import typer.main

    from attnbench.cli.app import app

    program: Any = typer.main.get_command(app)
    used = set()
    for machine in (gpu.Machine(), gpu.Machine("cpu", 128)):
        for step in gpu.steps(tmp_path, machine):
            for command in step.commands:
                if command[1] != "-c":
                    continue
                name, *words = command[3:]
                program.commands[name].make_context(name, list(words))
                used.add(name)
    assert used == {"check", "run"}


def test_a_failed_step_runs_again_and_a_done_one_does_not(gpu: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = (
        f"import pathlib, sys; p = pathlib.Path({str(marker)!r}); print('output'); sys.exit(not p.exists())"
    )
    step = gpu.Step("one", "why", (python(program),))
    assert not gpu.perform(step, tmp_path, 60)
    record = json.loads((tmp_path / "steps" / "one.json").read_text())
    assert record["reason"] == "exit code 1"
    assert "output" in record["tail"]
    assert not gpu.is_done(step, tmp_path)
    marker.touch()
    assert gpu.perform(step, tmp_path, 60)
    assert gpu.is_done(step, tmp_path)


def test_a_command_past_its_time_is_interrupted_and_its_output_is_kept(gpu: Any, tmp_path: Path) -> None:
    program = (
        "import time\nprint('begun', flush=True)\ntry:\n time.sleep(60)\nfinally:\n print('ended tidily')"
    )
    step = gpu.Step("slow", "why", (python(program), python("raise SystemExit(9)")))
    assert not gpu.perform(step, tmp_path, 1.5)
    record = json.loads((tmp_path / "steps" / "slow.json").read_text())
    assert "run it again to go on" in record["reason"]
    assert "begun" in record["tail"]
    assert "ended tidily" in record["tail"]


def test_commands_find_this_checkout_without_an_installation(gpu: Any, tmp_path: Path) -> None:
    # -S: without site-packages, where an editable install would be found.
    names = ("attnbench", "attnbench_backends", "attnbench_suites")
    find = f"import importlib.util as u; print([u.find_spec(n).origin for n in {names!r}])"
    step = gpu.Step("find", "why", ((sys.executable, "-S", "-c", find),))
    assert gpu.perform(step, tmp_path, 60)
    log = (tmp_path / "steps" / "find.log").read_text()
    root = Path(__file__).parents[2]
    assert str(root / "attnbench" / "__init__.py") in log
    assert "attnbench_backends/__init__.py" in log
    assert "attnbench_suites/__init__.py" in log


def test_the_pack_holds_the_results_and_not_the_links(gpu: Any, tmp_path: Path) -> None:
    out = tmp_path / "nvidia-h200"
    gpu.surroundings(out)
    (out / "headline").mkdir()
    (out / "headline" / "results.jsonl").write_text("{}\n")
    gpu.pack(out, tmp_path / "r.tgz")
    with tarfile.open(tmp_path / "r.tgz") as tar:
        names = tar.getnames()
    assert "nvidia-h200/headline/results.jsonl" in names
    assert not [name for name in names if ".packages" in name]


def test_tuned_configurations_are_packed_with_the_results(gpu: Any, tmp_path: Path) -> None:
    out = tmp_path / "nvidia-h200"
    tune = (
        "import os, pathlib as p; d = p.Path(os.environ['XDG_CACHE_HOME']); d.mkdir(); (d / 'tuned').touch()"
    )
    assert gpu.perform(gpu.Step("walks", "why", ((sys.executable, "-c", tune),)), out, 60)
    gpu.pack(out, tmp_path / "r.tgz")
    with tarfile.open(tmp_path / "r.tgz") as tar:
        assert "nvidia-h200/.cache/tuned" in tar.getnames()


def test_without_time_no_step_starts_and_the_rest_is_reported(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--rehearse", "--out", str(tmp_path / "r"), "--seconds", "10"]
    )
    assert gpu.main() == 1
    output = capsys.readouterr().out
    assert "left  headline" in output
    assert "run  " not in output
