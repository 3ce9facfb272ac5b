"""One case on one backend: judge, time in rounds, re-check, return a Result."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from attnbench.backend import declared_refusal
from attnbench.judge.contracts import HYPOTHESES
from attnbench.measure import Pace
from attnbench.problem import Case
from attnbench.sweep.result import Result
from attnbench.sweep.slots import WorkerSlot
from attnbench.sweep.step_errors import UNKNOWN_BACKEND, StepError

FEWEST_ROUNDS = 3
OVERTIME = 2.0  # times `case_seconds`: beyond it no further rounds, as on a machine with other work
SLOW_ROUND_S = 5.0  # one round of this length is enough


@dataclass(frozen=True)
class TimingSettings:
    """How a case is timed: `rounds` blocks of `block_ms`, fewer if they exceed `case_seconds` per backend.

    All of it is repeated in each of `processes` fresh processes.
    """

    timeout_s: float = 300.0
    rounds: int = 10
    block_ms: float = 12.0
    case_seconds: float = 3.0
    processes: int = 1


@dataclass
class CaseRun:
    """One case on one backend. `result` is None until the outcome is known."""

    slot: WorkerSlot
    blank: Result
    settings: TimingSettings
    reference: Callable[[str], str]  # contract -> the path of the right answer
    began: float = field(default_factory=time.monotonic)  # when the case began, the same for all its backends
    result: Result | None = None
    rounds: int = 0
    seconds_per_round: float = 0.0
    _values: dict[str, Any] = field(default_factory=dict)  # of the result's fields
    _notes: list[str] = field(default_factory=list)
    _paces: dict[str, Pace] = field(default_factory=dict)
    _samples_ms: dict[str, list[list[float]]] = field(default_factory=dict)
    _rounds: list[dict[str, Any]] = field(default_factory=list)
    _host_ms: dict[str, list[float]] = field(default_factory=dict)
    _late: int = 0  # samples that contain time of the host
    _spent_s: float = 0.0
    _timing_s: float = 0.0

    def judge(self) -> None:
        """Ask whether the backend takes the case and judge its answer; `result` stays None if it is to be timed."""
        if (declared := self.slot.declared) is not None:
            refused = declared_refusal(declared, Case.from_json(self.blank.case), self.blank.device)
            assert refused is not None
            self._values["contract"] = declared.contract
            self._end("refused", refused.reason)
            return
        try:
            about = self.slot.ready()
            self._values |= {"backend_version": about["version"], "contract": about["contract"]}
            refusal = self._call("admit", case=self.blank.case)["refusal"]
            if refusal is not None:
                self._end("refused", refusal)
                return
            reference = self.reference(about["contract"])
            judged = self._call(
                "judge",
                case=self.blank.case,
                seed=self.blank.seed,
                distribution=self.blank.distribution,
                reference=reference,
            )
            if not judged["ok"] and about.get("finds_contract"):
                judged = self._judged_otherwise(judged, reference)
        except StepError as error:
            self._fail(error)
            return
        self._values |= {
            name: judged[name] for name in ("kernel", "prepare_ms", "errors", "error_over_budget")
        }
        if not judged["ok"]:
            self._end("wrong", judged["reason"])
            return
        self._values["memory_bytes"] = judged["memory_bytes"]
        self._notes += judged.get("notes", [])
        if "paces" not in judged:
            self._notes.append("not timed: its clock means nothing (an interpreter)")
            self._end("ok")
            return
        self._set_warm_up(
            {name: Pace(**pace) for name, pace in judged["paces"].items()},
            judged.get("clock") or about["clock"],
        )

    def _judged_otherwise(self, rejected: dict[str, Any], flash: str) -> dict[str, Any]:
        """Judged by a contract that allows and explains what flash rejects; as rejected if there is none."""
        for contract, words in HYPOTHESES.items():
            judged = self._call("judge_again", reference=self.reference(contract), rejected_by=flash)
            if judged["ok"]:
                self._values["contract"] = contract
                why = words.format(dtype=self.blank.case["dtype"])
                self._notes.append(f"right under the {contract} contract; not under flash: {why}")
                return judged
        return rejected

    def _set_warm_up(self, paces: dict[str, Pace], clock: str) -> None:
        self._values["clock"] = clock
        for name, pace in paces.items():
            if not pace.settled and pace.warm_up_calls > 1:
                self._notes.append(
                    f"{name}: the warm-up of {pace.warm_up_calls} calls did not settle within 10 %"
                )
        self.use_paces(paces)

    @property
    def paces(self) -> dict[str, Pace]:
        """How fast each direction is, so how many calls make a sample; empty before `judge`."""
        return self._paces

    def use_paces(self, paces: dict[str, Pace]) -> None:
        """Time by these paces; with those of another run both have as many calls per sample and samples."""
        self._paces = paces
        self._values["calls_per_sample"] = {name: p.calls_per_sample for name, p in paces.items()}
        round_ms = sum(pace.block_ms(self.settings.block_ms) for pace in paces.values())
        round_ms += paces["fwd"].call_ms if "bwd" in paces else 0.0
        self.seconds_per_round = round_ms / 1e3
        fitting = int(self.settings.case_seconds / max(self.seconds_per_round, 1e-9))
        fewest = FEWEST_ROUNDS if self.seconds_per_round < SLOW_ROUND_S else 1
        self.rounds = min(self.settings.rounds, max(fewest, fitting))

    def time_round(self, position: int) -> None:
        """Time one block per direction. `position` is this run's place in the order of the round."""
        start = time.monotonic()
        at_s = start - self.began
        try:
            paces = {name: pace.to_json() for name, pace in self._paces.items()}
            block = self._call("block", block_ms=self.settings.block_ms, paces=paces)
        except StepError as error:
            self._fail(error)
            return
        for direction, samples in block["samples_ms"].items():
            self._samples_ms.setdefault(direction, []).append(samples)
        for direction, host_ms in block.get("host_ms", {}).items():
            self._host_ms.setdefault(direction, []).append(host_ms)
        self._late += block.get("late", 0)
        self._rounds.append(
            {
                "at_s": round(at_s, 3),
                "position": position,
                "involuntary_switches": block["involuntary_switches"],
                **({"gpu": block["gpu"]} if "gpu" in block else {}),
            }
        )
        self._timing_s += time.monotonic() - start
        if (
            self._timing_s > OVERTIME * self.settings.case_seconds
            and FEWEST_ROUNDS <= len(self._rounds) < self.rounds
        ):
            self._notes.append(
                f"timed for {len(self._rounds)} of {self.rounds} rounds: the machine was too busy"
            )
            self.rounds = len(self._rounds)

    def finish(self) -> None:
        """Judge the last timed answers and set `result`."""
        if self.result is not None:
            return
        try:
            recheck = self._call("recheck")
        except StepError as error:
            self._fail(error)
            return
        if not recheck["ok"]:
            self._values |= {name: recheck[name] for name in ("errors", "error_over_budget")}
            self._end("wrong", f"right at first, wrong after the timed loop: {recheck['reason']}")
            return
        self._values |= {"samples_ms": self._samples_ms, "rounds": self._rounds}
        self._values["host_ms"] = {name: median(each) for name, each in self._host_ms.items()}
        if self._late:
            self._notes.append(
                f"{self._late} samples contain time of the host: it waits within a call, or is too slow"
            )
        self._values["other_clocks_ms"] = recheck.get("other_clocks_ms", {})
        self._notes += recheck.get("notes", []) + _throttling_note(self._rounds)
        self._end("ok")

    def leave_untimed(self, reason: str) -> None:
        """End without timing: `ok`, as judged."""
        if self.result is None:
            self._notes.append(f"not timed: {reason}")
            self._end("ok")

    def release(self) -> None:
        """Free the case in the worker; if that fails, the next case starts a new worker."""
        if not self.slot.is_loaded:  # a call would start a worker
            return
        try:
            self._call("release")
        except StepError:
            self.slot.stop()

    def _call(self, step: str, **fields: Any) -> dict[str, Any]:
        """Do a step within the rest of this run's timeout (waiting for other backends does not count)."""
        start = time.monotonic()
        try:
            return self.slot.call(step, max(0.01, self.settings.timeout_s - self._spent_s), **fields)
        except StepError as error:
            if error.status == "timeout":
                phase = error.reason.partition("while in: ")[2]
                text = f"not done after {self.settings.timeout_s:g} s; killed while in: {phase or step}"
                raise StepError("timeout", text, error.notes, fatal=True) from None
            raise
        finally:
            self._spent_s += time.monotonic() - start

    def _fail(self, error: StepError) -> None:
        self._notes += error.notes
        self._end("unavailable" if error.status == UNKNOWN_BACKEND else error.status, error.reason)

    def _end(self, status: str, reason: str = "") -> None:
        values = (
            self._values if status == "ok" else {k: v for k, v in self._values.items() if k not in _TIMED}
        )
        self.result = replace(self.blank, status=status, reason=reason, notes=self._notes, **values)


