"""Which changed problems does a bug of meaning solve? Another mask, scale, head or bias: each has an exact answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnbench.judge.oracle import Exact, exact_attention
from attnbench.judge.subject import allowed_pairs
from attnbench.problem import ALiBi, Case, Explicit, Full, Inputs
from attnbench.problem.masks import And, Mask, Or

ALL_ZEROS = "the output is all zeros"
TILES = (16, 32, 64, 128, 256)

Hypothesis = tuple[
    str, Callable[[], Any]
]  # a cause, and the exact answer (or gradient) of the changed problem


def of_problem(inputs: Inputs) -> Iterator[Hypothesis]:
    """Changes of the problem, and the exact out of each."""
    case = inputs.case
    forward = replace(inputs, case=replace(case, direction="fwd"), dout=None)

    def out(**tensors: object) -> Callable[[], Exact]:
        return lambda: exact_attention(replace(forward, **tensors))  # type: ignore[arg-type]

    def with_case(**changes: object) -> Callable[[], Exact]:
        return lambda: exact_attention(replace(forward, case=replace(forward.case, **changes)))  # type: ignore[arg-type]

    right = exact_attention(forward)
    yield ALL_ZEROS, lambda: replace(right, out=torch.zeros_like(right.out))
    mean = inputs.v.double().mean(2, keepdim=True).repeat_interleave(case.group, 1).expand_as(right.out)
    yield "out is the mean of all V: scores and mask play no part", lambda: replace(right, out=mean)
    yield "the LSE is in base 2", lambda: replace(right, lse=right.lse / math.log(2))
    yield from _of_mask(case, with_case, inputs.device)
    scale = case.softmax_scale
    yield "the scale is missing", with_case(scale=1.0)
    yield "the scale is applied twice", with_case(scale=scale**2)
    yield "the scale is 1 / D instead of 1 / sqrt(D)", with_case(scale=1 / case.head_dim)
    yield "the sign of the scale is wrong", with_case(scale=-scale)
    if case.scale is not None:
        yield "the caller's scale is ignored", with_case(scale=case.head_dim**-0.5)
    for power in (64, 128, 256):
        if power > case.head_dim:
            yield f"the scale is that of the padded head dim {power}", with_case(scale=power**-0.5)
    k, v = inputs.k, inputs.v
    if case.group > 1:
        tiled = torch.arange(case.q_heads, device=k.device) % case.kv_heads
        whole = {"case": replace(forward.case, kv_heads=case.q_heads)}
        yield (
            "key heads are tiled, not interleaved, over query heads (GQA mapping)",
            out(**whole, k=k[:, tiled], v=v[:, tiled]),
        )
    if case.kv_heads > 1:
        first = torch.zeros(case.kv_heads, dtype=torch.int64, device=k.device)
        yield "every query head reads key head 0 (GQA mapping)", out(k=k[:, first], v=v[:, first])
    if case.batch > 1:
        yield "every batch row reads the keys of batch row 0", out(k=k[:1].expand_as(k), v=v[:1].expand_as(v))
    if case.head_dim == case.v_dim:
        yield "k and v are swapped", out(k=v, v=k)
    yield "keys are shifted by one against values", out(k=k.roll(1, 2))
    yield "keys are shifted by one against values", out(k=k.roll(-1, 2))
    yield "out is the mean of V: the scores play no part", out(q=torch.zeros_like(inputs.q))
    for score in inputs.scores:
        others = tuple(s for s in inputs.scores if s is not score)
        yield f"{score.kind} is ignored", out(scores=others)
        if score.tensor is None:
            continue
        for name, dim in (("batch row", 0), ("head", 1 if score.kind == "bias" else 0)):
            if score.tensor.shape[dim] > 1 and not (name == "batch row" and score.kind != "bias"):
                one = score.tensor.narrow(dim, 0, 1).expand_as(score.tensor)
                others_and_one = tuple(s.bound(one) if s is score else s for s in inputs.scores)
                yield f"every {name} reads the {score.kind} of {name} 0", out(scores=others_and_one)
        for factor, words in (
            (scale, "scaled like the scores"),
            (1 / scale, "divided by the scale"),
            (-1.0, "negated"),
        ):
            scaled = tuple(s.bound(score.tensor * factor) if s is score else s for s in inputs.scores)
            yield f"{score.kind} is {words}", out(scores=scaled)
    for score in inputs.scores:
        if isinstance(score, ALiBi):
            slopes = tuple(2.0 ** (-8 * (h + 1) / case.q_heads) for h in range(case.q_heads))
            others = tuple(ALiBi(slopes) if s is score else s for s in inputs.scores)
            yield "alibi slopes of a head count that is no power of two", out(scores=others)


def _of_mask(
    case: Case, with_case: Callable[..., Callable[[], Exact]], device: torch.device
) -> Iterator[Hypothesis]:
    allowed = allowed_pairs(case, str(device))

    def masked(pairs: Tensor) -> Callable[[], Exact]:
        return with_case(mask=Explicit(pairs))

    if isinstance(case.mask, Full):
        shortened = allowed.clone()
        shortened[..., -1] = False
        yield "the last key is left out (key length off by one)", masked(shortened)
        for tile in TILES:
            if tile < case.k_len and case.k_len % tile:
                cut = allowed.clone()
                cut[..., case.k_len // tile * tile :] = False
                yield f"the last, ragged tile of {tile} keys is left out", masked(cut)
            if tile < case.k_len:
                recent = torch.zeros_like(allowed)
                recent[..., -tile:] = True
                yield (
                    f"only the last {tile} keys count (the maximum or sum of earlier tiles is lost)",
                    masked(recent),
                )
        triangle = torch.ones_like(allowed).tril(case.k_len - case.q_len)
        yield "a causal mask is applied though none was asked for", masked(triangle)
        return
    yield "the mask is ignored", with_case(mask=Full())
    if case.q_len != case.k_len:
        other = _aligned_otherwise(case, allowed)
        yield "the mask is aligned top-left instead of bottom-right (or the other way round)", masked(other)
    j = torch.arange(case.k_len, device=device)
    for by, words in ((-1, "one key too few (strict, off by one)"), (1, "one key too many (off by one)")):
        rolled = torch.roll(allowed, by, -1)
        edge = allowed[..., -1:] if by < 0 else allowed[..., :1]
        rolled = torch.where((j == (case.k_len - 1 if by < 0 else 0)), edge & (by > 0), rolled)
        yield (
            f"at its right edge the mask allows {words}",
            masked(rolled & allowed if by < 0 else rolled | allowed),
        )
        left = torch.roll(allowed, -by, -1)
        left = torch.where(j == (0 if by < 0 else case.k_len - 1), False, left)
        yield (
            f"at its left edge the mask allows {words}",
            masked(left & allowed if by < 0 else left | allowed),
        )
    yield "the mask is inverted (True taken for masked)", masked(~allowed)
    if case.q_len == case.k_len:
        yield "the mask is transposed", masked(allowed.transpose(-1, -2))
    if case.batch > 1:
        yield "every batch row uses the mask of batch row 0", masked(allowed[:1].expand_as(allowed))
    if case.q_heads > 1:
        yield "every head uses the mask of head 0", masked(allowed[:, :1].expand_as(allowed))
    if isinstance(case.mask, And | Or):
        for part in _terms(case.mask):
            yield f"only the part `{part}` of the mask is applied", with_case(mask=part)
    for tile in (4, *TILES):
        if tile < max(case.q_len, case.k_len):
            yield (
                f"the mask is applied at the granularity of {tile} tokens",
                masked(_coarse(allowed, tile, tile)),
            )
            yield f"the mask's rows are rounded up to {tile} queries", masked(_coarse(allowed, tile, 1))
    for tile in TILES:
        if tile < case.k_len and case.k_len % tile:
            cut = allowed.clone()
            cut[..., case.k_len // tile * tile :] = False
            yield f"the last, ragged tile of {tile} keys is left out", masked(cut)
    for share in (2, 3, 4):
        late = allowed.clone()
        late[..., case.k_len - case.k_len // share :] = False
        yield f"the last {case.k_len // share} keys are left out (a split or tile is dropped)", masked(late)
    for tile in TILES:
        if tile < case.k_len:
            recent = allowed.clone()
            recent[..., : case.k_len - tile] = False
            yield (
                f"only the last {tile} keys count (the maximum or sum of earlier tiles is lost)",
                masked(recent),
            )
    if not bool(allowed.any(-1).all()):
        filled = allowed | ~allowed.any(-1, keepdim=True)
        yield "a row without a key gives the mean of V instead of 0", masked(filled)


def _aligned_otherwise(case: Case, allowed: Tensor) -> Tensor:
    shift = case.k_len - case.q_len
    keys = torch.arange(case.k_len, device=allowed.device)
    best = torch.zeros_like(allowed)
    for by in (shift, -shift):
        source = keys + by
        inside = (source >= 0) & (source < case.k_len)
        best = torch.where(inside, allowed[..., source.clamp(0, case.k_len - 1)], False)
        if by == shift:
            first = best
    text = str(case.mask)
    return best if "top_left" in text else first


def _terms(mask: Mask) -> tuple[Mask, ...]:
    return mask.terms if isinstance(mask, And | Or) else (mask,)


def _coarse(allowed: Tensor, rows: int, columns: int) -> Tensor:
    q_len, k_len = allowed.shape[-2:]
    more = (0, -k_len % columns, 0, -q_len % rows)
    blocks = torch.nn.functional.pad(allowed.float(), more)
    blocks = torch.nn.functional.max_pool2d(blocks, (rows, columns))
    grown = blocks.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return grown[..., :q_len, :k_len] > 0
