"""What can go wrong, and what should the person do? Every message says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AttnbenchError(Exception):
    """Anything attnbench raises on purpose; the message is for the person, without a traceback."""


class MaskError(AttnbenchError, ValueError):
    """A mask is wrong in itself or its text, or does not fit the problem it is asked about."""


class ScoreError(AttnbenchError, ValueError):
    """A score change is wrong in itself, or does not fit the problem it is asked about."""


class CaseError(AttnbenchError, ValueError):
    """A case, or what is drawn for it, cannot be: the message names the field."""


class SuiteError(AttnbenchError, ValueError):
    """A suite cannot be read or asks for something that cannot be."""


class StoreError(AttnbenchError):
    """A result file is corrupt or cannot be written: the message names file and line."""


class UnknownBackend(AttnbenchError, LookupError):
    """No backend has this name, or the path names no function."""


class BackendUnavailable(AttnbenchError):
    """The backend exists but cannot run here: the message says why and what would make it so."""


class LayerError(AttnbenchError, ValueError):
    """A layer is built, loaded or called in a way that cannot be."""


class NotComparable(AttnbenchError):
    """Two result sets, or a machine, do not allow the comparison that was asked for (exit code 3)."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'causal'?` where some known word is near, else an empty text."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class EnvironmentUnavailable(AttnbenchError):
    """A Python environment is not there, or could not be made; says what would make it."""


class ForeignDied(AttnbenchError):
    """The process in another Python environment ended while it worked; says how, and what it wrote last."""
