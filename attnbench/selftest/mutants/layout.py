"""Mutants that read or write the right numbers at the wrong place: heads, strides, axes, tails, offsets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.backend.interface import Output
from attnbench.problem import Case, Mask
from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.mutants.tiled import Tiled, Tiling


def _heads(choose: Callable[[Case, Tensor], Tensor]) -> Callable[[Tiled], Tensor | None]:
    def kv_head(self: Tiled) -> Tensor | None:
        heads = torch.arange(self.case.q_heads, device=self.device)
        return None if self.case.group == 1 else choose(self.case, heads)

    return kv_head


def _reads(**changes: Callable[[Tiled, Tensor], Tensor]) -> Callable[[Tiled, str], Tensor]:
    """A `read` that changes some inputs: name=change(self, tensor)."""

    def read(self: Tiled, name: str) -> Tensor:
        x = Tiled.read(self, name)
        return changes[name](self, x) if name in changes else x

    return read


def _other_name(self: Tiled, name: str) -> Tensor:
    swapped = {"q": "q", "k": "v", "v": "k"}
    return Tiled.read(self, swapped[name] if self.case.head_dim == self.case.v_dim else name)


def ignoring_strides(x: Tensor) -> Tensor:
    """x as read by a kernel that assumes it contiguous: the storage from x's first element, wrapped at its end."""
    if x.is_contiguous():
        return x
    held = x.untyped_storage().nbytes() // x.element_size()
    flat = x.as_strided((held,), (1,), 0)
    return flat[(torch.arange(x.numel(), device=x.device) + x.storage_offset()) % held].view(x.shape)


mutant(
    "GQA tiled for interleaved",
    "gqa mapping",
    "onnx#7274: head h reads key head h % kv_heads",
    kv_head=_heads(lambda case, heads: heads % case.kv_heads),
)
mutant(
    "GQA head 0", "gqa mapping", "every head reads key head 0", kv_head=_heads(lambda case, heads: heads * 0)
)
mutant(
    "k and v swapped",
    "layout",
    "arguments in the wrong order",
    read=_other_name,
)
mutant("keys shifted by one", "layout", "an offset of one row", read=_reads(k=lambda self, k: k.roll(1, 2)))
mutant("V's stride ignored", "layout", "pytorch#112577", read=_reads(v=lambda self, v: ignoring_strides(v)))
mutant(
    "K's stride ignored",
    "layout",
    "as with V, and with stride 0: pytorch#191937",
    read=_reads(k=lambda self, k: ignoring_strides(k)),
)
mutant(
    "Q's stride ignored",
    "layout",
    "a transposed query taken for contiguous",
    read=_reads(q=lambda self, q: ignoring_strides(q)),
)
mutant(
    "keys of batch row 0 for all",
    "layout",
    "batch stride 0",
    read=_reads(k=lambda self, k: k[:1].expand_as(k), v=lambda self, v: v[:1].expand_as(v)),
)


def _stored(change: Callable[[Case, Tensor], Tensor]) -> Callable[[Tiled, Tensor, Tensor], Output]:
    return lambda self, out, lse: Output(change(self.case, out), lse)


mutant(
    "output layout swapped when H == S",
    "layout",
    "the layout is guessed from the shape",
    store=_stored(lambda case, out: out.transpose(1, 2).contiguous() if case.q_heads == case.q_len else out),
)
mutant(
    "reshape without transpose",
    "layout",
    "[B, S, H, D] taken for [B, H, S, D]",
    store=_stored(lambda case, out: out.transpose(1, 2).reshape(out.shape)),
)
mutant(
    "transpose of all axes",
    "layout",
    "x.T instead of the last two axes",
    store=_stored(lambda case, out: out.permute(3, 2, 1, 0).reshape(out.shape)),
)
mutant(
    "elementwise P * V",
    "not attention",
    "each weight times one row of V",
    add_values=lambda self, acc, alpha, p, v: acc * alpha + p.sum(-1, keepdim=True) * v[:, :, :1],
)


def _wrong_repeat(self: Tiled, mask: Mask, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    heads = torch.arange(self.case.q_heads, device=self.device)[None, :, None, None]
    return Tiled.permits(
        self, mask, (b * self.case.q_heads + heads) % self.case.batch if b.numel() > 1 else b, h, q, k
    )


mutant(
    "mask repeated in the wrong order",
    "mask broadcast",
    "mask.repeat(heads) instead of repeat_interleave(heads), for batch * heads",
    shows="padding documents explicit",
    permits=_wrong_repeat,
)


def _garbage_lane(self: Tiled, q: Tensor, k: Tensor) -> Tensor:
    s = Tiled.product(self, q, k)
    return s if self.case.head_dim % 16 == 0 else s + q[..., :1] @ k[..., :1].transpose(-1, -2)


mutant(
    "a garbage lane past head dim 40",
    "tail tile",
    "lanes up to a multiple of 16 are not zeroed",
    product=_garbage_lane,
)
mutant(
    "only the first 64 lanes",
    "not attention",
    "one block of the head dim",
    product=lambda self, q, k: Tiled.product(self, q[..., :64], k[..., :64]),
)
mutant("tail tile unmasked", "tail tile", "keys past k_len are scored 0", in_bounds=lambda self, k: k >= 0)
mutant("NaN in padding memory", "tail tile", "pytorch#101967: 0 * NaN", padding=lambda self: float("nan"))


def _rows_of_head_dim(self: Tiled, v: Tensor) -> Tensor:
    rows, dim = v.shape[2:]
    at = torch.arange(rows, device=v.device)[:, None] * self.case.head_dim + torch.arange(
        dim, device=v.device
    )
    return v.flatten(2)[:, :, at % (rows * dim)]


mutant("v_dim assumed head_dim", "layout", "pytorch#176767", read=_reads(v=_rows_of_head_dim))


def _wrapped(self: Tiled, x: Tensor) -> Tensor:
    at = torch.arange(x.shape[2], device=x.device)
    return x[:, :, at % (1 << 15)] if x.shape[2] > 1 << 15 else x


mutant("16-bit column index", "missing keys", "xformers#719", read=_reads(k=_wrapped, v=_wrapped))


def _offsets_in_32_bits(self: Tiled, x: Tensor) -> Tensor:
    if x.numel() < 1 << 31:
        return x
    flat = x.contiguous().view(-1)
    first_wrapped = (1 << 31) // x[0].numel()
    wrapped = x.clone()
    wrapped[first_wrapped:] = flat[: wrapped[first_wrapped:].numel()].view_as(wrapped[first_wrapped:])
    return wrapped


mutant(
    "32-bit offset",
    "layout",
    "flash-attention#2260; batch 8300 with 16 heads, 127 keys and d 128: 26 GB",
    devices=frozenset({"cuda"}),
    read=_reads(k=_offsets_in_32_bits, v=_offsets_in_32_bits),
)


def _short_grid(self: Tiled, out: Tensor, lse: Tensor) -> Output:
    out = out.clone()
    out.flatten(0, 1)[65_535:] = 0
    return Output(out, lse)


mutant(
    "grid over 65535 skipped",
    "missing rows",
    "flashinfer#3125: batch * heads in the grid's y",
    store=_short_grid,
)
mutant(
    "heads in reverse order",
    "layout",
    "the head index counts down",
    store=_stored(lambda case, out: out.flip(1)),
)
mutant(
    "rows of the last query tile swapped",
    "layout",
    "a fragment is stored in the wrong order",
    tiling=Tiling(block_q=64),
    store=_stored(lambda case, out: torch.cat([out[:, :, :-2], out[:, :, -2:].flip(2)], dim=2)),
)
