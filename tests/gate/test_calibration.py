"""A calibration counts false alarms and power correctly, and says when a machine is unfit to gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from attnbench.backend import Entry
from attnbench.errors import AttnbenchError
from attnbench.gate.arms import ArmResult
from attnbench.gate.calibration import NO_CHANGE, Calibration, calibrate
from attnbench.gate.recording import SAME, SLOWER, frame_of, record_group, recorded, write_rows
from attnbench.sweep.result import Result
from attnbench.sweep.suite import Planned

RECORDINGS = Path(__file__).parents[2] / "docs" / "gate-calibration"
STORED = sorted(RECORDINGS.glob("*.parquet"))


def a_recording(
    noise: float = 0.02,
    slower: dict[str, float] | None = None,
    groups: int = 6,
    cases: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Rounds about 1 ms; `slower` gives an arm another slow-down than its name says."""
    rng = np.random.default_rng(seed)
    true = dict.fromkeys(SAME, 0.0) | SLOWER | (slower or {})
    rows = []
    for case in range(cases):
        for arm, share in true.items():
            for group in range(groups):
                of_process = rng.normal(0, noise / 4)
                for index in range(20):
                    least = (1 + share) * np.exp(of_process + rng.normal(0, noise))
                    rows.append(("naive", f"case {case}", "fwd", arm, group, index, least, 1.1 * least))
    return frame_of(rows)


def rates(calibration: Calibration) -> dict[str, float]:
    return {rate.change: rate.slower / rate.verdicts for rate in calibration.rates}


def test_a_steady_machine_is_fit_and_finds_what_it_should() -> None:
    calibration = calibrate(recorded(a_recording(0.01)), 0.05, repeats=2)
    assert rates(calibration)[NO_CHANGE] == 0
    assert rates(calibration)["slower 5 %"] >= 0.9
    assert rates(calibration)["slower 10 %"] >= 0.9
    assert calibration.fit
    assert calibration.smallest_effect is not None
    assert calibration.smallest_effect <= 0.05


def test_a_wild_machine_is_unfit() -> None:
    calibration = calibrate(recorded(a_recording(0.6)), 0.05, repeats=1)
    assert rates(calibration)[NO_CHANGE] <= 0.01
    assert not calibration.fit


def test_arms_that_are_not_the_same_are_counted_as_alarms() -> None:
    """Planted: one of the arms that should be the same is slower, as a biased order would make it."""
    calibration = calibrate(recorded(a_recording(0.01, {SAME[1]: 0.2})), 0.05, repeats=1)
    assert rates(calibration)[NO_CHANGE] > 0.2
    assert not calibration.fit


def test_a_slow_down_that_was_not_put_in_is_not_found() -> None:
    calibration = calibrate(recorded(a_recording(0.01, dict.fromkeys(SLOWER, 0.0))), 0.05, repeats=1)
    assert calibration.smallest_effect is None
    assert not calibration.fit


def test_means_of_separate_runs_are_compared_on_the_same_samples() -> None:
    (rate, *_) = calibrate(recorded(a_recording(0.3)), 0.05, repeats=1).rates
    assert rate.means_compared == 4 * 6 * 6 * 5  # cases, ordered pairs of arms, ordered pairs of groups
    assert 0.05 < rate.means_flagged / rate.means_compared < 0.5


def test_only_rounds_that_every_arm_has_are_replayed() -> None:
    frame = a_recording()
    cut = frame[~((frame.arm == SAME[0]) & (frame.group == 2) & (frame["round"] >= 7))]
    one = recorded(cut)[0]
    assert {a.shape for a in one.least_ms.values()} == {(6, 7)}


def test_a_recording_is_kept_and_read_again(tmp_path: Path) -> None:
    frame = a_recording(cases=1)
    write_rows(list(frame.itertuples(index=False, name=None)), tmp_path / "r.parquet")
    again = recorded(pd.read_parquet(tmp_path / "r.parquet"))
    np.testing.assert_array_equal(again[0].least_ms[SAME[0]], recorded(frame)[0].least_ms[SAME[0]])


def test_too_little_is_said() -> None:
    with pytest.raises(AttnbenchError, match="too few for 3 stages"):
        calibrate(recorded(a_recording(groups=2)))
    with pytest.raises(AttnbenchError, match="nothing was timed"):
        calibrate([])
    with pytest.raises(AttnbenchError, match="lacks the columns"):
        recorded(pd.DataFrame({"case": []}))


@pytest.mark.parametrize(("noise", "code"), [(0.01, 0), (0.6, 3)])
def test_the_exit_code_says_whether_the_machine_is_fit(
    monkeypatch: pytest.MonkeyPatch, noise: float, code: int, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from attnbench.cli.app import app

    rows: list[Any] = list(a_recording(noise, cases=2, groups=3).itertuples(index=False, name=None))
    monkeypatch.setattr("attnbench.gate.recording.MOST_GROUPS", 1)
    monkeypatch.setattr("attnbench.gate.recording.record_group", lambda *_: rows)
    ran = CliRunner().invoke(app, ["gate", "--calibrate", "--record", str(tmp_path / "rows.parquet")])
    assert ran.exit_code == code, ran.output
    assert "called slower" in ran.output
    assert ("unfit to gate" in ran.output) == (code == 3)
    assert (tmp_path / "rows.parquet").is_file()


def test_a_backend_that_cannot_calibrate_is_named_before_the_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from typer.testing import CliRunner

    from attnbench.cli.app import app

    def never(*_: Any) -> Any:
        raise AssertionError("a group was recorded")

    monkeypatch.setattr("attnbench.gate.recording.record_group", never)
    monkeypatch.setattr(
        "attnbench.sweep.slots.entries",
        lambda folder: [
            Entry("naive", "here"),
            Entry("absent", "here", False, "no such library", "pip install it"),
        ],
    )
    for backend, code, message in (
        ("naiv", 2, "did you mean 'naive'"),
        ("absent", 3, "absent: no such library; to have it: pip install it"),
    ):
        ran = CliRunner().invoke(app, ["gate", "--calibrate", "--backend", backend])
        assert ran.exit_code == code, ran.output
        assert message in ran.output


def test_a_group_in_which_nothing_was_timed_says_why(a_case: Any) -> None:
    class OnAGpu:
        """A runner whose slowed arms fail, as they do on a GPU."""

        def run(self, planned: Any, arms: Any, group: int, seed: int) -> Any:
            for arm in arms:
                status, reason = ("error", "a wait slows no kernel") if arm.slower_by else ("ok", "")
                blank = Result(case={}, case_id=planned[0].case.id, backend=arm.backend, status=status)
                yield ArmResult(arm.name, group, replace(blank, reason=reason))

    runner: Any = OnAGpu()
    with pytest.raises(AttnbenchError, match=r"`slower 3 %` on q16.* is error \(a wait slows no kernel\)"):
        record_group(runner, [Planned(a_case())], "naive", 0)


@pytest.mark.parametrize("file", STORED, ids=lambda path: path.stem)
def test_replayed_on_what_a_shared_machine_measured_the_gate_raises_no_alarm(file: Path) -> None:
    calibration = calibrate(recorded(pd.read_parquet(file)), 0.05, repeats=1, seed=7)
    assert calibration.alarms.slower == 0
    assert rates(calibration)["slower 10 %"] >= 0.9
    assert calibration.alarms.means_flagged > 0  # the usual rule raises alarms on the same samples


def test_recordings_are_stored() -> None:
    assert STORED
