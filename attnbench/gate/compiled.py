"""Compare what kernels compile to without their GPU: spills, shared memory, matrix instructions.

A row is a kernel of a specimen (a case) on an architecture, as a backend's `ahead_of_time` program prints it: arch,
kernel, specimen, registers, spill_bytes, shared_bytes, shared_limit, matrix_instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attnbench.backend.ahead_of_time import COMPILED, committed, compiled_rows
from attnbench.errors import AttnbenchError
from attnbench.gate.touched import BackendVersions
from attnbench.gate.verdict import Finding

Row = dict[str, Any]
KERNELS = "compiled kernels"  # in place of a case


def regressions(now: Sequence[Row], before: Sequence[Row]) -> list[tuple[Row, str]]:
    """The rows that got worse, each with its reason: more spills, fewer matrix instructions, too much shared memory."""
    table = {_key(row): row for row in before}
    worse = []
    for row in now:
        old = table.get(_key(row))
        if old is not None and row["spill_bytes"] > old["spill_bytes"]:
            worse.append((row, f"spills {row['spill_bytes']} bytes, base {old['spill_bytes']}"))
        if old is not None and row["matrix_instructions"] < old["matrix_instructions"]:
            reason = (
                f"has {row['matrix_instructions']} matrix instructions, base {old['matrix_instructions']}"
            )
            worse.append((row, reason))
        if row["shared_bytes"] > row["shared_limit"]:
            reason = f"takes {row['shared_bytes']} bytes of shared memory, the architecture has {row['shared_limit']}"
            worse.append((row, reason))
    return worse


def added(now: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """The rows whose kernel the table before lacks."""
    before_keys = {_key(row) for row in before}
    return [row for row in now if _key(row) not in before_keys]


def compiled_findings(backend: str, head: Sequence[Row], base: Sequence[Row]) -> Iterator[Finding]:
    """The findings on head's kernels: what got worse, what is gone, and how many are as before."""
    worse = regressions(head, base)
    for row, reason in worse:
        yield Finding(
            "worse compiled", _place(row), backend, f"{reason} ({row['config']}, triton {row['triton']})"
        )
    architectures = {row["arch"] for row in head}
    for row in added([row for row in base if row["arch"] in architectures], head):
        yield Finding("missing", _place(row), backend, "is not compiled any more; base has it")
    fine = len(head) - len({_key(row) for row, _ in worse})
    if fine:
        where = ", ".join(sorted(architectures))
        yield Finding("same", f"{fine} compiled kernels", backend, f"spill no more than base's on {where}")


def against_the_table(rows: list[dict[str, Any]], backend: str) -> list[str]:
    """A sentence per kernel that is worse than the committed table, or not in it."""
    table = committed(backend)
    worse = [f"{_named(row)} {reason}" for row, reason in regressions(rows, table)]
    new = [
        f"{_named(row)} is not in the table; write the table again and read its diff"
        for row in added(rows, table)
    ]
    return worse + new


def _named(row: dict[str, Any]) -> str:
    return f"{row['kernel']} of {row['specimen']} on {row['arch']}"


def kernel_findings(
    backends: Sequence[BackendVersions], arch: str, tell: Callable[[str], None]
) -> Iterator[Finding]:
    """The findings on backends whose kernels compile without their GPU."""
    for versions in backends:
        arms = (versions.base, versions.head)
        base, head = (None if arm is None or arm.folder is None else arm.folder for arm in arms)
        if base is None or head is None:
            continue
        if all((folder / versions.name / "ahead_of_time.py").is_file() for folder in (base, head)):
            tell(f"compiling the kernels of {versions.name} for {arch}")
            yield from _of_backend(versions.name, base, head, arch)


def _of_backend(name: str, base_folder: Path, head_folder: Path, arch: str) -> Iterator[Finding]:
    """The findings on one backend; head not compiling is a finding, not the end of the gate."""
    try:
        head = compiled_rows(name, arch, folder=head_folder)
    except AttnbenchError as error:
        try:
            compiled_rows(name, arch, folder=base_folder)
        except AttnbenchError:
            yield Finding("inconclusive", KERNELS, name, f"{error}; nor could base's")
        else:
            yield Finding("broken", KERNELS, name, f"{error}; base's could")
        return
    try:
        base = _base_rows(name, base_folder, arch, head)
    except AttnbenchError as error:
        yield Finding("new", KERNELS, name, f"compile for {arch}; base's do not: {error}")
    else:
        yield from compiled_findings(name, head, base)


def _base_rows(name: str, folder: Path, arch: str, head: Sequence[Row]) -> list[Row]:
    """Base's kernels: from its table if the same Triton compiled head, else compiled here."""
    if (folder / name / COMPILED).is_file():
        wanted = {row["arch"] for row in head}
        table = [row for row in committed(name, folder) if row["arch"] in wanted]
        # Registers and spills differ between versions of Triton.
        if {row["triton"] for row in table} == {row["triton"] for row in head}:
            return table
    return compiled_rows(name, arch, folder=folder)


def _key(row: Row) -> tuple[str, str, str]:
    return (row["arch"], row["kernel"], row["specimen"])


def _place(row: Row) -> str:
    return f"{row['kernel']} {row['specimen']} {row['arch']}"
