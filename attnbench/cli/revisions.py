"""How are two revisions gated? Worktrees of both, the backends that differ, one verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.cli.console import plural, remark

if TYPE_CHECKING:
    from attnbench.gate import Contest, Finding, Gate


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
    from attnbench.gate import Gate, Rule, hold_against, touched
    from attnbench.gate.recording import rows_of, write_rows
    from attnbench.gate.verdict import gathered
    from attnbench.report.session import resolve_device
    from attnbench.sweep.arms import Ran, Track
    from attnbench.sweep.suite import load_suite
    from attnbench.sweep.worktree import checked_out, commit_of, repository

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
        findings = [*verdict.findings, *_compiled(found.contests, asked.arch)]
        return gathered(findings, verdict.margin, notes=(*notes, *verdict.notes))


def _compiled(contests: Sequence[Contest], arch: str) -> Iterator[Finding]:
    """Of backends whose kernels compile without their GPU: what became worse."""
    from attnbench.cli.compile import committed, compiled_rows
    from attnbench.gate.compiled import compiled_findings

    for contest in contests:
        folders = [
            arm.folder for arm in (contest.base, contest.head) if arm is not None and arm.folder is not None
        ]
        if len(folders) != 2 or not all((f / contest.name / "ahead_of_time.py").is_file() for f in folders):
            continue
        remark(f"compiling the kernels of {contest.name} for {arch}")
        head = compiled_rows(contest.name, arch, folder=folders[1])
        wanted = {row["arch"] for row in head}
        base = [row for row in committed(contest.name, folders[0]) if row["arch"] in wanted]
        if {row["triton"] for row in base} != {row["triton"] for row in head}:
            # Registers and spills differ between versions of Triton.
            base = compiled_rows(contest.name, arch, folder=folders[0])
        yield from compiled_findings(contest.name, head, base)
