"""The trials: cases on which mutants and right implementations are judged, each kept for a mutant that it shows.

Head dims, lengths, batch, groups, layouts and distributions rotate through the list instead of being multiplied
out. Order is by how many mutants a trial kills, long ones last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from attnbench.problem import (
    BlockSparse,
    Case,
    Causal,
    Dilated,
    Explicit,
    Full,
    GlobalTokens,
    Inputs,
    Mask,
    PrefixLM,
    Score,
    make_inputs,
    parse_mask,
    parse_score,
)


@dataclass(frozen=True)
class Trial:
    """A case without its dtype, a distribution, and the tensor whose memory is repeated or strided, if any.

    `memory`: "" or "dout expanded" (stride 0 over features), "dout transposed" ([B, Q, H, Dv] in memory) or
    "keys expanded" (one batch row for all, stride 0).
    """

    name: str
    fields: dict[str, Any]
    distribution: str = "randn"
    memory: str = ""

    def case(self, dtype: str) -> Case:
        return Case(dtype=dtype, direction="fwd_bwd", **self.fields)  # type: ignore[arg-type]

    def inputs(self, dtype: str, seed: int, device: str = "cpu") -> Inputs:
        inputs = make_inputs(self.case(dtype), seed, device, self.distribution)
        assert inputs.dout is not None
        if self.memory == "dout expanded":
            return replace(inputs, dout=inputs.dout[..., :1].expand_as(inputs.dout))
        if self.memory == "dout transposed":
            return replace(inputs, dout=inputs.dout.transpose(1, 2).contiguous().transpose(1, 2))
        if self.memory == "keys expanded":
            return replace(inputs, k=inputs.k[:1].expand_as(inputs.k))
        return inputs

    @property
    def is_long(self) -> bool:
        """Whether it takes seconds."""
        case = self.case("fp32")
        return case.q_len * case.k_len * case.q_heads > 1 << 20 or max(case.k_len, case.batch) > 1 << 14

    @property
    def is_longest(self) -> bool:
        """Whether the small form leaves it out."""
        return self.fields["q_len"] * self.fields["k_len"] > 1 << 21

    def fits(self, dtype: str, contract: str) -> bool:
        """Whether every intermediate that the contract may round is finite in the dtype."""
        return not (self.distribution == "huge_negative" and dtype == "fp16" and contract == "dense")


def _random_mask(*shape: int) -> Explicit:
    # Three of four pairs; rows and columns differ, so that a transposed or shared mask shows.
    generator = torch.Generator().manual_seed(sum(shape))
    return Explicit(torch.rand(*shape, generator=generator) < 0.75)


def _layout(*shape: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(7)
    drawn = torch.rand(*shape, generator=generator) < 0.5
    drawn[..., 0] = True
    return tuple(drawn.int().tolist())


def _trial(
    name: str,
    lengths: tuple[int, int],
    heads: tuple[int, int],
    dims: int | tuple[int, int],
    mask: Mask | str = Full(),
    scores: str = "",
    distribution: str = "randn",
    memory: str = "",
    **more: Any,
) -> Trial:
    head_dim, v_dim = dims if isinstance(dims, tuple) else (dims, dims)
    changes: tuple[Score, ...] = tuple(parse_score(text) for text in scores.split(" ") if text)
    fields = {
        "q_len": lengths[0],
        "k_len": lengths[1],
        "q_heads": heads[0],
        "kv_heads": heads[1],
        "head_dim": head_dim,
        "v_dim": v_dim,
        "mask": parse_mask(mask) if isinstance(mask, str) else mask,
        "scores": changes,
    }
    return Trial(name, fields | more, distribution, memory)


TRIALS: tuple[Trial, ...] = (
    _trial("causal, groups, ragged", (129, 257), (6, 2), 40, "causal", batch=2, layout="bshd"),
    _trial("plain", (64, 64), (4, 4), 64, batch=3),
    _trial(
        "explicit by batch and head", (65, 65), (4, 4), 32, _random_mask(3, 4, 65, 65), "softcap(2)", batch=3
    ),
    _trial("more queries than keys", (192, 65), (4, 4), 80, "causal", "bias(hqk)", batch=2),
    _trial("window", (129, 129), (4, 2), 96, "causal & window(16, 0)", "alibi", layout="qkv_packed"),
    _trial("two-sided window", (128, 192), (5, 1), 64, "window(20, 9)"),
    _trial("padding", (63, 127), (8, 1), 64, "padding(127, 50, 0)", batch=3, memory="dout transposed"),
    _trial("padding and causal", (65, 65), (4, 4), 32, "causal & padding(65, 20, left)", "sink", batch=2),
    _trial("documents with slack", (129, 129), (4, 4), 64, "documents(50, 0, 30, 40)"),
    _trial(
        "documents by batch row",
        (128, 128),
        (4, 2),
        32,
        "causal & documents([60, 68], [100, 0, 20])",
        batch=2,
    ),
    _trial("caller's scale", (64, 64), (4, 4), 64, scale=0.3, batch=3),
    _trial("negative scores", (129, 129), (4, 4), 64, distribution="negative_lse"),
    _trial("negative scores, causal", (65, 193), (4, 2), 40, "causal", distribution="negative_lse"),
    _trial("huge negative scores", (64, 129), (4, 4), 64, "causal", distribution="huge_negative"),
    _trial("large scores", (128, 257), (4, 4), 128, distribution="large"),
    _trial("large scores, causal", (257, 257), (2, 1), 256, "causal", distribution="large"),
    _trial("rising scores", (65, 513), (4, 4), 64, distribution="rising"),
    _trial("rising scores, causal", (193, 193), (8, 1), 96, "causal", distribution="rising", layout="bshd"),
    _trial("constant V", (63, 192), (4, 4), 80, distribution="constant_v"),
    _trial("positive", (128, 129), (6, 2), 40, distribution="positive", batch=2),
    _trial("one-hot", (127, 127), (4, 4), 64, distribution="one_hot"),
    _trial("one-hot, wide", (192, 192), (4, 4), 128, "causal", distribution="one_hot"),
    _trial("massive sink key", (64, 2049), (2, 2), 64, distribution="sink_key"),
    _trial("subnormal V", (64, 128), (4, 4), 32, distribution="subnormal_v"),
    _trial(
        "huge unseen keys", (64, 257), (4, 2), 64, "padding(200, 65)", distribution="huge_unseen", batch=2
    ),
    _trial("huge unseen columns", (65, 65), (4, 4), 40, "documents(20, 30)", distribution="huge_unseen"),
    _trial("heads equal to length", (8, 8), (8, 8), 64, batch=2, memory="dout expanded"),
    _trial("unequal value dim", (65, 129), (4, 4), (192, 128), "causal"),
    _trial("larger value dim", (65, 65), (2, 2), (64, 96), layout="bshd"),
    _trial("softcap", (128, 128), (4, 4), 256, "causal", "softcap(5)", distribution="large"),
    _trial("ALiBi of 6 heads", (64, 129), (6, 6), 64, "causal", "alibi"),
    _trial("bias by batch and head", (63, 65), (4, 4), 64, Full(), "bias(bhqk)", batch=3),
    _trial("bias of keys", (128, 127), (4, 4), 32, Full(), "bias(bk)", batch=2, memory="dout expanded"),
    _trial("one bias for all", (65, 64), (4, 2), 80, Full(), "bias(scalar)", batch=2),
    _trial("T5 bias", (129, 129), (4, 4), 64, Full(), "relative(t5,32,128,bidirectional)", scale=1.0),
    _trial("T5 bias, decoder", (64, 192), (6, 2), 64, "causal", "relative(t5,16,64,causal)", batch=2),
    _trial("bias of a grid", (64, 64), (3, 3), 32, Full(), "relative(grid,8,8)", batch=3),
    _trial("sink", (129, 129), (6, 2), 64, "causal", "sink", batch=2),
    _trial("sink of 100", (64, 65), (4, 4), 64, Full(), "sink(100)"),
    _trial("sink and empty rows", (129, 64), (4, 4), 40, "causal", "sink softcap(10)"),
    _trial("prefix", (192, 192), (4, 4), 64, PrefixLM(70)),
    _trial("global tokens and window", (129, 129), (4, 4), 32, GlobalTokens(5) | parse_mask("window(9, 9)")),
    _trial("block-sparse by head", (129, 192), (4, 4), 64, BlockSparse(_layout(4, 5, 6), 32)),
    _trial("dilated", (65, 130), (4, 2), 64, Causal() & Dilated(3), layout="bshd"),
    _trial("top-left", (64, 128), (4, 4), 64, Causal("top_left"), batch=2),
    _trial("explicit and causal", (63, 129), (4, 4), 96, Causal() & _random_mask(63, 129)),
    _trial(
        "explicit by batch row",
        (64, 65),
        (4, 2),
        32,
        _random_mask(2, 1, 64, 65),
        batch=2,
        memory="keys expanded",
    ),
    _trial("no key at all", (2, 1), (4, 4), 64, "~full"),
    _trial("one query, one key", (1, 1), (5, 1), 128),
    _trial("two tokens", (2, 2), (8, 1), 192, "causal"),
    _trial("decode", (1, 4097), (8, 1), 128, "causal", batch=2),
    _trial("long, sign-flipped V", (513, 2049), (2, 1), 64, distribution="sign_flipped_v"),
    _trial("long, sign-flipped dO", (2049, 65), (2, 1), 64, distribution="sign_flipped_dout"),
    _trial("long, causal", (2049, 2049), (1, 1), 64, "causal", distribution="near_constant_v"),
    _trial("20,000 keys, near-constant V", (3, 20_000), (2, 2), 64, distribution="near_constant_v"),
    _trial("20,000 keys, sign-flipped V", (3, 20_000), (2, 1), 40, distribution="sign_flipped_v"),
    _trial("33,000 keys", (2, 33_000), (1, 1), 32),
    _trial("batch over 65,535", (1, 2), (1, 1), 32, batch=65_537),
)
