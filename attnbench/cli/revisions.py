"""How are two revisions gated? Worktrees of both, the backends that differ, one verdict."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.cli.console import plural, remark

if TYPE_CHECKING:
    from attnbench.gate import Gate


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
    from attnbench.backend.ahead_of_time import require_architectures
    from attnbench.device import resolve_device
    from attnbench.gate import Gate, Rule, hold_against, touched
    from attnbench.gate.arms import Ran, Track
    from attnbench.gate.compiled import findings_of_kernels
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
        compiled = list(findings_of_kernels(found.contests, asked.arch, remark))
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
