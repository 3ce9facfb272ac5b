"""Declared defects of a library: which failures they excuse, and which of them no longer show."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from attnbench.backend.defects import KnownDefect
from attnbench.backend.interface import Backend
from attnbench.conformance.outcome import KNOWN, OK, WRONG, CheckOutcome
from attnbench.conformance.report import Report
from attnbench.problem import Case


class _Checked(Protocol):
    # What an outcome and a failure have in common: enough to tell whether a defect explains it.
    @property
    def check(self) -> str: ...
    @property
    def distribution(self) -> str: ...
    @property
    def case(self) -> Case | None: ...
    @property
    def tensors(self) -> tuple[str, ...]: ...


def _is_of(key: str, defect: KnownDefect, checked: _Checked) -> bool:
    check, _, distribution = key.partition(":")
    if checked.check != check or distribution not in ("", checked.distribution):
        return False
    return checked.case is None or defect.shows(checked.case)


def _is_excused(key: str, defect: KnownDefect, failed: _Checked) -> bool:
    if not _is_of(key, defect, failed):
        return False
    return not defect.tensors or (bool(failed.tensors) and set(failed.tensors) <= defect.tensors)


def defects_here(backend: Backend, device: str) -> dict[str, KnownDefect]:
    """The declared defects that the library has in the version that runs, or may have since, on this device."""
    version, kind = backend.version(), device.split(":")[0]
    return {
        key: defect
        for key, defect in backend.known_defects.items()
        if kind in defect.devices and (defect.is_in(version) or defect.is_beyond(version))
    }


def is_known(backend: Backend, device: str, failed: _Checked) -> bool:
    """Whether a failure is one of the library's known defects."""
    return any(_is_excused(key, defect, failed) for key, defect in defects_here(backend, device).items())


def settle_known_defects(backend: Backend, report: Report) -> None:
    """Move failures that the backend declares as known from the report's failures to `known`.

    Strict: a declared defect that none of its cases shows is `gone`, which fails the check; in versions of the library
    before the declared ones or with the defect mended it excuses nothing. In a version later than every tried one a
    failure that is otherwise as declared goes to `undeclared`: the library has it still, most likely.
    """
    version = backend.version()
    for key, defect in defects_here(backend, report.device).items():
        seen = [o for o in report.outcomes if _is_of(key, defect, o) and o.status in (OK, WRONG)]
        if any(o.status == WRONG and _is_excused(key, defect, o) for o in seen):
            report.failures = [f for f in report.failures if not _is_excused(key, defect, f)]
            report.outcomes = [_known(o) if _is_excused(key, defect, o) else o for o in report.outcomes]
            (report.known if defect.is_in(version) else report.undeclared)[key] = str(defect)
        elif defect.is_in(version) and seen and all(o.status == OK for o in seen):
            report.gone[key] = str(defect)


def _known(outcome: CheckOutcome) -> CheckOutcome:
    return replace(outcome, status=KNOWN) if outcome.status == WRONG else outcome
