"""A known defect of a library, declared by its backend: a check reports it and stays right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from attnbench.problem import Case


def _anywhere(case: Case) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class KnownDefect:
    """One known defect: its cause, a link, and the versions of the library that have it.

    `versions` is a specifier of PEP 440 (`>=2.11,<=2.15.0`): the versions that were tried. An inclusive upper bound is
    the newest one tried, beyond which nobody knows; an exclusive one is the version that mended it. `shows` selects the
    cases on which it is seen, `devices` the devices, `tensors` the tensors it makes wrong (empty: any). Only failures
    within these are excused; if all of them pass, the defect is gone. A backend declares it under the name of the check
    that finds it: `oracle`, or `oracle:cancelling_dq` for that input distribution alone.
    """

    reason: str
    link: str
    versions: str
    shows: Callable[[Case], bool] = _anywhere
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    tensors: frozenset[str] = frozenset()

    def is_in(self, version: str) -> bool:
        """Whether a version, as `Backend.version` gives it (`torch 2.13.0+cpu`), has the defect."""
        words = version.split()
        try:
            number = Version(words[-1] if words else "")
        except InvalidVersion:
            return True  # unparsable version: assume the defect is present
        return SpecifierSet(self.versions).contains(number, prereleases=True)

    def is_beyond(self, version: str) -> bool:
        """Whether a version is later than the newest that was tried, so that it may have the defect still."""
        words = version.split()
        try:
            number = Version(words[-1] if words else "")
        except InvalidVersion:
            return False
        specifiers = list(SpecifierSet(self.versions))
        if any(one.operator in ("<", ">", ">=") and not one.contains(number, True) for one in specifiers):
            return False
        tried = [one.version.removesuffix(".*") for one in specifiers if one.operator in ("<=", "==")]
        return not self.is_in(version) and all(number > Version(one) for one in tried)

    def __str__(self) -> str:
        return f"{self.reason} ({self.link}; versions {self.versions})"
