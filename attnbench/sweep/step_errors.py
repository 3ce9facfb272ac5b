"""Why a step gave no answer: an exception or a dead worker as a status with a one-line reason."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, field
from typing import Any

from attnbench.errors import AttnbenchError, BackendUnavailable, ForeignDied, UnknownBackend, place_of

REASON_CHARACTERS = 300
TRACE_CHARACTERS = 2000
UNKNOWN_BACKEND = "unknown_backend"  # no status of a result: the sweep does not start

_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|unable to allocate|out of memory|bad_alloc"
    r"|failed to map segment|cannot enlarge memory",
    re.IGNORECASE,
)
_ALLOCATION = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
_CUDA_CONTEXT_LOST = re.compile(
    r"CUDA error|Triton Error \[CUDA\]|device-side assert|CUDA driver error|cudaError|CUBLAS_STATUS|CUDNN_STATUS"
)


@dataclass
class StepError(Exception):
    """Why a step gave no answer. `fatal` says that the worker cannot be used any more."""

    status: str
    reason: str
    notes: list[str] = field(default_factory=list)
    fatal: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "reason": self.reason, "notes": self.notes, "fatal": self.fatal}


def step_error_of(error: BaseException) -> StepError:
    """The status and reason of an exception that a step raised."""
    if isinstance(error, StepError):
        return error
    text = one_line(str(error))
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, UnknownBackend):
        return StepError(UNKNOWN_BACKEND, text, fatal=True)
    if isinstance(error, BackendUnavailable):
        return StepError("unavailable", text)
    if isinstance(error, NotImplementedError):
        return StepError("refused", text or "raises NotImplementedError")
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        # What a plug-in hoards survives the exception, so a worker that ran out is not used again.
        return StepError("oom", _with_size(str(error), named), fatal=True)
    if _CUDA_CONTEXT_LOST.search(named) or type(error).__name__ == "AcceleratorError":
        return StepError("error", named, [_trace(error)], fatal=True)
    if isinstance(error, ForeignDied):
        # Only the process in the other environment is gone; the next case starts it again.
        return StepError("crashed", text, [str(error)[-TRACE_CHARACTERS:]])
    if isinstance(error, AttnbenchError):
        return StepError("error", text, list(getattr(error, "__notes__", [])))
    return StepError("error", f"{named}{place_of(error)}", [_trace(error)])


def one_line(text: str) -> str:
    """The first line that is not blank, cut to a readable length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if len(first) <= REASON_CHARACTERS else first[: REASON_CHARACTERS - 3] + "..."


def out_of_memory_in(text: str) -> bool:
    """Whether the output of a dying worker says that memory ran out."""
    return bool(_OUT_OF_MEMORY.search(text))


def _with_size(text: str, named: str) -> str:
    allocation = _ALLOCATION.search(text)
    if not allocation:
        return named
    number, unit = allocation.groups()
    size = _readable(int(float(number))) if unit.lower() == "bytes" else f"{number} {unit}"
    return f"asked for {size}: {named}"


def _readable(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _trace(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return text if len(text) <= TRACE_CHARACTERS else "..." + text[-TRACE_CHARACTERS:]
