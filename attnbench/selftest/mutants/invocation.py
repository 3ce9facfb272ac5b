"""Mutants that are right on ordinary tensors in an ordinary call: NaN, unusual memory or another mode shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend.interface import Capabilities, Output
from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.mutants.tiled import Tiled, TiledBackend

NAN = "nan_and_infinity_stay_where_they_belong"


def _fmax(self: Tiled, m: Tensor, s: Tensor) -> Tensor:
    return torch.fmax(m, s.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1, keepdim=True))


mutant(
    "NaN swallowed by a clamp",
    "online softmax",
    "the maximum is fmax and the exponent is clamped by fmin(x, 0), which take the number beside a NaN",
    found_by=NAN,
    maximum=_fmax,
    exp=lambda self, x: torch.exp(torch.fmin(x, torch.zeros(()))),
)


def _plus_nothing(self: Tiled, out: Tensor, lse: Tensor) -> Output:
    return Output(out + 0 * out.sum((0, 1), keepdim=True), lse)


mutant(
    "0 times the other heads added",
    "layout",
    "heads are summed with weights of 0 and 1, as a padded product does: 0 * NaN is NaN",
    found_by=NAN,
    store=_plus_nothing,
)
mutant(
    "masked NaN promised to be ignored",
    "mask leak",
    "flash-attention#2374: values that no query may attend are multiplied by 0",
    found_by=NAN,
    make=lambda name: TiledBackend(name, capabilities=Capabilities(masked_nan="ignored")),
)
