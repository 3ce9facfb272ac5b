"""The kinds of bugs: the causes that mutants carry and diagnoses name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.judge.oracle import Exact

CAUSES = frozenset(
    (
        "mask alignment",  # top-left for bottom-right, or a wrong origin of positions
        "mask boundary",  # the diagonal, a window or a length is off by some keys
        "mask ignored",  # masked keys are seen as if nothing were masked
        "mask leak",  # masked keys keep a small or finite weight
        "mask broadcast",  # the mask of another batch row or head
        "mask shape",  # inverted, transposed, at the wrong granularity
        "empty rows",
        "score change",  # softcap, ALiBi, bias, relative bias
        "scale",
        "online softmax",  # maximum, rescaling
        "low precision",
        "lse",
        "gqa mapping",
        "layout",  # strides, axes, offsets
        "tail tile",
        "missing keys",  # some keys or splits are never read
        "missing rows",  # some outputs are never written
        "split merge",
        "sink",
        "gradients only",
        "nondeterministic",
        "protocol",  # caches, in-place changes, unfinished work, another kernel
        "not attention",
    )
)


class Guess(NamedTuple):
    """One likely bug: its kind, one of CAUSES, and a sentence; `is_exact` if its own answer is the one observed."""

    cause: str
    words: str
    is_exact: bool = False


class Hypothesis(NamedTuple):
    """A guess with an exact answer of its own: out and LSE of a changed problem, or one tensor under a fault."""

    cause: str
    words: str
    make: Callable[[], Exact | Tensor]
