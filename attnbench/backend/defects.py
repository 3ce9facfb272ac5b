"""What is a library known to get wrong? Declared by its backend, so that a check is right but for that."""

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
    """One known defect: why, where it is written down, and in which versions of the library it is.

    `versions` is a specifier of PEP 440 (`==2.13.*`). `shows` tells on which cases it is seen, `devices` where, and
    `tensors` what it makes wrong (none named: anything): only failures there and of these tensors alone are excused,
    and all of them passing means that it is gone. A backend declares it under the
    name of the check that finds it, `oracle`, or `oracle:cancelling_dq` for that input distribution alone.
    """

    reason: str
    link: str
    versions: str
    shows: Callable[[Case], bool] = _anywhere
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    tensors: frozenset[str] = frozenset()

    def is_in(self, version: str) -> bool:
        """Whether a library's version, as `Backend.version` gives it (`torch 2.13.0+cpu`), is one of those."""
        words = version.split()
        try:
            number = Version(words[-1] if words else "")
        except InvalidVersion:
            return True  # a version that nobody can read excuses nobody from being strict
        return SpecifierSet(self.versions).contains(number, prereleases=True)

    def __str__(self) -> str:
        return f"{self.reason} ({self.link}; versions {self.versions})"
