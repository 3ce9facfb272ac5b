"""The backends in a terminal: what each takes on each device, and what would make the missing ones available."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.problem import MASK_KINDS
from attnbench.report.cells import clean

Row = Mapping[Any, Any]  # of `session.backends`


def backend_table(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """A line per backend and devices on which it takes the same; below it versions, and what the missing ones need."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("backend", "on", "dtypes", "backward", "masks; limits"):
        table.add_column(name, overflow="fold")
    available = sorted((row for row in rows if row["available"]), key=lambda row: row["name"])
    for row in available:
        name = clean(row["name"], 40)
        for devices, takes in _by_devices(row["takes"]):
            limits = "; ".join([_masks(takes.masks), *_limits(row["capabilities"], takes)])
            backward = "yes" if takes.backward else Text("no", style="yellow")
            table.add_row(Text(name), ", ".join(devices), " ".join(takes.dtypes), backward, Text(limits))
            name = ""
        if not row["takes"]:
            table.add_row(Text(name), "", "", "", Text("takes no plain case on a device of this machine"))
    yield table
    versions: dict[str, list[str]] = {}
    for row in available:
        versions.setdefault(clean(row["version"], 60), []).append(clean(row["name"], 40))
    most = max(versions, key=lambda version: len(versions[version]), default="")
    others = [f"{', '.join(names)}: {version}" for version, names in versions.items() if version != most]
    if most:
        yield Text(f"\nversions: {'; '.join([most, *others])}", style="bright_black")
    missing = missing_lines(rows)
    if missing:
        yield Text("\nNot available here", style="bold")
    for line in missing:
        yield Text(line)


def missing_lines(rows: Sequence[Row]) -> list[str]:
    """A sentence per thing to do, with the backends that it makes available."""
    lines = []
    for names, reason, install in missing_groups(rows):
        listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        need = "need" if len(names) > 1 else "needs"
        lines.append(f"{listed} {need}: {install}" if install else f"{listed}: {reason}")
    return lines


def missing_groups(rows: Sequence[Row]) -> list[tuple[list[str], str, str]]:
    """The unavailable backends by what would make them available: names, the reason of the first, the command."""
    groups: dict[str, tuple[list[str], str, str]] = {}
    for row in rows:
        if not row["available"]:
            reason, install = clean(row["reason"]), clean(row["install"])
            groups.setdefault(install or reason, ([], reason, install))[0].append(clean(row["name"], 60))
    return list(groups.values())


def _by_devices(takes: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
    groups: list[tuple[list[str], Any]] = []
    for device, taken in takes.items():
        same = next((devices for devices, other in groups if other == taken), None)
        if same is None:
            groups.append(([device], taken))
        else:
            same.append(device)
    return groups


def _masks(has: Sequence[str]) -> str:
    lacking = sorted(MASK_KINDS - set(has))
    if not lacking:
        return "all"
    return ", ".join(has) if len(has) <= len(lacking) else f"all but {', '.join(lacking)}"


def _limits(can: Any, takes: Any) -> list[str]:
    limits = [] if can.combinations else ["no combined masks"]
    limits += [] if takes.gqa else ["no GQA"]
    limits += [] if can.timed else ["never timed here"]
    return limits + (["a whole layer"] if can.layer_level else [])
