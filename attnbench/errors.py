"""The errors that attnbench raises on purpose; each message says what, where and what to do."""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections.abc import Iterable

SIGNALLED = "Ctrl-C or a signal"  # what stopped a check
_LIBRARY_FILE = re.compile(r"[\\/](site-packages|dist-packages|lib[\\/]python[\d.]+)[\\/]")
_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep


class AttnbenchError(Exception):
    """Any error that attnbench raises on purpose; the message is for the user, without a traceback."""


class MaskError(AttnbenchError, ValueError):
    """A mask or its text is invalid, or the mask does not fit the problem."""


class ScoreError(AttnbenchError, ValueError):
    """A score change is invalid, or does not fit the problem."""


class CaseError(AttnbenchError, ValueError):
    """A case or its inputs cannot be made; the message names the field."""


class SuiteError(AttnbenchError, ValueError):
    """A suite cannot be read, or asks for something invalid."""


class StoreError(AttnbenchError):
    """A result file is corrupt or cannot be written; the message names file and line."""


class UnknownBackend(AttnbenchError, LookupError):
    """No backend has this name, or the path names no function."""


class BackendUnavailable(AttnbenchError):
    """The backend exists but cannot run here; the message says why and how to make it run."""


class LayerError(AttnbenchError, ValueError):
    """A layer is built, loaded or called in a way that it does not support."""


class NotComparable(AttnbenchError):
    """Two result sets, or a machine, do not allow the requested comparison (exit code 3)."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'causal'?` if one of the choices is near, else an empty text."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_library_file(path: str) -> bool:
    """Whether a frame's file belongs to Python, a library or attnbench, and not to the code under test."""
    return bool(_LIBRARY_FILE.search(path)) or path.startswith((_OWN_FOLDER, "<"))


def place_of(error: BaseException) -> str:
    """` (mine.py:12)`: the innermost line of the code under test that an exception came through; empty if none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library_file(f.filename)]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""


class EnvironmentUnavailable(AttnbenchError):
    """A Python environment is missing or could not be made; the message says how to make it."""


class ForeignDied(AttnbenchError):
    """The process in another Python environment ended while it worked; the message has its end and its last output."""
