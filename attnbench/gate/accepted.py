"""Which regressions has somebody accepted? A file that says which, how large, why and until when.

[[accepted]]
backend = "naive"            # shell patterns: *, ?, [..]
case = "q512-*"
kind = "slower"              # slower, bigger, less accurate, worse compiled or missing; never wrong
pass = "bwd"                 # slower, missing: fwd or bwd; left out: either
up_to = 1.15                 # slower: head / base; left out: any
reason = "delta is now taken in float32"
expires = 2027-01-31
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attnbench.errors import AttnbenchError, did_you_mean
from attnbench.gate.verdict import Finding, Gate, gathered

FILE = "accepted-regressions.toml"
ACCEPTABLE = ("slower", "bigger", "less accurate", "worse compiled", "missing")
KEYS = ("backend", "case", "kind", "pass", "up_to", "reason", "expires")
ONLY = {"pass": ("slower", "missing"), "up_to": ("slower",)}  # the kinds that have a pass, and a size
NEEDED = ("backend", "case", "kind", "reason", "expires")


@dataclass(frozen=True)
class Accepted:
    """One regression that somebody accepted, with the reason and the last day it holds."""

    backend: str
    case: str
    kind: str
    reason: str
    expires: date
    which: str = ""
    up_to: float | None = None

    def covers(self, finding: Finding) -> bool:
        """Whether it is about this finding, its size included; the date is not looked at."""
        about = (
            finding.kind == self.kind
            and fnmatchcase(finding.backend, self.backend)
            and fnmatchcase(finding.case, self.case)
            and self.which in ("", finding.which)
        )
        small_enough = self.up_to is None or (finding.ratio is not None and finding.ratio.point <= self.up_to)
        return about and small_enough


def read_accepted(path: Path) -> list[Accepted]:
    """The file's entries; AttnbenchError names the file, the entry and what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise AttnbenchError(f"{path} cannot be read as TOML: {problem}") from problem
    entries = tables.pop("accepted", [])
    if tables or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AttnbenchError(f"{path}: an entry begins with [[accepted]], and there is nothing else")
    return [_entry(f"{path}, entry {index}", entry) for index, entry in enumerate(entries, start=1)]


def _entry(where: str, entry: dict[str, Any]) -> Accepted:
    for key in entry:
        if key not in KEYS:
            raise AttnbenchError(f"{where}: no key {key!r}{did_you_mean(key, KEYS)}")
    for key in NEEDED:
        if not entry.get(key):
            raise AttnbenchError(f"{where}: {key} is missing; give {', '.join(NEEDED)}")
    if entry["kind"] not in ACCEPTABLE:
        raise AttnbenchError(f"{where}: kind is one of {', '.join(ACCEPTABLE)}, not {entry['kind']!r}")
    if type(entry["expires"]) is not date:
        raise AttnbenchError(
            f"{where}: expires is a date such as 2027-01-31, without quotes, not {entry['expires']!r}"
        )
    for key, kinds in ONLY.items():
        if key in entry and entry["kind"] not in kinds:
            # It would cover nothing, and nobody would be told why.
            raise AttnbenchError(
                f"{where}: {key} is of {' and '.join(kinds)} only, not of {entry['kind']}; leave it out"
            )
    up_to = entry.get("up_to")
    if up_to is not None and not (isinstance(up_to, (int, float)) and up_to > 1):
        raise AttnbenchError(f"{where}: up_to is head over base, above 1, such as 1.15, not {up_to!r}")
    if entry.get("pass", "") not in ("", "fwd", "bwd"):
        raise AttnbenchError(f"{where}: pass is fwd or bwd, not {entry['pass']!r}")
    words = {key: str(entry[key]) for key in ("backend", "case", "kind", "reason")}
    return Accepted(**words, expires=entry["expires"], which=entry.get("pass", ""), up_to=up_to)


def accepting(found: Gate, accepted: Sequence[Accepted], today: date) -> Gate:
    """The verdict where accepted regressions do not fail; what has expired does, and it is said."""
    findings = [_with(finding, accepted, today) for finding in found.findings]
    return gathered(findings, found.margin, unlike=found.unlike, notes=found.notes)


def _with(finding: Finding, accepted: Sequence[Accepted], today: date) -> Finding:
    about = [one for one in accepted if one.covers(finding)]
    good = [one for one in about if one.expires >= today]
    if good:
        said = f"{finding.kind}, accepted until {good[0].expires} ({good[0].reason}): {finding.message}"
        return replace(finding, kind="accepted", message=said)
    if about:
        return replace(finding, message=f"{finding.message}; its acceptance ended on {about[0].expires}")
    return finding
