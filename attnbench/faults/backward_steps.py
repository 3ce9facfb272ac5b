"""Faults of one step of the backward: delta, the LSE, P and its mask, tiles that do not count, few bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import TILES
from attnbench.faults.dense_backward import DenseBackward
from attnbench.faults.few_bits import DTYPES, rounded
from attnbench.faults.other_masks import other_masks
from attnbench.faults.score_forms import LARGEST_EXPONENT

ONLY, FEW_BITS = "gradients only", "low precision"
LOG2_E = math.log2(math.e)
Weights = Callable[[], Tensor]
OfSteps = Callable[..., Hypothesis]  # words, weights, ds


def of_steps(backward: DenseBackward, name: str) -> Iterator[Hypothesis]:
    """Each fault with the gradient that results, for name "dq", "dk" or "dv"."""

    def of(
        words: str,
        weights: Weights = lambda: backward.p,
        ds: Callable[[Tensor], Tensor] = backward.ds,
        cause: str = ONLY,
    ) -> Hypothesis:
        def make() -> Tensor:
            p = weights()
            return backward.gradient(name, p, ds(p))

        return Hypothesis(cause, words, make)

    if name != "dv":
        yield from _of_delta(backward, of)
    yield from _of_weights(backward, of)
    for cause, words, pairs in other_masks(backward.dense):
        yield of(f"in the backward alone, {words}", partial(backward.weights, pairs))
        yield of(words, partial(_of_own_sum, backward, pairs), cause=cause)
    if name == "dv":
        words = "dv is taken from dS, not from P"
        p = backward.p
        yield Hypothesis(ONLY, words, lambda: backward.gradient("dv", backward.ds(p), p))
    if name == "dq":
        right = backward.gradient("dq", backward.p, backward.ds(backward.p))
        overflows = (backward.lse < -LARGEST_EXPONENT)[..., None]
        words = (
            "keys past the last are scored 0 in the backward: exp(0 - LSE) overflows if the LSE is negative"
        )
        yield Hypothesis(ONLY, words, lambda: right.masked_fill(overflows, math.nan))
    yield from _of_tiles(backward, of)
    yield from _of_rounding(backward, name, of)


def _of_own_sum(backward: DenseBackward, pairs: Callable[[], Tensor]) -> Tensor:
    """P under another mask that the forward had as well, where it does not show."""
    masked = backward.dense.masked(allowed=pairs())
    lse = torch.logsumexp(masked, -1, keepdim=True)
    return torch.exp(masked - lse.masked_fill(lse == -math.inf, 0.0))


def _of_delta(backward: DenseBackward, of: OfSteps) -> Iterator[Hypothesis]:
    """Another delta in dS = P * (dP - delta)."""
    delta, dp, slope, dense = backward.delta, backward.dp, backward.slope, backward.dense

    def with_delta(words: str, other: Tensor) -> Hypothesis:
        return of(words, ds=partial(backward.ds, delta=other))

    yield with_delta("delta is left out of dS", torch.zeros_like(delta))
    yield with_delta("delta is added, not subtracted: dS = P * (dP + delta)", -delta)
    yield with_delta("delta is subtracted twice: dS = P * (dP - 2 delta)", 2 * delta)
    yield with_delta("delta alone is scaled: dS = P * (dP - scale * delta)", backward.scale * delta)
    words = "dP alone is scaled: dS = P * (scale * dP - delta)"
    yield of(words, ds=lambda p: p * (backward.scale * dp - delta[..., None]) * slope)
    yield with_delta("delta is the sum of dO, not of dO * O", backward.dout.sum(-1))
    words = "dS lacks its factor P: dS = dP - delta"
    yield of(words, ds=lambda p: (p > 0) * (dp - delta[..., None]) * slope)
    if dense.cap is not None:
        tanh = torch.tanh(dense.raw / dense.cap)
        for words, other in (
            ("softcap's derivative is missing", torch.ones_like(tanh)),
            ("softcap's derivative is 1 - tanh, not 1 - tanh^2", 1 - tanh),
            ("softcap's derivative is applied twice", (1 - tanh**2) ** 2),
            (
                "softcap's derivative is 1 - s^2, of the capped score s, not of s / cap",
                1 - (tanh * dense.cap) ** 2,
            ),
        ):
            yield of(words, ds=lambda p, x=other: p * (dp - delta[..., None]) * x)
    features = backward.case.head_dim
    if features < backward.case.v_dim:
        less = backward.dout[..., :features] @ dense.v[..., :features].transpose(-1, -2)
        words = "dP is summed over head_dim features, not v_dim"
        yield of(words, ds=lambda p: p * (less - delta[..., None]) * slope)
    for words, other in _of_other_rows(delta, "delta"):
        yield with_delta(words, other)


def _of_other_rows(x: Tensor, what: str) -> Iterator[tuple[str, Tensor]]:
    """A statistic [B, H, Q] of other rows, heads or batch rows."""
    q_len = x.shape[2]
    rows = torch.arange(q_len, device=x.device)
    for tile in (1, *TILES):
        if tile < q_len:
            yield f"the {what} of the first {tile} rows is used for others", x[:, :, rows % tile]
    for dim, name in ((0, "batch row"), (1, "head")):
        if x.shape[dim] > 1:
            yield f"the {what} of {name} 0 is used for every {name}", x.narrow(dim, 0, 1).expand_as(x)
            for by in (1, -1):
                yield f"the {what} of another {name} is used (its offset is wrong)", x.roll(by, dim)
    if q_len > 1:
        yield f"the {what} of the query before is used", x.roll(1, 2)
        yield f"the {what} of the next query is used", x.roll(-1, 2)


def _of_weights(backward: DenseBackward, of: OfSteps) -> Iterator[Hypothesis]:
    """P from other scores, or with another LSE."""
    dense, lse = backward.dense, backward.lse[..., None]
    yield of("P is not masked in the backward", lambda: torch.exp(dense.s - lse))
    yield of("P is not normalised in the backward", backward.not_normalised)
    if not bool(dense.allowed.all()):
        whole = torch.logsumexp(dense.s, -1)
        words = "the LSE of the backward is that of all keys, masked ones as well"
        yield of(words, partial(backward.weights, lse=whole))
    for words, other in _of_other_rows(backward.lse, "LSE"):
        yield of(words, partial(backward.weights, lse=other))
    if backward.case.scores:
        words = "the backward's scores lack the bias or softcap"
        yield of(words, lambda: torch.exp(dense.masked(dense.raw) - lse))
    for kind in dense.terms:
        words = f"the backward's scores lack the {kind}"
        yield of(words, lambda kind=kind: torch.exp(dense.masked(dense.scored(None, **{kind: 0.0})) - lse))
    if dense.sink is not None:
        own = torch.logsumexp(dense.masked(), -1).nan_to_num(neginf=0.0)
        yield of("the backward's LSE lacks the sink", partial(backward.weights, lse=own))
    for factor, what in (
        (LOG2_E, "times log2(e)"),
        (1 / LOG2_E, "times ln(2)"),
        (1 / backward.scale if backward.scale else 1.0, "without the scale"),
        (backward.scale, "with the scale twice"),
    ):
        words = f"the backward computes P from scores {what}"
        yield of(words, lambda n=factor: torch.exp(dense.masked() * n - lse))


def _of_tiles(backward: DenseBackward, of: OfSteps) -> Iterator[Hypothesis]:
    """Tiles of queries or keys that do not count."""
    q_len, k_len, p = backward.case.q_len, backward.case.k_len, backward.p
    row, keys = torch.arange(q_len, device=p.device)[:, None], backward.dense.keys

    def only(words: str, kept: Tensor) -> Hypothesis:
        return of(words, partial(torch.mul, p, kept))

    for tile in TILES[:4]:
        for number in sorted({1, -(-q_len // tile) - 1} - {0}):
            words = f"queries {number * tile} to {min(q_len, number * tile + tile)} do not count"
            yield only(words, row // tile != number)
    for tile in TILES:
        if tile < q_len:
            words = f"only the last tile of {tile} queries counts (= for +=)"
            yield only(words, row >= (q_len - 1) // tile * tile)
            yield only(f"only the first tile of {tile} queries counts", row < tile)
            words = (
                f"the loop over queries starts at the tile of {tile} after the key's: its own does not count"
            )
            yield only(words, row >= -(-keys // tile) * tile)
            yield only(words, row // tile > keys // tile)
            words = f"queries of later tiles of {tile} than the key's next do not count"
            yield only(words, row // tile <= keys // tile + 1)
        if tile < k_len:
            words = f"only the last tile of {tile} keys counts (= for +=)"
            yield only(words, keys >= (k_len - 1) // tile * tile)
            yield only(f"only the first tile of {tile} keys counts", keys < tile)


def _of_rounding(backward: DenseBackward, name: str, of: OfSteps) -> Iterator[Hypothesis]:
    """One step in few bits: delta, dP, the LSE, scores, the row sum's reciprocal, or the accumulator."""
    dense, lse = backward.dense, backward.lse[..., None]
    length, tiles_of = (backward.case.k_len, "keys") if name == "dq" else (backward.case.q_len, "queries")

    def few(
        words: str, weights: Weights | None = None, ds: Callable[[Tensor], Tensor] = backward.ds
    ) -> Hypothesis:
        return of(words, (lambda: backward.p) if weights is None else weights, ds, FEW_BITS)

    for dtype, torch_dtype in DTYPES.items():
        to = partial(rounded, torch_dtype)
        if name != "dv":
            yield few(f"delta is rounded to {dtype}", ds=partial(backward.ds, delta=to(backward.delta)))
            dp = to(backward.dp)
            words = f"dP is rounded to {dtype}"
            yield few(words, ds=lambda p, x=dp: p * (x - backward.delta[..., None]) * backward.slope)  # type: ignore[misc]
        yield few(f"the LSE is rounded to {dtype}", partial(backward.weights, lse=to(backward.lse)))
        words = f"scores of the backward are rounded to {dtype}"
        yield few(words, lambda to=to: torch.exp(to(dense.masked()) - lse))  # type: ignore[misc]
        words = f"the reciprocal of the row sum is rounded to {dtype}"
        total = backward.not_normalised().sum(-1, keepdim=True)
        factor = (to(1 / total) * total).nan_to_num(1.0)
        yield few(words, partial(torch.mul, backward.p, factor))
        for tile in TILES:
            if tile < length:
                words = f"{name}'s accumulator is rounded to {dtype} after each tile of {tile} {tiles_of}"
                yield Hypothesis(FEW_BITS, words, partial(backward.accumulated, name, to, tile))
