"""Which failures are a library's known defects, and which declared defects are no longer there?"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from attnbench.backend.defects import KnownDefect
from attnbench.backend.interface import Backend
from attnbench.conformance.report import KNOWN, OK, WRONG, CheckOutcome, Report
from attnbench.problem import Case


class _Found(Protocol):
    # An outcome or a failure: what of it says whether a defect explains it.
    @property
    def check(self) -> str: ...
    @property
    def distribution(self) -> str: ...
    @property
    def case(self) -> Case | None: ...
    @property
    def tensors(self) -> tuple[str, ...]: ...


def _is_of(key: str, defect: KnownDefect, found: _Found) -> bool:
    check, _, distribution = key.partition(":")
    if found.check != check or distribution not in ("", found.distribution):
        return False
    return found.case is None or defect.shows(found.case)


def _is_excused(key: str, defect: KnownDefect, failed: _Found) -> bool:
    if not _is_of(key, defect, failed):
        return False
    return not defect.tensors or (bool(failed.tensors) and set(failed.tensors) <= defect.tensors)


def defects_here(backend: Backend, device: str) -> dict[str, KnownDefect]:
    """The declared defects that the library has in the version that runs, on this device."""
    version, kind = backend.version(), device.split(":")[0]
    return {
        key: defect
        for key, defect in backend.known_defects.items()
        if kind in defect.devices and defect.is_in(version)
    }


def is_known(backend: Backend, device: str, found: _Found) -> bool:
    """Whether a failure is one of the library's known defects."""
    return any(_is_excused(key, defect, found) for key, defect in defects_here(backend, device).items())


def settle_known_defects(backend: Backend, report: Report) -> None:
    """Take failures that the backend declares as known out of the report's failures, and say so.

    Strict: a defect that none of its cases shows any more fails the check, and in other versions than the declared
    ones a failure is a failure.
    """
    for key, defect in defects_here(backend, report.device).items():
        seen = [o for o in report.outcomes if _is_of(key, defect, o) and o.status in (OK, WRONG)]
        if any(o.status == WRONG and _is_excused(key, defect, o) for o in seen):
            report.failures = [f for f in report.failures if not _is_excused(key, defect, f)]
            report.outcomes = [_known(o) if _is_excused(key, defect, o) else o for o in report.outcomes]
            report.known[key] = str(defect)
        elif seen and all(o.status == OK for o in seen):
            report.gone[key] = str(defect)


def _known(outcome: CheckOutcome) -> CheckOutcome:
    return replace(outcome, status=KNOWN) if outcome.status == WRONG else outcome
