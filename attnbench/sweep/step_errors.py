"""What does a failure mean? An exception or a dead worker becomes a status with a reason in one line."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.errors import AttnbenchError, BackendUnavailable, ForeignDied, UnknownBackend

REASON_CHARACTERS = 300
TRACE_CHARACTERS = 2000
UNKNOWN = "unknown_backend"  # no status of a result: the name was used wrongly, and the sweep does not start

_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|unable to allocate|out of memory|bad_alloc"
    r"|failed to map segment|cannot enlarge memory",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
_POISONED = re.compile(
    r"CUDA error|device-side assert|CUDA driver error|cudaError|CUBLAS_STATUS|CUDNN_STATUS"
)


@dataclass
class Fault(Exception):
    """Why a step gave no answer. `fatal` says that the worker cannot be used any more."""

    status: str
    reason: str
    notes: list[str] = field(default_factory=list)
    fatal: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "reason": self.reason, "notes": self.notes, "fatal": self.fatal}


def fault_of(problem: BaseException) -> Fault:
    """The fault that an exception in a step means."""
    if isinstance(problem, Fault):
        return problem
    text = one_line(str(problem))
    named = f"{type(problem).__name__}: {text}" if text else type(problem).__name__
    if isinstance(problem, UnknownBackend):
        return Fault(UNKNOWN, text, fatal=True)
    if isinstance(problem, BackendUnavailable):
        return Fault("unavailable", text)
    if isinstance(problem, NotImplementedError):
        return Fault("refused", text or "raises NotImplementedError")
    if isinstance(problem, MemoryError) or _OUT_OF_MEMORY.search(str(problem)):
        # What a plug-in hoards survives the exception, so a worker that ran out is not used again.
        return Fault("oom", _asked_for(str(problem), named), fatal=True)
    if _POISONED.search(named) or type(problem).__name__ == "AcceleratorError":
        return Fault("error", named, [_trace(problem)], fatal=True)
    if isinstance(problem, ForeignDied):
        # Only the process in the other environment is gone; the next case starts it again.
        return Fault("crashed", text, [str(problem)[-TRACE_CHARACTERS:]])
    if isinstance(problem, AttnbenchError):
        return Fault("error", text, list(getattr(problem, "__notes__", [])))
    return Fault("error", f"{named}{_place(problem)}", [_trace(problem)])


def one_line(text: str) -> str:
    """The first line with something in it, cut to a readable length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if len(first) <= REASON_CHARACTERS else first[: REASON_CHARACTERS - 3] + "..."


def out_of_memory_in(text: str) -> bool:
    """Whether what a dying worker wrote says that memory ran out."""
    return bool(_OUT_OF_MEMORY.search(text))


def _asked_for(text: str, named: str) -> str:
    found = _ASKED.search(text)
    if not found:
        return named
    number, unit = found.groups()
    size = _readable(int(float(number))) if unit.lower() == "bytes" else f"{number} {unit}"
    return f"asked for {size}: {named}"


def _readable(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _place(problem: BaseException) -> str:
    frames = traceback.extract_tb(problem.__traceback__)
    theirs = [
        f
        for f in frames
        if not re.search(r"[\\/](site-packages|attnbench|lib[\\/]python[\d.]+)[\\/]", f.filename)
    ]
    return f" ({Path(theirs[-1].filename).name}:{theirs[-1].lineno})" if theirs else ""


def _trace(problem: BaseException) -> str:
    text = "".join(traceback.format_exception(problem))
    return text if len(text) <= TRACE_CHARACTERS else "..." + text[-TRACE_CHARACTERS:]
