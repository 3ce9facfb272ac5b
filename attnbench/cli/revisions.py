"""How are two revisions gated? Worktrees of both, the backends that differ, one verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.cli.console import plural, remark
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from attnbench.gate import Contest, Finding, Gate

Rows = list[dict[str, Any]]  # one compiled kernel each; see attnbench.gate.compiled
KERNELS = "compiled kernels"  # in place of a case


@dataclass(frozen=True)
class Asked:
    """What the options of `attnbench gate` say about how revisions are gated."""

    suite: str
    backends: list[str] | None
    everything: bool
    effect: float
    minutes: float
    device: str
    threads: int
    record: Path | None
    arch: str


def gate_revisions(base: str, head: str | None, asked: Asked) -> Gate:
    """Hold head (None: the working folder as it is) against base; what is being done goes to stderr."""
    from attnbench.cli.compile import require_architectures
    from attnbench.device import resolve_device
    from attnbench.gate import Gate, Rule, hold_against, touched
    from attnbench.gate.arms import Ran, Track
    from attnbench.gate.recording import rows_of, write_rows
    from attnbench.gate.verdict import gathered
    from attnbench.gate.worktree import checked_out, commit_of, repository
    from attnbench.sweep.suite import load_suite

    require_architectures(asked.arch)  # before a kernel that does not compile for it is called broken
    here = Path.cwd()
    device = resolve_device(asked.device)
    planned = load_suite(asked.suite).cases(device)
    with ExitStack() as ending:
        commit = commit_of(base, here)
        base_tree = ending.enter_context(checked_out(commit, here))
        head_tree, head_name = repository(here), "the working folder"
        if head is not None:
            head_commit = commit_of(head, here)
            head_tree, head_name = ending.enter_context(checked_out(head_commit, here)), head_commit[:12]
        found = touched(base_tree, head_tree, asked.backends, asked.everything)
        remark(f"base {commit[:12]}, head {head_name}; device {device}, suite {asked.suite}")
        notes = [f"not gated, {name} cannot run here: {reason}" for name, reason in found.unavailable]
        if found.same:
            notes.append(
                f"{plural(len(found.same), 'backend')} not timed: the code is the same in both (--all)"
            )
        for note in notes:
            remark(note)
        if not found.contests:
            return Gate((), asked.effect, notes=tuple(notes))
        remark(f"{plural(len(found.contests), 'backend')}, {plural(len(planned), 'case')} each")
        compiled = list(_compiled(found.contests, asked.arch))
        ran: list[Ran] = []
        with Track(device, threads=asked.threads if device == "cpu" else None) as track:
            verdict = hold_against(
                track,
                planned,
                found.contests,
                Rule(asked.effect),
                minutes=asked.minutes,
                on_group=remark,
                on_ran=ran.append,
            )
        if asked.record is not None:
            write_rows(rows_of(ran), asked.record)
        findings = [*verdict.findings, *compiled]
        return gathered(findings, verdict.margin, notes=(*notes, *verdict.notes))


def _compiled(contests: Sequence[Contest], arch: str) -> Iterator[Finding]:
    """Of backends whose kernels compile without their GPU: what became worse."""
    for contest in contests:
        arms = (contest.base, contest.head)
        base, head = (None if arm is None or arm.folder is None else arm.folder for arm in arms)
        if base is None or head is None:
            continue
        if all((folder / contest.name / "ahead_of_time.py").is_file() for folder in (base, head)):
            remark(f"compiling the kernels of {contest.name} for {arch}")
            yield from _compiled_of(contest.name, base, head, arch)


def _compiled_of(name: str, base_folder: Path, head_folder: Path, arch: str) -> Iterator[Finding]:
    """What became worse of one backend; that head does not compile is a finding, not the end of the gate."""
    from attnbench.cli.compile import compiled_rows
    from attnbench.gate import Finding
    from attnbench.gate.compiled import compiled_findings

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


def _of_base(name: str, folder: Path, arch: str, head: Rows) -> Rows:
    """Base's kernels: as its table has them where head was compiled by the same Triton, else compiled here."""
    from attnbench.cli.compile import COMPILED, committed, compiled_rows

    if (folder / name / COMPILED).is_file():
        wanted = {row["arch"] for row in head}
        table = [row for row in committed(name, folder) if row["arch"] in wanted]
        # Registers and spills differ between versions of Triton.
        if {row["triton"] for row in table} == {row["triton"] for row in head}:
            return table
    return compiled_rows(name, arch, folder=folder)
