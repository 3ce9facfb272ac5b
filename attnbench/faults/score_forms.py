"""Hypotheses of wrong score changes: softcap, ALiBi, bias, relative bias and sink, each computed in another form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import Dense
from attnbench.judge.oracle import Exact
from attnbench.judge.scores import relative_index
from attnbench.problem import ALiBi, RelativeBias

LARGEST_EXPONENT = 88.72  # of exp in float32
CAUSE = "score change"


def of_terms(dense: Dense) -> Iterator[Hypothesis]:
    """Each score change of the case, then changes that the case does not have."""
    if dense.cap is not None:
        yield from _of_softcap(dense, dense.cap)
    for kind, term in dense.terms.items():
        yield from _of_term(dense, kind, term)
    if len(dense.terms) > 1:
        words = f"{' and '.join(dense.terms)} are scaled like the scores"
        scaled = {kind: term * dense.case.softmax_scale for kind, term in dense.terms.items()}
        yield dense.if_scores_are(CAUSE, words, lambda: dense.scored(None, **scaled))
    alibi, relative = dense.score("alibi"), dense.score("relative")
    if isinstance(alibi, ALiBi):
        yield from _of_alibi(dense, alibi)
    if isinstance(relative, RelativeBias):
        yield from _of_relative(dense, relative)
    if dense.sink is not None:
        yield from _of_sink(dense, dense.sink)
    else:
        zero = torch.zeros(1, dense.case.q_heads, 1, dtype=torch.float64, device=dense.keys.device)
        words = "1 is added to the row sum (softmax-one, a sink of 0 that the case does not have)"
        yield Hypothesis("sink", words, partial(dense.answer, sink=zero))
    if dense.case.q_len > 1:
        diagonal = dense.distances() == 0
        words = "1 is added to the scores on the diagonal (a mask of ones and zeros added as a bias)"
        yield dense.if_scores_are(CAUSE, words, lambda: dense.s + diagonal)


def _of_softcap(dense: Dense, cap: float) -> Iterator[Hypothesis]:
    raw, scale, log2_e = dense.raw, dense.case.softmax_scale, math.log2(math.e)
    rest = dense.s - dense.capped(raw)  # the terms, added after the cap

    def forms() -> Iterator[tuple[str, Callable[[], Tensor]]]:
        yield "softcap is ignored", lambda: raw + rest
        words = "softcap is applied before the scale: cap * tanh(q k / cap) * scale"
        yield words, lambda: cap * torch.tanh(raw / scale / cap) * scale + rest
        words = "softcap is applied before the scale and not scaled: cap * tanh(q k / cap)"
        yield words, lambda: cap * torch.tanh(raw / scale / cap) + rest
        words = "softcap's tanh(s / cap) is not multiplied by the cap"
        yield words, lambda: torch.tanh(raw / cap) + rest
        yield "softcap's tanh gets s, not s / cap", lambda: cap * torch.tanh(raw) + rest
        words = "softcap is applied twice"
        yield words, lambda: cap * torch.tanh(torch.tanh(raw / cap)) + rest
        if dense.terms:
            words = "softcap is applied after the bias is added, to their sum"
            yield words, lambda: cap * torch.tanh((raw + rest) / cap)
        words = "softcap is clipping to the cap, not tanh"
        yield words, lambda: raw.clamp(-cap, cap) + rest
        words = "softcap is s / (1 + |s| / cap), not tanh"
        yield words, lambda: raw / (1 + raw.abs() / cap) + rest
        words = "softcap is applied to scores in base 2, times log2(e)"
        yield words, lambda: cap * torch.tanh(raw * log2_e / cap) / log2_e + rest
        yield words, lambda: cap * torch.tanh(raw / log2_e / cap) * log2_e + rest
        for times in (0.5, 2.0):
            words = f"softcap's cap is {times:g} times its own"
            yield words, lambda n=times * cap: n * torch.tanh(raw / n) + rest  # type: ignore[misc]

    for words, s in forms():
        yield dense.if_scores_are(CAUSE, words, s)
    capped = torch.where(dense.allowed[:, :, dense.rows], dense.s, -cap)
    words = "softcap is applied after the mask, so that masked keys keep exp(-cap)"
    yield Hypothesis(CAUSE, words, partial(dense.answer, capped))
    words = "softcap's tanh is written with exp, which overflows for scores 89 times the cap"
    overflows = raw.abs() > LARGEST_EXPONENT * cap
    yield dense.if_scores_are(CAUSE, words, lambda: dense.s.masked_fill(overflows, math.nan))


def _of_term(dense: Dense, kind: str, term: Tensor) -> Iterator[Hypothesis]:
    """What may happen to any added term, bias, relative bias or ALiBi."""
    case, scale = dense.case, dense.case.softmax_scale

    def of(how: str, other: Callable[[], Tensor | float]) -> Hypothesis:
        words = f"{kind} {how}" if not how.startswith("every") else how
        return dense.if_scores_are(CAUSE, words, lambda: dense.scored(None, **{kind: other()}))

    yield of("is ignored", lambda: 0.0)
    for times, how in (
        (2.0, "is added twice"),
        (0.5, "is halved"),
        (-1.0, "is negated: its sign is wrong"),
        (scale, "is scaled like the scores"),
        (1 / scale if scale else 1.0, "is divided by the scale"),
        (math.log2(math.e), "is multiplied by log2(e), and exp is not exp2"),
        (math.log(2), "is added in base 2, without log2(e)"),
    ):
        yield of(how, partial(torch.mul, term, times))
    for name, dim in (("batch row", 0), ("head", 1)):
        if term.shape[dim] > 1:
            first = term.narrow(dim, 0, 1).expand_as(term)
            yield of(f"every {name} reads the {kind} of {name} 0", lambda x=first: x)  # type: ignore[misc]
            yield of(f"is that of the next {name}", partial(term.roll, -1, dim))
            yield of(f"is that of the {name} before", partial(term.roll, 1, dim))
    if term.shape[1] > 1 and case.group > 1:
        heads = torch.arange(case.q_heads, device=term.device)
        yield of("is read by the key head's number", lambda: term[:, heads // case.group])
        yield of("is read by the place in the group", lambda: term[:, heads % case.group])
    if term.shape[0] > 1 and term.shape[1] > 1:
        yield of("has batch and head swapped", lambda: term.transpose(0, 1).reshape(term.shape))
    yield from _of_table(dense, dense.terms_of_all_rows[kind], of)


def _of_table(
    dense: Dense, term: Tensor, of: Callable[[str, Callable[[], Tensor | float]], Hypothesis]
) -> Iterator[Hypothesis]:
    """A term of all rows, read wrongly as a table [Q|1, K|1]."""
    q_len, k_len = dense.case.q_len, dense.case.k_len

    def read(how: str, other: Callable[[], Tensor]) -> Hypothesis:
        return of(how, lambda: dense.of_rows(other()))

    if term.shape[3] > 1:
        yield read("is shifted by one key", partial(term.roll, 1, 3))
        yield read("is shifted by one key", partial(term.roll, -1, 3))
    if term.shape[2] == 1 or q_len == 1:
        return
    if q_len == k_len and term.shape[3] > 1:
        yield read("is transposed", lambda: term.transpose(2, 3))
    yield read("is that of query 0 for every query", lambda: term[:, :, :1].expand_as(term))
    yield read("is that of the last query for every query", lambda: term[:, :, -1:].expand_as(term))
    flat = term.flatten(2)
    rows, columns = (torch.arange(n, device=term.device) for n in (q_len, term.shape[3]))
    for multiple in (8, 16, 32, 64):
        stride = -(-k_len // multiple) * multiple
        if stride != k_len:
            at = (rows[:, None] * stride + columns) % flat.shape[2]
            how = f"is read with rows padded to a multiple of {multiple} keys (its row stride is ignored)"
            yield read(how, lambda n=at: flat[:, :, n])  # type: ignore[misc]


def _of_alibi(dense: Dense, alibi: ALiBi) -> Iterator[Hypothesis]:
    heads, device = dense.case.q_heads, dense.keys.device
    right, near = dense.slopes(alibi), dense.distances()

    def of(words: str, slopes: Tensor, distances: Tensor) -> Hypothesis:
        return dense.if_scores_are(CAUSE, words, lambda: dense.scored(alibi=-slopes * distances))

    h = torch.arange(heads, dtype=torch.float64, device=device)[:, None, None]
    yield of("alibi slopes of a head count that is no power of two", 2.0 ** (-8 * (h + 1) / heads), near)
    yield of("alibi slopes are 2^(-8 h / H): the exponent counts heads from 0", 2.0 ** (-8 * h / heads), near)
    yield of("alibi slopes are 2^(-(h + 1)), whatever the number of heads", 2.0 ** -(h + 1), near)
    yield of("alibi slopes are in reverse order of the heads", right.flip(0), near)
    yield of("alibi slopes are 1", torch.ones_like(right), near)
    group = (h.long() // dense.case.group).flatten()
    if dense.case.group > 1:
        for n in (dense.case.kv_heads, heads // dense.case.kv_heads):
            of_n = torch.tensor(ALiBi().slopes_for(n), dtype=torch.float64, device=device)[:, None, None]
            words = f"alibi slopes are those of {n} heads, not of the {heads} query heads"
            yield of(words, of_n[group % n], near)
    rows = dense.rows[:, None]
    ahead = (dense.keys - rows - dense.case.k_len + dense.case.q_len).double()
    yield of("alibi counts distances from the top-left corner", right, dense.distances(rows))
    if dense.case.k_len > dense.case.q_len:
        in_cache = dense.keys < dense.case.k_len - dense.case.q_len
        words = "alibi's distances to keys of the cache lack its length, k_len - q_len"
        yield of(words, right, torch.where(in_cache, dense.distances(rows), near))
        yield of("alibi is not added to keys of the cache (before k_len - q_len)", right, near * ~in_cache)
    yield of("alibi lacks the absolute value: keys ahead of the query get a bonus", right, -ahead)
    yield of("alibi lacks the absolute value: earlier keys get a bonus", right, ahead)
    yield of("alibi lets keys ahead of the query pass unbiased", right, (-ahead).clamp_min(0))
    yield of("alibi is j times the slope, by absolute places", right, -dense.keys.double()[None])


def _of_relative(dense: Dense, score: RelativeBias) -> Iterator[Hypothesis]:
    assert score.tensor is not None
    case, table = dense.case, score.tensor.double()

    def of(words: str, index: Callable[[], Tensor], entries: Tensor = table) -> Hypothesis:
        return dense.if_scores_are(
            CAUSE, words, lambda: dense.scored(relative=entries[:, index().clamp(0, score.entries - 1)][None])
        )

    def at(rows: Tensor, q_len: int, k_len: int) -> Callable[[], Tensor]:
        return lambda: relative_index(score.rule, rows, dense.keys, q_len, k_len)

    own = at(dense.rows, case.q_len, case.k_len)
    yield of("the relative bias is that of the opposite offset", own, table.flip(1))
    longest = max(case.q_len, case.k_len)
    words = "the relative bias counts distances from the top-left corner"
    yield of(words, at(dense.rows, longest, longest))
    yield of("the relative bias is off by one place", at(dense.rows + 1, case.q_len, case.k_len))
    yield of("the relative bias is off by one place", at(dense.rows - 1, case.q_len, case.k_len))
    if score.rule.startswith("t5"):
        mirrored = 2 * (dense.rows[:, None] + case.k_len - case.q_len) - dense.keys
        words = "the relative bias has the sign of the offset wrong (i - j for j - i)"

        def of_mirrored() -> Tensor:
            # The bucket of an offset is read off a row 0 of the longest line.
            line = torch.arange(-2 * longest, 2 * longest + 1, device=table.device)
            zero = torch.zeros(1, dtype=torch.int64, device=table.device)
            buckets = relative_index(score.rule, zero, line, 1, 1)[0]
            offset = mirrored - (dense.rows[:, None] + case.k_len - case.q_len)
            return buckets[(offset + 2 * longest).clamp(0, len(line) - 1)]

        yield of(words, of_mirrored)


def _of_sink(dense: Dense, sink: Tensor) -> Iterator[Hypothesis]:
    def of(words: str, other: Tensor) -> Hypothesis:
        return Hypothesis("sink", words, partial(dense.answer, sink=other))

    yield of("sink is ignored", torch.full_like(sink, -math.inf))
    if sink.shape[1] > 1:
        yield of("every head reads the sink of head 0", sink[:, :1].expand_as(sink))
        yield of("the sink is that of the next head", sink.roll(-1, 1))
        yield of("the sink is that of the head before", sink.roll(1, 1))
        if dense.case.group > 1:
            heads = torch.arange(dense.case.q_heads, device=sink.device) // dense.case.group
            yield of("the sink is read by the key head's number", sink[:, heads])
    scale = dense.case.softmax_scale
    for other, how in (
        (sink * scale, "scaled like the scores"),
        (sink / scale if scale else sink, "divided by the scale"),
        (-sink, "negated"),
        (sink * math.log(2), "taken in base 2: exp2(sink), without log2(e)"),
        (sink * math.log2(math.e), "multiplied by log2(e), and exp is not exp2"),
        (torch.zeros_like(sink), "taken for 0"),
    ):
        yield of(f"sink is {how}", other)
    if dense.cap is not None:
        yield of("softcap is applied to the sink as well", dense.cap * torch.tanh(sink / dense.cap))
    for times in (2, 3, 4, 8):
        words = f"the sink is counted {times} times (once in every split)"
        yield of(words, sink + math.log(times))

    def as_key(first: bool) -> Exact:
        right = dense.answer()
        weight = torch.exp(sink - right.lse)[..., None]
        value = dense.v[:, :, :1] if first else dense.v[:, :, -1:]
        return Exact(right.out + weight * value, right.lse)

    yield Hypothesis("sink", "the sink has a value: its weight meets that of key 0", partial(as_key, True))
    words = "the sink has a value: its weight meets that of the last key"
    yield Hypothesis("sink", words, partial(as_key, False))
