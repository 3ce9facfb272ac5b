"""`attnbench run` sweeps, stores, prints, resumes and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from attnbench.cli.console import size_bytes, texts, whole_numbers
from attnbench.errors import AttnbenchError
from attnbench.report.progress import Course, Progress
from attnbench.sweep import events

PROGRAM = [sys.executable, "-c", "from attnbench.cli import main; main()"]
TINY = ["--mask", "full,causal", "--seq", "16", "--heads", "1", "--head-dim", "8", "--rounds", "1"]
WRONG = "def twice(q, k, v, *, mask, scores, scale):\n    return 2 * v\n"
NEEDS = "import a_library_that_is_not_installed\n"
SLEEPS = "import time\n\ndef forever(q, k, v, *, mask, scores, scale):\n    time.sleep(3600)\n"


def attnbench_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "run", *TINY, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of one small sweep over a right, a wrong and a missing backend, and how the command ended."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "mine.py").write_text(WRONG)
    (folder / "needs.py").write_text(NEEDS)
    done = attnbench_run(folder, "--backend", "naive,mine.py:twice,needs.py:much", "--out", "out")
    return folder, done


def test_a_sweep_ends_with_0_whatever_the_statuses(swept: Any) -> None:
    folder, done = swept
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert {row["backend"]: row["status"] for row in rows}["naive"] == "ok"
    assert {row["status"] for row in rows if row["backend"] == "mine.py:twice"} == {"wrong"}
    assert len(rows) == 6


def test_the_first_line_says_the_device_and_where_results_go(swept: Any) -> None:
    first = swept[1].stderr.splitlines()[0]
    assert first.startswith("device cpu (")
    assert "2 cases on 3 backends" in first
    assert "results in out" in first


def test_the_table_is_on_stdout_and_the_bar_is_quiet_in_a_pipe(swept: Any) -> None:
    _, done = swept
    for text in ("naive", "wrong", "mine.py:twice", "unavailable needs.py:much", "attnbench report out"):
        assert text in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "starting workers" not in done.stderr


def test_a_finished_sweep_is_not_run_again_and_strict_fails_on_what_is_wrong(swept: Any) -> None:
    folder, _ = swept
    before = (folder / "out" / "results.jsonl").read_bytes()
    arguments = ["--backend", "naive,mine.py:twice,needs.py:much", "--out", "out", "--resume", "--strict"]
    arguments += ["--keep-failures"]
    done = attnbench_run(folder, *arguments)
    assert done.returncode == 1, done.stderr
    assert "6 results exist" in done.stderr
    assert (folder / "out" / "results.jsonl").read_bytes() == before


def test_results_are_not_overwritten_without_resume(swept: Any) -> None:
    folder, _ = swept
    done = attnbench_run(folder, "--backend", "naive", "--out", "out")
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_ctrl_c_exits_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLEEPS)
    command = [*PROGRAM, "run", *TINY, "--backend", "mine.py:forever", "--out", "out"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        end = time.monotonic() + 120
        while not (tmp_path / "out" / "environment.json").exists() and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)
        _, complaint = running.communicate(timeout=120)
    assert running.returncode == 130, complaint
    assert "--out out --resume" in complaint
    assert "Traceback" not in complaint


def test_an_unknown_backend_stops_the_sweep_before_it_starts(attnbench: Any, tmp_path: Path) -> None:
    done = attnbench("run", *TINY, "--backend", "naive,sdap_math", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "did you mean 'sdpa_math'?" in done.stderr
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_lists_split_at_commas_outside_brackets() -> None:
    assert texts(["causal & window(8, 0), full", "prefix(4)"]) == [
        "causal & window(8, 0)",
        "full",
        "prefix(4)",
    ]
    assert texts(None) is None
    assert whole_numbers(["512,4k", "1M"], "--seq") == [512, 4096, 1 << 20]
    with pytest.raises(AttnbenchError, match="--seq"):
        whole_numbers(["0"], "--seq")


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("500M", 500 << 20), ("1.5 kib", 1536), ("4096", 4096), ("64B", 64)]
)
def test_sizes_are_read_in_powers_of_1024(text: str, size: int) -> None:
    assert size_bytes(text, "--memory-limit") == size


@pytest.mark.parametrize("text", ["", "much", "-1G", "0", "8 apples"])
def test_a_text_that_is_no_size_is_refused_with_its_option(text: str) -> None:
    with pytest.raises(AttnbenchError, match="--memory-limit"):
        size_bytes(text, "--memory-limit")


def test_progress_says_what_is_wrong_or_failed_even_without_a_terminal(
    a_case: Any, a_result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as progress:
        progress(events.SweepStarted(3, 2, "cpu", "A CPU", ("naive",)))
        progress(events.CaseStarted(a_case().id, 1, 3))
        progress(events.Judged(a_case().id, "naive", "wrong", "out is \x1b[31moff"))
        progress(events.Finished(a_result(a_case(), status="crashed", reason="signal 11"), 1, 3))
        progress(events.Finished(a_result(a_case()), 2, 3))
        progress(events.SweepFinished(3, 1.0))
    stderr = capsys.readouterr().err
    assert "wrong: naive" in stderr
    assert "crashed: naive" in stderr
    assert "signal 11" in stderr
    assert "\x1b" not in stderr
    assert progress.course.counts == {"crashed": 1, "ok": 1}


def test_the_line_says_what_is_done_now_and_how_long_the_rest_takes(
    a_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("attnbench.report.progress.time.monotonic", lambda: now)
    course = Course()
    course.follow(events.Doing("loading the backends"))
    assert course.line == "loading the backends"
    now = 200.0  # loading is not part of the pace
    course.follow(events.SweepStarted(30, 0, "cpu", "A CPU", ("naive",)))
    course.follow(events.CaseStarted("a-case", 1, 10))
    course.follow(events.Doing("judging naive"))
    assert course.line == "case 1 of 10: judging naive (a-case)"
    now = 215.0
    course.follow(events.CaseStarted("another", 2, 10))
    course.follow(events.Doing("timing 3 backends, round 4 of 10", 0.5))
    assert course.line == "case 2 of 10, about 1:25 left: timing 3 backends, round 4 of 10 (another)"


def test_the_screen_fits_a_terminal_and_details_add_the_table_of_each_case(swept: Any) -> None:
    folder, done = swept
    assert len(done.stdout.splitlines()) <= 30
    assert "Fastest right backend" in done.stdout
    assert "grid: full" not in done.stdout
    command = [*PROGRAM, "report", "out", "--no-charts", "--details"]
    detailed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    assert "full, 16, 1 heads, d8, fp32, forward" in detailed.stdout
    assert detailed.stdout.count("Fastest right backend") == 1
