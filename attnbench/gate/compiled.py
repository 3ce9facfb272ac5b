"""Did kernels compile to something worse? Spills, shared memory and matrix instructions, without their GPU.

A row is a kernel of a specimen (a case) on an architecture, as a backend's `ahead_of_time` program prints it: arch,
kernel, specimen, registers, spill_bytes, shared_bytes, shared_limit, matrix_instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attnbench.backend.ahead_of_time import COMPILED, committed, compiled_rows
from attnbench.errors import AttnbenchError
from attnbench.gate.touched import Contest
from attnbench.gate.verdict import Finding

Row = dict[str, Any]
KERNELS = "compiled kernels"  # in place of a case


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


def against_the_table(rows: list[dict[str, Any]], backend: str) -> list[str]:
    """What is worse than the committed table, or not in it, in sentences."""
    table = committed(backend)
    found = [f"{_named(row)} {said}" for row, said in regressions(rows, table)]
    new = [
        f"{_named(row)} is not in the table; write it anew and look at the difference"
        for row in unknown(rows, table)
    ]
    return found + new


def _named(row: dict[str, Any]) -> str:
    return f"{row['kernel']} of {row['specimen']} on {row['arch']}"


def findings_of_kernels(
    contests: Sequence[Contest], arch: str, tell: Callable[[str], None]
) -> Iterator[Finding]:
    """Of backends whose kernels compile without their GPU: what became worse."""
    for contest in contests:
        arms = (contest.base, contest.head)
        base, head = (None if arm is None or arm.folder is None else arm.folder for arm in arms)
        if base is None or head is None:
            continue
        if all((folder / contest.name / "ahead_of_time.py").is_file() for folder in (base, head)):
            tell(f"compiling the kernels of {contest.name} for {arch}")
            yield from _compiled_of(contest.name, base, head, arch)


def _compiled_of(name: str, base_folder: Path, head_folder: Path, arch: str) -> Iterator[Finding]:
    """What became worse of one backend; that head does not compile is a finding, not the end of the gate."""
    try:
        head = compiled_rows(name, arch, folder=head_folder)
    except AttnbenchError as problem:
        try:
            compiled_rows(name, arch, folder=base_folder)
        except AttnbenchError:
            yield Finding("inconclusive", KERNELS, name, f"{problem}; nor could base's")
        else:
            yield Finding("broken", KERNELS, name, f"{problem}; base's could")
        return
    try:
        base = _of_base(name, base_folder, arch, head)
    except AttnbenchError as problem:
        yield Finding("new", KERNELS, name, f"compile for {arch}; base's do not: {problem}")
    else:
        yield from compiled_findings(name, head, base)


def _of_base(name: str, folder: Path, arch: str, head: Sequence[Row]) -> list[Row]:
    """Base's kernels: as its table has them where head was compiled by the same Triton, else compiled here."""
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
