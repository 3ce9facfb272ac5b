"""The interface of a backend, and the registry of all backends."""

from attnbench.backend.attention import attention
from attnbench.backend.declaration import as_backend
from attnbench.backend.defects import KnownDefect
from attnbench.backend.differentiable import AutogradPrepared, FunctionBackend
from attnbench.backend.interface import (
    REPEATABLE,
    Backend,
    Capabilities,
    Gradients,
    Output,
    Prepared,
    Refusal,
    declared_refusal,
)
from attnbench.backend.registry import Entry, entries, function_backend, resolve

__all__ = [
    "REPEATABLE",
    "AutogradPrepared",
    "Backend",
    "Capabilities",
    "Entry",
    "FunctionBackend",
    "Gradients",
    "KnownDefect",
    "Output",
    "Prepared",
    "Refusal",
    "as_backend",
    "attention",
    "declared_refusal",
    "entries",
    "function_backend",
    "resolve",
]
