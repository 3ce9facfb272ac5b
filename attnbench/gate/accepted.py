"""Accepted regressions: a TOML file that says which, how large, why and until when.

[[accepted]]
backend = "naive"            # shell patterns: *, ?, [..]
case = "q512-*"
kind = "slower"              # slower, bigger, less accurate, worse compiled or missing; never wrong
pass = "bwd"                 # slower, missing: fwd or bwd; without it: either
up_to = 1.15                 # slower: head / base; without it: any
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

ACCEPTED_FILE = "accepted-regressions.toml"
ACCEPTABLE = ("slower", "bigger", "less accurate", "worse compiled", "missing")
ENTRY_KEYS = ("backend", "case", "kind", "pass", "up_to", "reason", "expires")
KINDS_WITH_KEY = {"pass": ("slower", "missing"), "up_to": ("slower",)}
REQUIRED_KEYS = ("backend", "case", "kind", "reason", "expires")


@dataclass(frozen=True)
class Accepted:
    """One accepted regression, with the reason and the last day it holds."""

    backend: str
    case: str
    kind: str
    reason: str
    expires: date
    which: str = ""
    up_to: float | None = None

    def covers(self, finding: Finding) -> bool:
        """Whether this entry covers the finding, its size included, whatever the date."""
        matches = (
            finding.kind == self.kind
            and fnmatchcase(finding.backend, self.backend)
            and fnmatchcase(finding.case, self.case)
            and self.which in ("", finding.which)
        )
        small_enough = self.up_to is None or (finding.ratio is not None and finding.ratio.point <= self.up_to)
        return matches and small_enough


def read_accepted(path: Path) -> list[Accepted]:
    """The file's entries; AttnbenchError names the file, the entry and what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AttnbenchError(f"{path} cannot be read as TOML: {error}") from error
    entries = tables.pop("accepted", [])
    if tables or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AttnbenchError(f"{path}: every entry begins with [[accepted]], and nothing else is allowed")
    return [_entry(f"{path}, entry {index}", entry) for index, entry in enumerate(entries, start=1)]


def _entry(where: str, entry: dict[str, Any]) -> Accepted:
    for key in entry:
        if key not in ENTRY_KEYS:
            raise AttnbenchError(f"{where}: no key {key!r}{did_you_mean(key, ENTRY_KEYS)}")
    for key in REQUIRED_KEYS:
        if not entry.get(key):
            raise AttnbenchError(f"{where}: {key} is missing; give {', '.join(REQUIRED_KEYS)}")
    if entry["kind"] not in ACCEPTABLE:
        raise AttnbenchError(f"{where}: kind is one of {', '.join(ACCEPTABLE)}, not {entry['kind']!r}")
    if type(entry["expires"]) is not date:
        raise AttnbenchError(
            f"{where}: expires is a date such as 2027-01-31, without quotes, not {entry['expires']!r}"
        )
    for key, kinds in KINDS_WITH_KEY.items():
        if key in entry and entry["kind"] not in kinds:
            # Such an entry would silently cover nothing.
            raise AttnbenchError(
                f"{where}: {key} applies to {' and '.join(kinds)} only, not to {entry['kind']}; remove it"
            )
    up_to = entry.get("up_to")
    if up_to is not None and not (isinstance(up_to, (int, float)) and up_to > 1):
        raise AttnbenchError(f"{where}: up_to is head over base, above 1, such as 1.15, not {up_to!r}")
    if entry.get("pass", "") not in ("", "fwd", "bwd"):
        raise AttnbenchError(f"{where}: pass is fwd or bwd, not {entry['pass']!r}")
    words = {key: str(entry[key]) for key in ("backend", "case", "kind", "reason")}
    return Accepted(**words, expires=entry["expires"], which=entry.get("pass", ""), up_to=up_to)


def accepting(verdict: Gate, accepted: Sequence[Accepted], today: date) -> Gate:
    """The verdict in which accepted regressions do not fail; a finding names an expired entry."""
    findings = [_with(finding, accepted, today) for finding in verdict.findings]
    return gathered(findings, verdict.margin, unlike=verdict.unlike, notes=verdict.notes)


def _with(finding: Finding, accepted: Sequence[Accepted], today: date) -> Finding:
    covering = [one for one in accepted if one.covers(finding)]
    valid = [one for one in covering if one.expires >= today]
    if valid:
        message = f"{finding.kind}, accepted until {valid[0].expires} ({valid[0].reason}): {finding.message}"
        return replace(finding, kind="accepted", message=message)
    if covering:
        return replace(finding, message=f"{finding.message}; its acceptance ended on {covering[0].expires}")
    return finding
