"""Mutants that are right on ordinary tensors in an ordinary call: NaN, unusual memory or another mode shows them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.backend.interface import Capabilities, Output
from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.mutants.layout import ignoring_strides
from attnbench.selftest.mutants.tiled import Tiled, TiledBackend

MEMORY, BIAS = "memory_makes_no_difference", "memory_of_a_bias_makes_no_difference"
FAR = "offsets_past_2_to_the_31_are_reached"
INFERENCE, AUTOCAST = "inference_makes_no_difference", "autocast_computes_in_its_dtype"
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


def _features_contiguous(self: Tiled, name: str) -> Tensor:
    x = Tiled.read(self, name)
    return x if x.stride(-1) == 1 else x.as_strided(x.shape, (*x.stride()[:-1], 1))


mutant(
    "last dimension taken for contiguous",
    "layout",
    "vector loads along the features, whatever their stride",
    found_by=MEMORY,
    read=_features_contiguous,
)


def _rows_apart(self: Tiled, name: str) -> Tensor:
    x = Tiled.read(self, name)
    if x.stride(2) != 0:
        return x
    return x[:, :, :1].expand(x.shape).roll(1, 3)


mutant(
    "a row stride of 0 misread",
    "layout",
    "pytorch#191937: keys of stride 0 are read from the next place",
    found_by=MEMORY,
    read=_rows_apart,
)


def _bias_as_contiguous(self: Tiled, rows: slice, cols: slice) -> Tensor | None:
    score = self.score("bias")
    if score is None or score.tensor.is_contiguous():
        return Tiled.bias_tile(self, rows, cols)
    tile = ignoring_strides(score.tensor).float()[:, :, rows]
    return tile[:, :, :, self.keys_of(cols)]


mutant(
    "bias strides not read",
    "layout",
    "an expanded bias taken for contiguous",
    found_by=BIAS,
    shows="bias",
    bias_tile=_bias_as_contiguous,
)


def _in_31_bits(self: Tiled, name: str) -> Tensor:
    x = Tiled.read(self, name)
    if x.stride(0) < 1 << 31:
        return x
    return x.as_strided(x.shape, (x.stride(0) - (1 << 31), *x.stride()[1:]))


mutant(
    "offset of a batch row in 31 bits",
    "layout",
    "flash-attention#2260, reached by a stride",
    found_by=FAR,
    read=_in_31_bits,
)


def _no_mask_if(is_fast: Callable[[], bool]) -> Callable[..., Tensor]:
    def masked(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
        if not is_fast():
            return Tiled.masked(self, s, rows, cols)
        keys = torch.arange(cols.start, cols.stop, device=s.device)
        return torch.where(self.in_bounds(keys), s, -torch.inf)

    return masked


mutant(
    "mask dropped in inference",
    "mask ignored",
    "the fast path of torch.nn.MultiheadAttention, which runs under inference_mode alone",
    found_by=INFERENCE,
    masked=_no_mask_if(torch.is_inference_mode_enabled),
)
mutant(
    "mask dropped under autocast",
    "mask ignored",
    "another kernel is called inside an autocast region",
    dtypes=frozenset({"fp32"}),
    found_by=AUTOCAST,
    masked=_no_mask_if(lambda: torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")),
)
