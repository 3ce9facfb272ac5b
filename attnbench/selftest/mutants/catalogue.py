"""The record of a mutant, the catalogue of all, and the tools that plant one.

A mutant is a `Tiled` with one fault: a few steps replaced. Its record has the bug's origin, the dtypes in which it
exists, the cause that a diagnosis should name, and the kinds of masks or score changes that can show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attnbench.backend.interface import Backend
from attnbench.errors import AttnbenchError
from attnbench.faults.causes import CAUSES
from attnbench.problem import Case
from attnbench.problem.masks import And, Mask, Not, Or
from attnbench.selftest.mutants.tiled import Tiled, TiledBackend, Tiling, variant

ALL_DTYPES = frozenset({"bf16", "fp16", "fp32"})
HALVES = frozenset({"bf16", "fp16"})


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One planted bug. `origin` is the issue that reports it, or a description.

    shows               kinds of masks ("masked": any) and score changes that can show it; None: every case
    gradients_only      out and lse are right, so that only a backward shows it
    devices             the devices on which it can show
    shows_without_lse   False if only the LSE is wrong
    found_by            the property that alone finds it; empty: a trial, the protocol or several calls do
    make                its backend, if that is more than the tiled attention
    """

    name: str
    cause: str
    origin: str
    kind: type[Tiled]
    tiling: Tiling
    dtypes: frozenset[str] = ALL_DTYPES
    gradients_only: bool = False
    shows: frozenset[str] | None = None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    shows_without_lse: bool = True
    found_by: str = ""
    make: Callable[[str], Backend] | None = None

    def backend(self) -> Backend:
        return self.make(self.name) if self.make else TiledBackend(self.name, self.kind, self.tiling)

    def can_show(self, case: Case) -> bool:
        """Whether this case can tell it from the right one; if not, the two compute the same."""
        if self.found_by or (self.gradients_only and not case.needs_backward):
            return False
        kinds = case.mask.kinds | {score.kind for score in case.scores}
        masked = {"masked"} if case.mask.is_combined or case.mask.kinds != {"full"} else set()
        return self.shows is None or bool(self.shows & (kinds | masked))


MUTANTS: dict[str, Mutant] = {}


def mutant(
    name: str,
    cause: str,
    origin: str = "",
    *,
    tiling: Tiling = Tiling(),
    dtypes: frozenset[str] = ALL_DTYPES,
    gradients_only: bool = False,
    shows: str = "",
    devices: frozenset[str] = frozenset({"cpu", "cuda"}),
    shows_without_lse: bool = True,
    found_by: str = "",
    make: Callable[[str], Backend] | None = None,
    **steps: Any,
) -> None:
    """Enter a mutant into the catalogue. `shows` is a text of kinds, `steps` the replaced steps of `Tiled`."""
    if name in MUTANTS or cause not in CAUSES:
        raise AttnbenchError(f"mutant {name!r}: the name is taken, or there is no cause {cause!r}")
    MUTANTS[name] = Mutant(
        name=name,
        cause=cause,
        origin=origin,
        kind=variant(name.replace(" ", "_"), **steps),
        tiling=tiling,
        dtypes=dtypes,
        gradients_only=gradients_only,
        shows=frozenset(shows.split()) or None,
        devices=devices,
        shows_without_lse=shows_without_lse,
        found_by=found_by,
        make=make,
    )


LeafChange = Callable[[Tiled, Any, Any, Tensor, Tensor, Tensor, Tensor], Tensor]


def by_leaf(kinds: type[Mask] | tuple[type[Mask], ...], change: LeafChange) -> Callable[..., Tensor]:
    """A `permits` that replaces leaves of some kinds by `change(tiled, leaf, may, b, h, q, k)`.

    `may` is the leaf's right predicate.
    """

    def permits(self: Tiled, mask: Mask, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if isinstance(mask, And):
            return permits(self, mask.left, b, h, q, k) & permits(self, mask.right, b, h, q, k)
        if isinstance(mask, Or):
            return permits(self, mask.left, b, h, q, k) | permits(self, mask.right, b, h, q, k)
        if isinstance(mask, Not):
            return ~permits(self, mask.mask, b, h, q, k)
        may = self.predicate_of(mask)
        return change(self, mask, may, b, h, q, k) if isinstance(mask, kinds) else may(b, h, q, k)

    return permits


def in_backward(permits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A `masked_backward` with another `permits` than the forward's."""

    def masked_backward(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
        b, h, q, k = self.indices(rows, cols)
        permitted = permits(self, self.case.mask, b, h, q, k.clamp_max(self.case.k_len - 1))
        return s.masked_fill(~(permitted & self.in_bounds(k)), float("-inf"))

    return masked_backward
