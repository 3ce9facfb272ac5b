"""Gate two revisions: check out both, find the backends that differ, compile, judge and time them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from attnbench.backend.ahead_of_time import require_architectures
from attnbench.device import resolve_device
from attnbench.gate.arms import ArmResult, ArmRunner
from attnbench.gate.compiled import kernel_findings
from attnbench.gate.options import GateOptions
from attnbench.gate.recording import rows_of, write_rows
from attnbench.gate.sequential import Rule
from attnbench.gate.stages import gate_in_stages
from attnbench.gate.touched import touched
from attnbench.gate.verdict import Gate, gathered
from attnbench.gate.worktree import checked_out, commit_of, repository
from attnbench.sweep.suite import load_suite


def gate_revisions(base: str, head: str | None, options: GateOptions, tell: Callable[[str], None]) -> Gate:
    """The verdict on head (None: the working folder as it is) against base; `tell` gets each step in words."""
    require_architectures(options.arch)  # before a kernel that does not compile for it is called broken
    folder = Path.cwd()
    device = resolve_device(options.device)
    planned = load_suite(options.suite).cases(device)
    with ExitStack() as ending:
        commit = commit_of(base, folder)
        base_tree = ending.enter_context(checked_out(commit, folder))
        head_tree, head_name = repository(folder), "the working folder"
        if head is not None:
            head_commit = commit_of(head, folder)
            head_tree, head_name = ending.enter_context(checked_out(head_commit, folder)), head_commit[:12]
        backends = touched(base_tree, head_tree, options.backends, options.everything)
        tell(f"base {commit[:12]}, head {head_name}; device {device}, suite {options.suite}")
        notes = [f"not gated, {name} cannot run here: {reason}" for name, reason in backends.unavailable]
        if backends.same:
            notes.append(
                f"backends not timed, their code is the same in both: {len(backends.same)} (--all times them)"
            )
        for note in notes:
            tell(note)
        if not backends.versions:
            return Gate((), options.effect, notes=tuple(notes))
        names = ", ".join(versions.name for versions in backends.versions)
        tell(f"cases per backend: {len(planned)}; backends: {names}")
        compiled = list(kernel_findings(backends.versions, options.arch, tell))
        results: list[ArmResult] = []
        with ArmRunner(device, threads=options.threads_on(device)) as runner:
            verdict = gate_in_stages(
                runner,
                planned,
                backends.versions,
                Rule(options.effect),
                minutes=options.minutes,
                on_group=tell,
                on_result=results.append,
            )
        if options.record is not None:
            write_rows(rows_of(results), options.record)
        findings = [*verdict.findings, *compiled]
        return gathered(findings, verdict.margin, notes=(*notes, *verdict.notes))
