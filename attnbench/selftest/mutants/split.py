"""Mutants of split keys and their merge, packed sequences, pages and sinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.interface import Output
from attnbench.problem import Documents
from attnbench.selftest.mutants.catalogue import by_leaf, mutant
from attnbench.selftest.mutants.tiled import LOG2_E, Statistics, Tiled, Tiling

SPLIT = Tiling(block_k=16, splits=3)
Parts = list[tuple[Tensor, Tensor]]


def _without_last(self: Tiled, tiles: list[slice]) -> list[list[slice]]:
    splits = [split for split in Tiled.split(self, tiles) if split]
    return [*splits[:-1], []] if len(splits) > 1 else [*splits, []]


mutant("last split dropped", "missing keys", "k_len // splits", tiling=SPLIT, split=_without_last)


def _unweighted(self: Tiled, parts: Parts) -> Statistics:
    m, row_sum, _ = Tiled.merge(self, parts)
    seen = [(lse > -torch.inf).float()[..., None] for _, lse in parts]
    total = torch.stack([out for out, _ in parts]).sum(0)
    return m, row_sum, row_sum * total / torch.stack(seen).sum(0).clamp_min(1.0)


mutant("merge unweighted", "split merge", "the mean of the splits", tiling=SPLIT, merge=_unweighted)
mutant(
    "merge in base 2",
    "split merge",
    "exp2 of a natural LSE",
    tiling=SPLIT,
    merge=lambda self, parts: Tiled.merge(self, [(out, lse / LOG2_E) for out, lse in parts]),
)


def _unguarded_merge(self: Tiled, parts: Parts) -> Statistics:
    lse = torch.stack([part[1] for part in parts])
    m = lse.amax(0)
    weights = torch.exp(lse - m)
    acc = torch.stack([w[..., None] * part[0] for w, part in zip(weights, parts, strict=True)]).sum(0)
    return m[..., None], weights.sum(0)[..., None], acc


mutant(
    "all splits -inf",
    "empty rows",
    "-inf - -inf in the merge",
    tiling=SPLIT,
    shows="masked",
    merge=_unguarded_merge,
)


def _from_second(change: Callable[[Tensor], Tensor]) -> Callable[[Tiled, Parts], Statistics]:
    """A merge that changes the outputs of all splits but the first."""
    return lambda self, parts: Tiled.merge(self, [parts[0], *((change(out), lse) for out, lse in parts[1:])])


mutant(
    "split batch stride 0",
    "split merge",
    "partial results of batch row 0",
    tiling=SPLIT,
    merge=_from_second(lambda out: out[:1].expand_as(out)),
)
mutant(
    "combine strides",
    "split merge",
    "flash-attention#2388: partial results of the next head",
    tiling=SPLIT,
    merge=_from_second(lambda out: out.roll(1, 1)),
)
mutant(
    "LSE of a split in bf16",
    "split merge",
    "the merge's weights are rounded",
    tiling=SPLIT,
    merge=lambda self, parts: Tiled.merge(self, [(out, lse.bfloat16().float()) for out, lse in parts]),
)


def _zero_length_taken_for_one(
    self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor
) -> Tensor:
    total = self.case.q_len
    changed = []
    for lengths in leaf.lists:
        longer = [max(1, n) for n in lengths]
        while sum(longer) > total:
            longer[longer.index(max(longer))] -= 1
        changed.append(longer)
    lists = changed if len(changed) > 1 else changed[0]
    return Documents(lists).predicate(self.extent, self.device)(b, h, q, k)


mutant(
    "zero-length sequence",
    "mask boundary",
    "flash-attention#2562: an empty document takes a token",
    shows="documents",
    permits=by_leaf(Documents, _zero_length_taken_for_one),
)


def _slack_left_over(self: Tiled, out: Tensor, lse: Tensor) -> Output:
    out = out.clone()
    for leaf in (self.case.mask,):
        if isinstance(leaf, Documents):
            for b in range(self.case.batch):
                used = sum(leaf.lists[b if len(leaf.lists) > 1 else 0])
                out[b, :, used:] = 0.5
    return Output(out, lse)


mutant(
    "slack after the last document",
    "missing rows",
    "flash-attention#2324: rows past cu_seqlens[-1] keep what the buffer held",
    shows="documents",
    store=_slack_left_over,
)
mutant("sink ignored", "sink", "not passed on", shows="sink", sink=lambda self: None)


def _sink_of_head_0(self: Tiled) -> Tensor | None:
    sink = Tiled.sink(self)
    return None if sink is None else sink[:1].expand_as(sink)


mutant("sink of head 0", "sink", "head stride 0", shows="sink", sink=_sink_of_head_0)


def _outside_the_maximum(self: Tiled, m: Tensor, row_sum: Tensor, acc: Tensor) -> Statistics:
    sink = self.sink()
    return (m, row_sum, acc) if sink is None else (m, row_sum + torch.exp(sink - m), acc)


mutant(
    "sink not in the maximum",
    "sink",
    "flash-attention#2752: exp(sink - max) overflows",
    shows="sink",
    join_sink=_outside_the_maximum,
)
mutant(
    "sink without gradient",
    "gradients only",
    "flash-attention#1973",
    gradients_only=True,
    shows="sink",
    add_dsink=lambda self, grads, lse, delta: None,
)
mutant(
    "sink counted in every split",
    "sink",
    "each split adds it",
    tiling=SPLIT,
    shows="sink",
    attend=lambda self, q, k, v, rows, tiles: self.join_sink(*Tiled.attend(self, q, k, v, rows, tiles)),
)

PAGE = 64


def _stale_tail(self: Tiled, name: str) -> Tensor:
    x = Tiled.read(self, name)
    tail = x.shape[2] // PAGE * PAGE
    if name == "q" or tail in (0, x.shape[2]):
        return x
    return torch.cat([x[:, :, :tail], x[:, :, : x.shape[2] - tail]], dim=2)


mutant(
    "stale block-table tail",
    "layout",
    "vllm#42494: the last page's entry names an old page",
    read=_stale_tail,
)
