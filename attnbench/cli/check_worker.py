"""The steps of `attnbench check`, in the process that calls the backend: load it, then check it.

What it tells on the way (`phase`): `{"call": ...}` before and after each call of the backend, `{"next": ...}` before
each step and `{"done": [step, record]}` after it. The answer of the check is the report, for readers and machines.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import Any

from attnbench.conformance.conformance import report_of, run_checks
from attnbench.conformance.plan import Plan, plan_of
from attnbench.conformance.report import Report
from attnbench.conformance.steps import Steps
from attnbench.errors import AttnbenchError, BackendUnavailable
from attnbench.problem import Case


class CheckBench:
    """One check of one backend."""

    def __init__(self, device: str, phase: Callable[[Any], None]) -> None:
        self._device, self._phase = device, phase
        self._plan: Plan | None = None
        self._warnings: dict[str, None] = {}

    def load(self, backend: str, options: dict[str, Any], quietly: bool = True) -> dict[str, Any]:
        """Load the backend; `refused` says why the request makes no sense, or `unavailable` why it cannot be loaded."""
        if quietly:
            warnings.showwarning = self._keep_warning  # type: ignore[assignment]
        try:
            self._plan = plan_of(backend, device=self._device, **options)
        except BackendUnavailable as error:
            return {"unavailable": str(error)}
        except AttnbenchError as error:
            return {"refused": str(error)}
        return {}

    def check(
        self,
        case: dict[str, Any] | None,
        distribution: str,
        only_some: bool,
        verbose: bool,
        time_limit_s: float | None,
        done: dict[str, str],
        crashed: dict[str, dict[str, Any]],
        stopped: str,
    ) -> dict[str, Any]:
        """Check, but for what is done or crashed; `stopped` says why only what is done is to be told."""
        assert self._plan is not None
        one = None if case is None else Case.from_json(case)
        report = report_of(self._plan, one)
        steps = Steps(
            on_step=lambda progress: self._phase({"next": vars(progress)}),
            time_limit_s=0.0 if stopped else time_limit_s,
            done={step: json.loads(record) for step, record in done.items()},
            crashed=crashed,
            # As text, since it may hold infinities.
            on_done=lambda step, record: self._phase({"done": [step, json.dumps(record)]}),
            on_call=lambda call: self._phase({"call": call}),
        )
        try:
            run_checks(self._plan, report, steps, one, distribution, only_some)
        except AttnbenchError as error:
            return {"refused": str(error)}
        except KeyboardInterrupt:
            pass  # the report says so
        report.stopped = stopped or report.stopped
        return {
            "text": report.text(verbose),
            "json": json.dumps(report.to_json(), default=str),
            "verdict": report.verdict,
            "limits": len(report.limits),
            "undeclared": len(report.undeclared),
            "stopped": report.stopped,
            "command": _command(report),
            "warnings": list(self._warnings),
        }

    def _keep_warning(self, message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        text = " ".join(str(message).split())
        self._warnings[f"{os.path.basename(filename)}:{lineno}: {category.__name__}: {text}"] = None


def _command(report: Report) -> str:
    """The command of the first cause that the report shows, if it is a wrong value: only that has a picture."""
    shown = [block.shown for block in report.causes()]
    return shown[0].command if shown and shown[0].tensors else ""
