"""The GPU script plans what it says, prints figures as they come, resumes, and keeps its time; needs no GPU."""

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


def performed(gpu: Any, step: Any, out: Path, limit_s: float = 60.0) -> bool:
    return gpu.perform(step, out, limit_s, gpu.surroundings(out), lambda: None)


def record(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / "steps" / f"{name}.json").read_text())


def test_every_sweep_is_a_suite_of_cases_of_16k_tokens_in_the_order_of_worth(
    gpu: Any, tmp_path: Path
) -> None:
    planned = {step.name: step for step in gpu.steps(tmp_path)}
    assert list(planned)[:2] == ["first", "table"]
    assert [name for name, step in planned.items() if step.suite] == ["table", "naive", "d64", "d256"]
    cases: dict[str, list[Any]] = {}
    for step in (step for step in planned.values() if step.suite):
        (tmp_path / "suite.toml").write_text(step.suite)
        cases[step.name] = [plan.case for plan in load_suite(tmp_path / "suite.toml").cases("cuda")]
        for case in cases[step.name]:
            assert case.dtype == "bf16"
            assert case.q_heads * case.head_dim == (4096 if case.q_len == 1 else 2048)
            if 1 < case.q_len < 16_384 and "documents" not in case.id:
                assert case.batch * case.q_len == 16_384
    assert [case.id for case in cases["table"][:2]] == [
        "q16384-k16384-h16-d128-bf16-causal-fwd_bwd",
        "q16384-k16384-h16-d128-bf16-full-fwd_bwd",
    ]
    assert [case.q_len for case in cases["table"][2:9]] == [8192] * 7  # masks, scores
    assert {case.head_dim for case in cases["d64"]} == {64}
    assert len(cases["d64"]) == 14  # 512 to 32k, causal and full


def test_a_first_figure_comes_within_a_minute_and_a_table_within_four(gpu: Any, tmp_path: Path) -> None:
    """By the written seconds, which are estimates until a GPU has run them; each row is printed when it is known."""
    first, table, *_ = gpu.steps(tmp_path)
    assert first.seconds <= 60
    (tmp_path / "suite.toml").write_text(table.suite)
    cases = load_suite(tmp_path / "suite.toml").cases("cuda")
    worth = 9  # headline, masks, scores
    assert first.seconds + table.seconds * worth / len(cases) <= 240


def test_the_program_takes_every_command_line(gpu: Any, tmp_path: Path) -> None:
    import typer.main

    from attnbench.cli.app import app

    program: Any = typer.main.get_command(app)
    used = set()
    for machine in (gpu.Machine(), gpu.Machine(128)):
        for step in gpu.steps(tmp_path, machine):
            if step.command[1] == "-c":
                name, *words = step.command[3:]
                program.commands[name].make_context(name, list(words))
                used.add(name)
    assert used == {"check", "run"}


