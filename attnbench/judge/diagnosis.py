"""What is the likely bug? Guesses from the pattern of an error, the likeliest first.

Two ways. A bug of meaning (a wrong mask, scale, head) has an exact answer too: that of the changed problem. Each
such change is computed by the oracle, and one that explains what the backend gave is named. A bug of another kind
leaves a pattern: which rows, heads, tiles or columns are off, by a factor or at random, only in gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.judge.protocol import same_bits
from attnbench.judge.subject import Answer, Failed, Refused, Subject, allowed_pairs
from attnbench.judge.verdict import judge
from attnbench.problem import ALiBi, Case, Explicit, Full, Inputs
from attnbench.problem.masks import And, Mask, Or

if TYPE_CHECKING:
    from attnbench.judge.report import Failure

SLIGHT = (
    0.08  # root mean square of an error relative to the answer's: what few bits leave, not another formula
)
COSTLIEST = 1 << 22  # scores of a case that is explained: each hypothesis costs one float64 answer of it
ALL_ZEROS = "the output is all zeros"
# a hypothesis explains an error when it leaves this share of it, in the root of the mean square
EXPLAINS = 0.1
TILES = (16, 32, 64, 128, 256)
FAR = 12.0  # an element is off when it is that far in units of its noise


Hypothesis = tuple[
    str, Callable[[], Any]
]  # a cause, and the exact answer (or gradient) of the changed problem


def causes_of(subject: Subject, failure: Failure, case: Case, distribution: str) -> tuple[str, ...]:
    """Guesses at why this case fails, the likeliest first; empty where no pattern is known."""
    words = _of_words(failure.reason)
    if words:
        return words
    if case.rows * case.k_len > COSTLIEST:
        return ()
    inputs = subject.inputs(case, distribution)
    try:
        answer = subject.answer(inputs)
    except (Refused, Failed):
        return ()
    return guesses(subject, inputs, answer)


def _of_words(reason: str) -> tuple[str, ...]:
    known = {
        "raises": "an exception where the case is not refused; raise NotImplementedError to refuse it",
        "has shape": "the output's layout or head dim is not [B, H, Q, Dv] (transposed, or v_dim taken for head_dim)",
        " is torch.": "the result is not cast back to the inputs' dtype",
        "is missing": "autograd does not reach this tensor (detached, or computed without a graph)",
        "lies on": "the result is on another device",
        "may not attend": "the mask lets a forbidden key through (off by one, another alignment, or ignored)",
        "may attend": "the mask forbids an allowed key (off by one, another alignment, or a skipped tile)",
        "leak": "masked keys leak: they enter before the mask, or as 0 times their number",
    }
    found = [cause for word, cause in known.items() if word in reason]
    return tuple(found[:2])


def guesses(subject: Subject, inputs: Inputs, answer: Answer) -> tuple[str, ...]:
    """Guesses from what the backend gave for these inputs."""
    verdict = judge(subject.reference(inputs), answer.output, answer.gradients, inputs)
    wrong = {name for name, error in verdict.errors.items() if error["over_budget"] > 1}
    first = [cause for _, cause in sorted(_explained(inputs, answer, wrong))]
    # All zeros, or not a number, is what overflow leaves as well: the distribution tells more.
    where = list(_of_distribution(subject, inputs))
    if first and first[0] == ALL_ZEROS:
        where, first = [*where, *first], []
    patterns = list(_patterns(subject, inputs, answer, wrong))
    return tuple(dict.fromkeys([*first, *where, *patterns]))


def _root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _distance(given: dict[str, Tensor], wanted: dict[str, Tensor], sizes: dict[str, float]) -> float:
    """How far two answers are apart, relative to the size of each tensor; other infinities count as far."""
    total = 0.0
    for name, size in sizes.items():
        x, y = given[name], wanted[name]
        if x.shape != y.shape:
            return math.inf
        finite = x.isfinite() & y.isfinite()
        other = ~finite & ~((x == y) | (x.isnan() & y.isnan()))
        apart = torch.where(finite, x - y, 0.0).square().mean() / max(size, 1e-30) ** 2
        total += float(apart) + float(other.double().mean())
    return math.sqrt(total)


def _explained(inputs: Inputs, answer: Answer, wrong: set[str]) -> Iterator[tuple[float, str]]:
    """(share of the error that is left, cause) of each change of the problem that explains the answer."""
    right = exact_attention(inputs)
    given = {name: x.double() for name, x in answer.tensors.items() if x is not None}
    if answer.output.lse is not None:
        given["lse"] = answer.output.lse.double()
    if wrong & {"out", "lse"}:
        # A wrong forward spoils every gradient.
        names: list[str] = [name for name in ("out", "lse") if name in given]
        yield from _left(given, _forward(right, names), _of_problem(inputs), names)
        return
    for name in ("dq", "dk", "dv"):
        exact = getattr(right, name)
        if name in wrong and exact is not None:
            found = list(_left(given, {name: exact}, _of_gradient(name, inputs, right), [name]))
            yield from found
            if found:
                return


def _forward(exact: Exact, names: list[str]) -> dict[str, Tensor]:
    return {name: getattr(exact, name) for name in names}


def _left(
    given: dict[str, Tensor], right: dict[str, Tensor], hypotheses: Iterator[Hypothesis], names: list[str]
) -> Iterator[tuple[float, str]]:
    sizes = {name: _root_mean_square(torch.where(x.isfinite(), x, 0.0)) for name, x in right.items()}
    error = _distance(given, right, sizes)
    for cause, make in hypotheses:
        try:
            made = make()
        except (AttnbenchError, ValueError, RuntimeError, IndexError):
            continue
        alternative = _forward(made, names) if isinstance(made, Exact) else {names[0]: made}
        share = _distance(given, alternative, sizes) / error if error else 1.0
        if share < EXPLAINS:
            yield share, cause


OF_DISTRIBUTION = {
    "large": "no maximum is taken off before exp, or not the row's: large scores overflow",
    "negative_lse": "the maximum starts at 0, or a tail of the tile is scored 0: only a negative LSE shows it",
    "rising": "rescaling when a later tile has a larger maximum",
    "huge_negative": "a finite stand-in for -inf, or products kept in half precision",
    "near_constant_v": "low precision of an accumulator or row sum",
    "sign_flipped_v": "low precision of an accumulator: large sums that cancel",
    "cancelling_dq": "low precision of dq's accumulator: large sums that cancel",
    "positive": "low precision of an accumulator or row sum",
    "sink_key": "small weights are dropped, or P is kept in few bits",
    "subnormal_v": "subnormal numbers are flushed to zero",
    "constant_v": "low precision of delta, or of the row sum",
    "huge_unseen": "masked keys leak: they enter before the mask, or as 0 times their number",
}


def _of_distribution(subject: Subject, inputs: Inputs) -> Iterator[str]:
    """What an error points at that shows under these numbers, and not under normal ones."""
    cause = OF_DISTRIBUTION.get(inputs.distribution)
    if cause is None:
        return
    try:
        plain = subject.verdict(subject.inputs(inputs.case, "randn"))
    except (Refused, Failed):
        return
    if plain.ok:
        yield cause


def _of_problem(inputs: Inputs) -> Iterator[Hypothesis]:
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


def _of_gradient(name: str, inputs: Inputs, right: Exact) -> Iterator[Hypothesis]:
    """Changes of the backward alone, and the exact gradient of each."""
    case = inputs.case
    exact = {"dq": right.dq, "dk": right.dk, "dv": right.dv}[name]
    assert exact is not None
    assert inputs.dout is not None
    scale = case.softmax_scale
    yield f"{name} is all zeros", lambda: torch.zeros_like(exact)
    if name != "dv":
        yield f"{name} lacks the scale", lambda: exact / scale
        yield f"{name} has the scale twice", lambda: exact * scale
    yield f"the sign of {name} is wrong", lambda: -exact
    parts = _pieces(inputs, right)
    wide = parts.get(name, {})
    for cause, tensor in wide.items():
        yield cause, lambda tensor=tensor: tensor  # type: ignore[misc]


def _pieces(inputs: Inputs, right: Exact) -> dict[str, dict[str, Tensor]]:
    """Gradients under one planted fault each, dense in float64 (the case is small)."""
    case = inputs.case
    from attnbench.judge.oracle import Problem, attend, full_precision

    with full_precision():
        problem = Problem(inputs)
        rows = attend(problem, problem.whole())
    assert rows.ds is not None
    assert rows.dp is not None
    assert rows.delta is not None
    slope = 1.0 if rows.block.slope is None else rows.block.slope
    q, k = inputs.q.double(), inputs.k.double().repeat_interleave(case.group, 1)
    dout = problem.dout(problem.whole())
    scale = problem.scale

    def by_head(x: Tensor) -> Tensor:
        return x.unflatten(1, (case.kv_heads, case.group)).sum(2)

    def of(ds: Tensor) -> tuple[Tensor, Tensor]:
        return ds @ k * scale, by_head(ds.transpose(-1, -2) @ q) * scale

    found: dict[str, dict[str, Tensor]] = {"dq": {}, "dk": {}, "dv": {}}
    unmasked = torch.exp(
        _unmasked_scores(problem) - rows.lse.masked_fill(rows.lse == -math.inf, 0.0)[..., None]
    )
    faults = {
        "delta is left out of dS": rows.p * rows.dp * slope,
        "softcap's derivative is missing": rows.ds,
        "P is not masked in the backward": unmasked * (rows.dp - rows.delta[..., None]) * slope,
        "the delta of the first row (block) is used for others": rows.p
        * (rows.dp - rows.delta[:, :, :1, None])
        * slope,
    }
    for cause, ds in faults.items():
        dq, dk = of(ds)
        found["dq"][cause], found["dk"][cause] = dq, dk
    found["dv"]["P is not masked in the backward"] = by_head(unmasked.transpose(-1, -2) @ dout)
    raw = torch.exp(rows.block.s - rows.row_max.masked_fill(rows.row_max == -math.inf, 0.0)[..., None])
    found["dv"]["P is not normalised in dv"] = by_head(raw.transpose(-1, -2) @ dout)
    if case.group > 1:
        ds_heads = ((rows.ds * slope).transpose(-1, -2) @ q * scale).unflatten(1, (case.kv_heads, case.group))
        dv_heads = (rows.p.transpose(-1, -2) @ dout).unflatten(1, (case.kv_heads, case.group))
        for name, x in (("dk", ds_heads), ("dv", dv_heads)):
            found[name][
                f"{name} of a key head is that of the last query head, not the sum of its group (GQA)"
            ] = x[:, :, -1]
            found[name][
                f"{name} of a key head is that of the first query head, not the sum of its group (GQA)"
            ] = x[:, :, 0]
            found[name][f"{name} is averaged, not summed, over the group (GQA)"] = x.mean(2)
    return found


def _unmasked_scores(problem) -> Tensor:  # type: ignore[no-untyped-def]
    full = replace(problem.inputs, case=replace(problem.case, mask=Full()))
    whole = type(problem)(full)
    return whole.block(whole.whole()).s


def _patterns(subject: Subject, inputs: Inputs, answer: Answer, wrong: set[str]) -> Iterator[str]:
    """Where the error lies, and what it looks like."""
    case = inputs.case
    reference = subject.reference(inputs)
    try:
        again = subject.answer(inputs)
        for name, x in answer.tensors.items():
            if subject.backend.capabilities.deterministic and not same_bits(x, again.tensors[name]):
                yield f"{name} differs from call to call (a race, or memory that is not written)"
    except (Refused, Failed):
        yield "it fails when called again"
    if wrong == {"lse"}:
        yield "out is right and the LSE is wrong: its base, its maximum, or its precision"
    if not wrong & {"out", "lse"}:
        scores = sorted(wrong - {"dq", "dk", "dv"})
        if scores and len(scores) == len(wrong):
            yield f"only {', '.join(scores)} is wrong: the reduction or the chain of that gradient"
        else:
            yield f"the forward is right and {', '.join(sorted(wrong))} wrong: a fault of the backward alone"
    for name in ("out", "dq", "dk", "dv"):
        if name not in wrong or tuple(answer.tensors[name].shape) != reference.expected[name].value.shape:
            continue  # a sample of rows shows no pattern
        x, expected = answer.tensors[name], reference.expected[name]
        value, sigma = (torch.from_numpy(a).to(x.device) for a in (expected.value, expected.sigma))
        z = ((x.double() - value).abs() / sigma.clamp_min(1e-300)).nan_to_num(nan=math.inf)
        yield from _of_place(name, x, value, z > min(FAR, float(z.max()) / 2), case)
        return


def _of_place(name: str, x: Tensor, value: Tensor, off: Tensor, case: Case) -> Iterator[str]:
    length = x.shape[2]
    rows, lanes = off.any(3).any(1).any(0), off.any(2).any(1).any(0)
    heads, batches = off.any(3).any(2).any(0), off.any(3).any(2).any(1)
    what = "queries" if name in ("out", "dq") else "keys"
    if not bool(x.isfinite().all()):
        bad = ~x.isfinite()
        share = float(bad.double().mean())
        place = [int(i) for i in bad.nonzero()[0]]
        empty = not bool(allowed_pairs(case, str(x.device)).any(-1).all())
        cause = "rows without a key (0 / 0), " if empty else ""
        yield f"{name} is not finite at {place} ({share:.0%}): {cause}memory that is never written, or overflow"
    error = torch.where(x.isfinite(), x.double() - value, 0.0)
    without_key = ~allowed_pairs(case, str(x.device)).any(-1)  # [B, H, Q]
    if name in ("out", "dq") and bool(without_key.any()) and not bool((off.any(3) & ~without_key).any()):
        yield f"only rows without a key are off in {name}: they have to be 0 (not 0 / 0, nor a mean of V)"
    spread = float(rows.double().mean()) > 0.5
    slight = _root_mean_square(error) < SLIGHT * _root_mean_square(value)
    if bool(x.isfinite().all()) and slight and spread:
        yield f"errors in {name} are slight: low precision (a sum, an accumulator, P, delta or the LSE in few bits)"
    factor = float((x.double() * value).sum() / value.square().sum().clamp_min(1e-300))
    residue = (x.double() - factor * value).square().sum() / value.square().sum().clamp_min(1e-300)
    if float(residue) < 1e-3 and abs(factor - 1) > 0.02:
        yield f"{name} is {factor:.4g} times what is right: a constant factor"
    first, last = int(rows.nonzero()[0]), int(rows.nonzero()[-1])
    if int(heads.sum()) < heads.numel():
        yield f"only heads {[int(h) for h in heads.nonzero()[:4, 0]]} are off: head mapping (GQA) or a stride of heads"
    if int(batches.sum()) < batches.numel():
        yield f"only batch rows {[int(b) for b in batches.nonzero()[:4, 0]]} are off: a stride or limit of the batch"
    some = [int(d) for d in lanes.nonzero()[:, 0]]
    at_an_end = some[-1] + 1 - some[0] == len(some) and (some[0] if some[0] else some[-1] + 1) % 8 == 0
    if len(some) < lanes.numel() and at_an_end and float(off[..., some].double().mean()) > 0.3:
        yield f"only features {some[0]} to {some[-1]} are off: the tail of a padded head dim, or v_dim"
    if int(rows.sum()) < length:
        for tile in reversed(TILES):
            if first and first % tile == 0 and bool(rows[first:].float().mean() > 0.5):
                yield f"all {what} from {first} on, a multiple of {tile}, are off: the last tile, or tiles' rescaling"
                break
        else:
            yield f"only {what} {first} to {last} are off ({int(rows.sum())} of {length}): the mask's edge or a tail"
    elif 0.0 < float(off.double().mean()) < 0.9:
        share = float(off.double().mean())
        yield f"errors all over {name} ({share:.0%}): precision (a sum, P or a maximum in few bits)"
    else:
        tiles = ", or rescaling between tiles of keys" if case.k_len > TILES[0] else ""
        yield f"all of {name} is off: layout (strides, axes), softmax{tiles}"
