"""The suite `training` finds a slightly wrong backend and passes the right ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from attnbench.errors import AttnbenchError
from attnbench.models import tasks, training
from attnbench.models.record import ModelRun
from attnbench.models.rounding import exact_attention
from attnbench.models.tasks import TASKS
from attnbench.problem import SlidingWindow

RIGHT = ["naive", "per_head", "mask_multiply", "sdpa_math", "sdpa_flash"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scale_off(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return exact_attention(q, k, v, mask=mask, scale=scale * 1.02)


def causal_leak(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    leaking = SlidingWindow(None, 1) if "causal" in mask.kinds else mask
    return exact_attention(q, k, v, mask=leaking, scale=scale)


def explodes(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return exact_attention(q, k, v, mask=mask, scale=scale) * float("inf")


def breaks(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    raise RuntimeError("no kernel image is available\nand more")


def by_backend(runs: list[ModelRun]) -> dict[tuple[str, str], ModelRun]:
    return {(run.backend, run.dtype): run for run in runs if run.role == "backend"}


@pytest.fixture(scope="module")
def language() -> list[ModelRun]:
    torch.set_num_threads(1)
    backends = [*RIGHT, "torch_mha", scale_off, causal_leak, explodes, breaks]
    return list(training.run(backends, tasks=["language"], steps=4))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", RIGHT)
def test_right_backends_stay_where_rounding_can_take_them(
    language: list[ModelRun], backend: str, dtype: str
) -> None:
    run = by_backend(language)[backend, dtype]
    assert (run.status, run.reason) == ("ok", "")
    assert run.over_budget is not None
    assert run.over_budget <= 1
    assert run.counts == {"non_finite": 0, "spikes": 0}


@pytest.mark.parametrize("backend", ["scale_off", "causal_leak"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_slightly_wrong_backend_is_found_and_by_how_much_is_written(
    language: list[ModelRun], backend: str, dtype: str
) -> None:
    run = by_backend(language)[backend, dtype]
    assert run.status == "wrong"
    assert run.over_budget is not None
    assert run.over_budget > (100 if dtype == "fp32" else 1)
    assert "times what rounding allows" in run.reason
    assert run.deviation["off"] > run.deviation["allowed"]
    # Why the spread over seeds is no budget: a scale that is off by 2 % does not leave it.
    if backend == "scale_off":
        assert run.deviation["of_seed_spread"] < 1


def test_a_backend_that_gives_infinities_is_wrong_and_they_are_counted(language: list[ModelRun]) -> None:
    run = by_backend(language)["explodes", "fp32"]
    assert run.status == "wrong"
    assert run.counts["non_finite"] == 4
    assert run.reason == "4 steps are not finite where float64's are"
    json.dumps(run.to_json(), allow_nan=False)


def test_refusals_and_errors_are_statuses_with_their_reason(language: list[ModelRun]) -> None:
    found = by_backend(language)
    assert found["torch_mha", "fp32"].status == "refused"
    assert found["torch_mha", "fp32"].reason.startswith("needs as many key heads")
    assert found["breaks", "bf16"].status == "error"
    assert found["breaks", "bf16"].reason == "RuntimeError: no kernel image is available"


def test_a_backend_that_does_not_exist_stops_nothing() -> None:
    done = [r for r in training.run(["naiv"], tasks=["language"], steps=1) if r.role == "backend"]
    assert {run.status for run in done} == {"refused"}
    assert "did you mean 'naive'" in done[0].reason


def test_a_resumed_suite_runs_only_what_is_missing(language: list[ModelRun]) -> None:
    again = list(training.run(["naive", "per_head"], tasks=["language"], steps=4, done=language))
    assert again == []
    kept = [ModelRun.from_json(json.loads(json.dumps(r.to_json()))) for r in language if r.backend != "naive"]
    again = list(training.run(["naive", "per_head"], tasks=["language"], steps=4, done=kept))
    assert [(r.backend, r.dtype) for r in again] == [("naive", "fp32"), ("naive", "bf16")]
    assert again[0].curves["loss"] == by_backend(language)["naive", "fp32"].curves["loss"]


def test_a_slow_backend_runs_out_of_its_time() -> None:
    runs = training.run(["naive"], tasks=["classification"], steps=3, limit_s=0.0, dtypes=["fp32"])
    last = list(runs)[-1]
    assert last.status == "timeout"
    assert last.reason.startswith("1 of 3 steps")


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_every_task_learns_on_real_data_that_is_the_same_for_the_same_seed(task: tasks.Task) -> None:
    if task.missing():
        pytest.skip(task.missing())
    first, again, other = task.batch(0, 3), task.batch(0, 3), task.batch(1, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    one = training.train(task, "naive", seed=0, steps=1)
    many = training.train(task, "naive", seed=0, steps=60)
    assert many.figures["held_out_loss"] < one.figures["held_out_loss"]


def test_held_out_data_is_not_trained_on() -> None:
    generator = torch.Generator().manual_seed(0)
    trained = {n for _ in range(50) for n in tasks._picked(1000, 8, generator, held_out=False)}
    held_out = {n for _ in range(50) for n in tasks._picked(1000, 8, generator, held_out=True)}
    assert not trained & held_out


def test_figures_of_a_classification_are_those_of_its_definition() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    found = tasks.classification_figures(
        torch.cat([logits, torch.full((4, 1), -9.0)], 1), torch.tensor([0, 1, 1, 2])
    )
    assert found["accuracy"] == 0.5
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (pip install 'attnbench[models]')")
    # F1 of class 0: precision 1/2, recall 1; of class 1: 1/2 and 1/2; class 2 is never predicted.
    assert found["f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_an_unknown_task_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        AttnbenchError, match=r"no task .chess.; it has language, translation, classification, images"
    ):
        list(training.run(["naive"], tasks=["chess"]))
    with pytest.raises(AttnbenchError, match="no task of training is named; it has language"):
        list(training.run(["naive"], tasks=[]))


def test_the_command_writes_runs_a_table_and_a_chart_and_resumes(tmp_path: Path, monkeypatch: Any) -> None:
    from attnbench.cli.app import app

    monkeypatch.setitem(training.STEPS, "cpu", 2)
    words = [
        "run",
        "training",
        "--case",
        "images",
        "-b",
        "naive,sdpa_flash",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    if TASKS[-1].missing():
        pytest.skip(TASKS[-1].missing())
    done = CliRunner().invoke(app, [*words, "--dtype", "fp32"])
    assert done.exit_code == 0, done.output
    assert "sdpa_flash" in done.stdout
    assert (tmp_path / "training.png").stat().st_size > 10_000
    lines = (tmp_path / "models.jsonl").read_text().splitlines()
    assert len(lines) == 3 + 4 + 2
    # A kill in the middle of the last line costs that run and nothing else.
    (tmp_path / "models.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    done = CliRunner().invoke(app, [*words, "--dtype", "fp32", "--resume"])
    assert done.exit_code == 0, done.output
    after = (tmp_path / "models.jsonl").read_text().splitlines()
    assert after[:-1] == lines[:-1]
    assert json.loads(after[-1])["backend"] == "sdpa_flash"
    assert CliRunner().invoke(app, [*words, "--dtype", "fp32"]).exit_code == 2  # there are runs already
    assert CliRunner().invoke(app, ["run", "training", "--seq", "64"]).exit_code == 2
    assert CliRunner().invoke(app, [*words, "--dtype", "fp8", "--resume"]).exit_code == 2
