"""What the model suites share: the choice of tasks and backends, and the status of a backend that fails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from attnbench.backend.registry import entries, resolve
from attnbench.errors import AttnbenchError, BackendUnavailable, did_you_mean
from attnbench.layer.attend import refusal_reason
from attnbench.models.record import ModelRun, TooSlow

# What a backend may raise that this process survives; only a sweep's workers survive a crash of the process.
SURVIVED = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError)


def failed(record: ModelRun, error: Exception) -> ModelRun:
    """The record with the status and the reason of what its backend raised."""
    if isinstance(error, TooSlow):
        return replace(record, status="timeout", reason=str(error))
    if isinstance(error, BackendUnavailable):
        return replace(record, status="unavailable", reason=str(error))
    if isinstance(error, AttnbenchError):
        return replace(record, status="refused", reason=refusal_reason(error))
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    return replace(record, status="error", reason=reason)


def chosen_tasks(suite: str, tasks: list[str], names: Iterable[str] | None) -> list[str]:
    """The tasks of the suite with these names (None: all); AttnbenchError if a name is unknown or there is none."""
    if names is None:
        return tasks
    chosen = list(names)
    if not chosen:
        raise AttnbenchError(f"no task of {suite} is named; it has {', '.join(tasks)}")
    unknown = [name for name in chosen if name not in tasks]
    if unknown:
        near = did_you_mean(unknown[0], tasks)
        raise AttnbenchError(f"{suite} has no task {unknown[0]!r}{near}; it has {', '.join(tasks)}")
    return chosen


def default_backends(device: str) -> list[str]:
    """Every backend that is worth timing on this device; an interpreter takes minutes per step."""
    names = []
    for entry in entries():
        if not entry.available:
            continue
        try:
            can = resolve(entry.name).capabilities
        except BackendUnavailable:
            continue
        if can.timed and device.split(":")[0] in can.devices:
            names.append(entry.name)
    return names
