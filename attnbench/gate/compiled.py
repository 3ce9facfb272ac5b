"""Did kernels compile to something worse? Spills, shared memory and matrix instructions, without their GPU.

A row is a kernel of a specimen (a case) on an architecture, as a backend's `ahead_of_time` program prints it: arch,
kernel, specimen, registers, spill_bytes, shared_bytes, shared_limit, matrix_instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from attnbench.gate.verdict import Finding

Row = dict[str, Any]


def regressions(now: Sequence[Row], before: Sequence[Row]) -> list[tuple[Row, str]]:
    """The rows that got worse, each with what did: more spills, fewer matrix instructions, too much shared memory."""
    table = {_key(row): row for row in before}
    found = []
    for row in now:
        old = table.get(_key(row))
        if old is not None and row["spill_bytes"] > old["spill_bytes"]:
            found.append((row, f"spills {row['spill_bytes']} bytes, base {old['spill_bytes']}"))
        if old is not None and row["matrix_instructions"] < old["matrix_instructions"]:
            said = f"has {row['matrix_instructions']} matrix instructions, base {old['matrix_instructions']}"
            found.append((row, said))
        if row["shared_bytes"] > row["shared_limit"]:
            said = f"takes {row['shared_bytes']} bytes of shared memory, the architecture has {row['shared_limit']}"
            found.append((row, said))
    return found


def unknown(now: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """The rows that the table before has not."""
    known = {_key(row) for row in before}
    return [row for row in now if _key(row) not in known]


def compiled_findings(backend: str, head: Sequence[Row], base: Sequence[Row]) -> Iterator[Finding]:
    """What the gate says of head's kernels: what got worse, what is gone, and that the others are as they were."""
    worse = regressions(head, base)
    for row, said in worse:
        yield Finding(
            "worse compiled", _place(row), backend, f"{said} ({row['config']}, triton {row['triton']})"
        )
    architectures = {row["arch"] for row in head}
    for row in unknown([row for row in base if row["arch"] in architectures], head):
        yield Finding("missing", _place(row), backend, "is not compiled any more; base has it")
    fine = len(head) - len({_key(row) for row, _ in worse})
    if fine:
        where = ", ".join(sorted(architectures))
        yield Finding("same", f"{fine} compiled kernels", backend, f"spill no more than base's on {where}")


def _key(row: Row) -> tuple[str, str, str]:
    return (row["arch"], row["kernel"], row["specimen"])


def _place(row: Row) -> str:
    return f"{row['kernel']} {row['specimen']} {row['arch']}"