def time_together(
    runs: Sequence[CaseRun], order: random.Random, tell: Callable[[int, int, int], None] = lambda *_: None
) -> Iterator[Result]:
    """Time the right ones in interleaved rounds and re-check them; yields each result as its run finishes.

    `tell(backends, index, rounds)` is called before each round.
    """
    for index in range(rounds := max((run.rounds for run in runs), default=0)):
        # A new order each round: a fixed one gives the later run the warmer or the slower machine.
        in_round = [run for run in runs if run.result is None and index < run.rounds]
        order.shuffle(in_round)
        tell(len(in_round), index, rounds)
        for position, run in enumerate(in_round):
            run.time_round(position)
    for run in runs:
        run.finish()
        assert run.result is not None
        yield run.result
        run.release()


def join_results(first: Result, other: Result, process: int) -> Result:
    """One result with the rounds of two processes, those of `other` marked `process`; a failure of either wins."""
    if other.status != "ok" or not other.samples_ms:
        return other if other.status != "ok" else first
    samples = {which: rounds + other.samples_ms.get(which, []) for which, rounds in first.samples_ms.items()}
    rounds = [*first.rounds, *({**one, "process": process} for one in other.rounds)]
    notes = [*first.notes, *(note for note in other.notes if note not in first.notes)]
    return replace(first, samples_ms=samples, rounds=rounds, notes=notes)


_TIMED = ("samples_ms", "rounds", "calls_per_sample", "clock", "host_ms", "other_clocks_ms")


def _throttling_note(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """The note on blocks that were still throttled when retaken."""
    reasons = [s["throttled"] for r in rounds for s in r.get("gpu", {}).values() if "throttled" in s]
    return [f"{len(reasons)} blocks were throttled: {reasons[0]}"] if reasons else []