def test_a_failed_step_runs_again_and_a_done_one_does_not(gpu: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = (
        f"import pathlib, sys; p = pathlib.Path({str(marker)!r}); print('output'); sys.exit(not p.exists())"
    )
    step = gpu.Step("one", "why", 1, python(program))
    assert not performed(gpu, step, tmp_path)
    assert record(tmp_path, "one")["reason"] == "exit code 1"
    assert "output" in record(tmp_path, "one")["tail"]
    assert not gpu.is_done(step, tmp_path)
    marker.touch()
    assert performed(gpu, step, tmp_path)
    assert gpu.is_done(step, tmp_path)


def row(backend: str, status: str, **more: Any) -> str:
    plain = {"case_id": "q8", "backend": backend, "status": status, "reason": "", "suite": "table"}
    return json.dumps(plain | {"samples_ms": {}, "flops": {"fwd": 4_000_000}} | more)


def test_a_sweep_whose_rows_failed_is_not_done_though_it_exits_with_0(gpu: Any, tmp_path: Path) -> None:
    rows = tmp_path / "results.jsonl"
    step = gpu.Step("table", "why", 1, python("pass"), suite="[[grid]]\n", rows=rows)
    rows.write_text("\n".join([row("a", "ok"), row("b", "error"), row("c", "refused"), ""]))
    assert not performed(gpu, step, tmp_path)
    assert record(tmp_path, "table")["reason"] == "rows that failed: 1 error"
    with rows.open("a") as file:
        file.write(row("b", "ok") + "\n")  # the last row of a backend counts
    assert performed(gpu, step, tmp_path)


def test_each_row_is_printed_with_its_figures_while_the_step_runs(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "results.jsonl"
    line = row("a", "ok", samples_ms={"fwd": [[0.5, 0.4], [0.4]]})
    program = f"import pathlib; pathlib.Path({str(rows)!r}).write_text({line!r} + chr(10) + 'half a li')"
    seen: list[int] = []
    step = gpu.Step("table", "why", 1, python(program), suite="[[grid]]\n", rows=rows)
    assert gpu.perform(step, tmp_path, 60.0, gpu.surroundings(tmp_path), lambda: seen.append(1))
    assert seen == [1]  # packed once for it
    (printed,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("{")]
    assert json.loads(printed) == {
        "case": "q8",
        "backend": "a",
        "status": "ok",
        "fwd_ms": 0.4,
        "fwd_tflops": 0.0,
    }


def test_a_command_past_its_time_is_interrupted_and_its_output_is_kept(gpu: Any, tmp_path: Path) -> None:
    program = (
        "import time\nprint('begun', flush=True)\ntry:\n time.sleep(60)\nfinally:\n print('ended tidily')"
    )
    step = gpu.Step("slow", "why", 1, python(program))
    assert not performed(gpu, step, tmp_path, 1.5)
    assert "run it again to go on" in record(tmp_path, "slow")["reason"]
    assert "begun" in record(tmp_path, "slow")["tail"]
    assert "ended tidily" in record(tmp_path, "slow")["tail"]


def test_commands_find_this_checkout_without_an_installation(gpu: Any, tmp_path: Path) -> None:
    # -S: without site-packages, where an editable install would be found.
    names = ("attnbench", "attnbench_backends", "attnbench_suites")
    find = f"import importlib.util as u; print([u.find_spec(n).origin for n in {names!r}])"
    assert performed(gpu, gpu.Step("find", "why", 1, (sys.executable, "-S", "-c", find)), tmp_path)
    log = (tmp_path / "steps" / "find.log").read_text()
    root = Path(__file__).parents[2]
    assert str(root / "attnbench" / "__init__.py") in log
    assert "attnbench_backends/__init__.py" in log
    assert "attnbench_suites/__init__.py" in log


def test_a_second_call_on_a_fresh_machine_goes_on_from_the_pack(gpu: Any, tmp_path: Path) -> None:
    """Results, tuned configurations and what the compilers made are in it, the links are not."""
    out, fresh = tmp_path / "one" / "nvidia-h200", tmp_path / "two" / "nvidia-h200"
    place = "d = p.Path(os.environ['TRITON_CACHE_DIR'])"
    compiled = f"import os, pathlib as p; {place}; d.mkdir(parents=True); (d / 'k').touch()"
    step = gpu.Step("walks", "why", 1, python(compiled))
    assert performed(gpu, step, out)
    gpu.pack(out, tmp_path / "r.tgz")
    with tarfile.open(tmp_path / "r.tgz") as tar:
        assert not [name for name in tar.getnames() if ".packages" in name]
    gpu.unpack(tmp_path / "r.tgz", fresh)
    assert gpu.is_done(step, fresh)
    assert (fresh / ".cache" / "triton" / "k").exists()


def main(gpu: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    return gpu.main()


def test_a_failure_in_any_step_stops_no_other_and_is_run_again(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(command: tuple[str, ...], *rest: Any) -> int:
        ran.append("failed" if "made to fail" in command[-1] else "ran")
        rest[1].write_text("")
        return int(ran[-1] == "failed")

    monkeypatch.setattr(gpu, "run", run)
    names = [step.name for step in gpu.steps(tmp_path, gpu.Machine(128))]
    for name in names:
        ran.clear()
        words = ["--rehearse", "--out", str(tmp_path / name)]
        assert main(gpu, monkeypatch, *words, "--fail", name) == 1
        assert (len(ran), ran.count("failed")) == (len(names), 1)
        capsys.readouterr()
        ran.clear()
        assert main(gpu, monkeypatch, *words) == 0
        assert ran == ["ran"]  # the failed one alone
        assert f"ok    {name} " in capsys.readouterr().out


def test_without_time_no_step_starts_and_the_rest_is_reported(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(gpu, monkeypatch, "--rehearse", "--out", str(tmp_path / "r"), "--seconds", "10") == 1
    output = capsys.readouterr().out
    assert "left  table" in output
    assert "run  " not in output


def test_a_first_figure_is_checked_timed_and_printed_on_the_fake_gpu(gpu: Any, tmp_path: Path) -> None:
    step = next(iter(gpu.steps(tmp_path, gpu.Machine(256))))
    environment = gpu.surroundings(tmp_path, gpu.Machine(256)) | {"OMP_NUM_THREADS": "1"}
    assert gpu.perform(step, tmp_path, 300.0, environment, lambda: None)
    lines = gpu.read_rows(tmp_path / "first.jsonl")
    final = {line["backend"]: line for line in lines if line.get("final")}
    assert set(final) == {"naive", "sdpa_flash", "per_head"}
    assert all(
        line["status"] == "ok" and line["fwd_ms"] > 0 and line["bwd_ms"] > 0 for line in final.values()
    )
