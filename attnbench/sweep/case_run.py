"""What has one case on one backend come to? Judged, timed round by round, checked again: then a Result."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attnbench.measure import Pace
from attnbench.sweep.result import Result
from attnbench.sweep.slots import Lane
from attnbench.sweep.step_errors import UNKNOWN, Fault

FEWEST_ROUNDS = 3
OVERDRAWN = 2.0  # times what a case may take: then no further rounds, as on a machine with other work
SLOW_ROUND_S = 5.0  # rounds longer than this are not repeated thrice


@dataclass(frozen=True)
class Protocol:
    """How a case is timed: `rounds` blocks of `block_ms`, fewer where they exceed `case_seconds` an arm.

    All of that in each of `processes` fresh ones.
    """

    timeout_s: float = 300.0
    rounds: int = 10
    block_ms: float = 12.0
    case_seconds: float = 3.0
    processes: int = 1


@dataclass
class Attempt:
    """One case on one lane. `result` is there as soon as the outcome is."""

    lane: Lane
    blank: Result
    protocol: Protocol
    reference: Callable[[str], str]
    began: float = field(default_factory=time.monotonic)  # when the case was taken up, for all arms alike
    result: Result | None = None
    rounds: int = 0
    seconds_a_round: float = 0.0
    _found: dict[str, Any] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _paces: dict[str, Pace] = field(default_factory=dict)
    _samples_ms: dict[str, list[list[float]]] = field(default_factory=dict)
    _rounds: list[dict[str, Any]] = field(default_factory=list)
    _spent_s: float = 0.0
    _timing_s: float = 0.0

    def judge(self) -> None:
        """Ask whether the case is taken, judge the answer; leaves `result` None where it is to be timed."""
        try:
            about = self.lane.ready()
            self._found |= {"backend_version": about["version"], "contract": about["contract"]}
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
        except Fault as fault:
            self._fail(fault)
            return
        self._found |= {
            name: judged[name] for name in ("kernel", "prepare_ms", "errors", "error_over_budget")
        }
        if not judged["ok"]:
            self._end("wrong", judged["reason"])
            return
        self._found["memory_bytes"] = judged["memory_bytes"]
        if "paces" not in judged:
            self._notes.append("not timed: its clock means nothing (an interpreter)")
            self._end("ok")
            return
        self._set_pace(
            {name: Pace(**pace) for name, pace in judged["paces"].items()},
            judged.get("clock") or about["clock"],
        )

    def _set_pace(self, paces: dict[str, Pace], clock: str) -> None:
        self._found["clock"] = clock
        for name, pace in paces.items():
            if not pace.settled and pace.warm_up_calls > 1:
                self._notes.append(
                    f"{name}: the warm-up of {pace.warm_up_calls} calls did not settle within 10 %"
                )
        self.keep_pace(paces)

    @property
    def paces(self) -> dict[str, Pace]:
        """How fast each pass is here, so how many calls make a sample; empty before it is judged."""
        return self._paces

    def keep_pace(self, paces: dict[str, Pace]) -> None:
        """Time by these paces; given another arm's, both average as many calls a sample and take as many."""
        self._paces = paces
        self._found["calls_per_sample"] = {name: p.calls_per_sample for name, p in paces.items()}
        round_ms = sum(pace.block_ms(self.protocol.block_ms) for pace in paces.values())
        round_ms += paces["fwd"].call_ms if "bwd" in paces else 0.0
        self.seconds_a_round = round_ms / 1e3
        fitting = int(self.protocol.case_seconds / max(self.seconds_a_round, 1e-9))
        fewest = FEWEST_ROUNDS if self.seconds_a_round < SLOW_ROUND_S else 1
        self.rounds = min(self.protocol.rounds, max(fewest, fitting))

    def time_round(self, position: int) -> None:
        """One block a direction. `position` is the arm's place in this round's order."""
        start = time.monotonic()
        at_s = start - self.began
        try:
            paces = {name: pace.to_json() for name, pace in self._paces.items()}
            block = self._call("block", block_ms=self.protocol.block_ms, paces=paces)
        except Fault as fault:
            self._fail(fault)
            return
        for direction, samples in block["samples_ms"].items():
            self._samples_ms.setdefault(direction, []).append(samples)
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
            self._timing_s > OVERDRAWN * self.protocol.case_seconds
            and FEWEST_ROUNDS <= len(self._rounds) < self.rounds
        ):
            self._notes.append(
                f"timed for {len(self._rounds)} of {self.rounds} rounds: the machine was too busy"
            )
            self.rounds = len(self._rounds)

    def finish(self) -> None:
        """Judge the last timed answers; then the outcome is there."""
        if self.result is not None:
            return
        try:
            again = self._call("recheck")
        except Fault as fault:
            self._fail(fault)
            return
        if not again["ok"]:
            self._found |= {name: again[name] for name in ("errors", "error_over_budget")}
            self._end("wrong", f"right at first, wrong after the timed loop: {again['reason']}")
            return
        self._found |= {"samples_ms": self._samples_ms, "rounds": self._rounds}
        self._found["other_clocks_ms"] = again.get("other_clocks_ms", {})
        self._notes += again.get("notes", []) + _of_throttling(self._rounds)
        self._end("ok")

    def leave_untimed(self, why: str) -> None:
        """Be done without timing: right as far as it was judged."""
        if self.result is None:
            self._notes.append(f"not timed: {why}")
            self._end("ok")

    def release(self) -> None:
        """Have the worker let go of the case; a fault in that is the next case's to find."""
        try:
            self._call("release")
        except Fault:
            self.lane.stop()

    def _call(self, step: str, **fields: Any) -> dict[str, Any]:
        """A step, within what is left of the case's time on this arm (waiting for others does not count)."""
        start = time.monotonic()
        try:
            return self.lane.call(step, max(0.01, self.protocol.timeout_s - self._spent_s), **fields)
        except Fault as fault:
            if fault.status == "timeout":
                phase = fault.reason.partition("while in: ")[2]
                text = f"not done after {self.protocol.timeout_s:g} s; killed while in: {phase or step}"
                raise Fault("timeout", text, fault.notes, fatal=True) from None
            raise
        finally:
            self._spent_s += time.monotonic() - start

    def _fail(self, fault: Fault) -> None:
        self._notes += fault.notes
        self._end("unavailable" if fault.status == UNKNOWN else fault.status, fault.reason)

    def _end(self, status: str, reason: str = "") -> None:
        found = self._found if status == "ok" else {k: v for k, v in self._found.items() if k not in _TIMED}
        self.result = replace(self.blank, status=status, reason=reason, notes=self._notes, **found)


def time_together(attempts: Sequence[Attempt], order: random.Random) -> Iterator[Result]:
    """Time what is right in interleaved rounds, check it again; each result as its attempt is finished."""
    for index in range(max((attempt.rounds for attempt in attempts), default=0)):
        # A new order each round: a fixed one gives the later arm the warmer or the slower machine.
        running = [a for a in attempts if a.result is None and index < a.rounds]
        order.shuffle(running)
        for position, attempt in enumerate(running):
            attempt.time_round(position)
    for attempt in attempts:
        attempt.finish()
        assert attempt.result is not None
        yield attempt.result
        attempt.release()


def joined(first: Result, again: Result, process: int) -> Result:
    """One result of two processes' rounds, which are told apart by `process`; what failed in either has failed."""
    if again.status != "ok" or not again.samples_ms:
        return again if again.status != "ok" else first
    samples = {which: rounds + again.samples_ms.get(which, []) for which, rounds in first.samples_ms.items()}
    rounds = [*first.rounds, *({**one, "process": process} for one in again.rounds)]
    notes = [*first.notes, *(note for note in again.notes if note not in first.notes)]
    return replace(first, samples_ms=samples, rounds=rounds, notes=notes)


_TIMED = ("samples_ms", "rounds", "calls_per_sample", "clock", "other_clocks_ms")


def _of_throttling(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """The remark on blocks that were throttled however often they were taken again."""
    reasons = [s["throttled"] for r in rounds for s in r.get("gpu", {}).values() if "throttled" in s]
    return [f"{len(reasons)} blocks were throttled: {reasons[0]}"] if reasons else []
