"""Guesses from the pattern of an error: which rows, heads, features or tiles, by a factor or at random."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnbench.conformance.diagnosis.observation import Observation
from attnbench.conformance.protocol import same_bits
from attnbench.conformance.subject import Subject
from attnbench.faults.causes import Guess
from attnbench.faults.dense import TILES
from attnbench.problem import Case

SLIGHT = 0.08  # an error of few bits, not of another formula, is at most this share of the answer (root mean square)
FAR = 12.0  # an element is off if its error is this many times its noise


def root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def when_called_again(subject: Subject, observation: Observation) -> Iterator[Guess]:
    """Guesses from further calls on the same inputs."""
    inputs = observation.inputs
    first = {name: x.clone() for name, x in observation.answer.tensors.items() if x is not None}
    before = inputs.checksum()
    try:
        again = subject.answer(inputs)
        later = subject.backend.prepare(inputs.case, inputs)
        out = later.forward().out
        kept = out.clone()
        later.forward()
    except Exception:  # noqa: BLE001 - any exception of a backend, which the guess names
        yield Guess("protocol", "it fails when called again")
        return
    if inputs.checksum() != before:
        yield Guess("protocol", "the inputs are changed in place")
        return
    if not same_bits(out, kept):
        words = (
            "out is written after the call has returned: work that was not waited for, or a buffer used again"
        )
        yield Guess("protocol", words)
    for name, x in first.items():
        if _beyond_noise(x, again.tensors[name], observation.reference.expected[name].sigma):
            words = f"{name} differs from call to call (a race, or memory that is not written)"
            yield Guess("nondeterministic", words)


def is_slight(observation: Observation) -> bool:
    """Whether every wrong tensor is off by few bits, not by another formula."""
    for name in observation.wrong & observation.tensors.keys():
        x, expected = observation.tensors[name], observation.reference.expected[name]
        if tuple(x.shape) == expected.value.shape:
            value = torch.from_numpy(expected.value).to(x.device).nan_to_num()
            error = x.double().nan_to_num() - value
            if not bool(x.isfinite().all()) or root_mean_square(error) > SLIGHT * root_mean_square(value):
                return False
    return True


def _beyond_noise(x: Tensor, again: Tensor, sigma: NDArray[np.float64]) -> bool:
    """Whether two calls are further apart than sums in another order are."""
    apart = torch.where((x == again) | (x.isnan() & again.isnan()), 0.0, x.double() - again.double())
    return root_mean_square(apart.nan_to_num(nan=math.inf)) > root_mean_square(torch.from_numpy(sigma))


def patterns(observation: Observation) -> Iterator[Guess]:
    """Where the error lies, and what it looks like."""
    case, wrong = observation.case, observation.wrong
    if "lse" in wrong and "out" not in wrong:
        yield from _of_lse(observation)
    backward: list[Guess] = []
    if not observation.is_wrong_in_forward:
        scores = sorted(wrong - {"dq", "dk", "dv"})
        if scores and len(scores) == len(wrong):
            words = f"only {', '.join(scores)} is wrong: the reduction or the chain of that gradient"
            yield Guess("score change", words)
        backward = [of_backward(wrong)] if wrong else []
    for name in ("out", "dq", "dk", "dv"):
        if name not in wrong:
            continue
        x, expected = observation.answer.tensors[name], observation.reference.expected[name]
        if tuple(x.shape) != expected.value.shape:
            continue  # a sample of rows shows no pattern
        value, sigma = (torch.from_numpy(a).to(x.device) for a in (expected.value, expected.sigma))
        z = ((x.double() - value).abs() / sigma.clamp_min(1e-300)).nan_to_num(nan=math.inf)
        off = z > min(FAR, float(z.max()) / 2)
        yield from _not_finite(name, x, observation)
        yield from _of_row_factors(name, x, value, sigma)
        yield from _slight(name, x, value, off)
        yield from backward
        yield from _of_rows(name, x, value, off, observation)
        yield from _of_place(name, x, value, off, case)
        return
    yield from backward


def of_backward(wrong: frozenset[str]) -> Guess:
    """The guess if the forward is right."""
    words = f"the forward is right and {', '.join(sorted(wrong))} wrong: a fault of the backward alone"
    return Guess("gradients only", words)


def _of_lse(observation: Observation) -> Iterator[Guess]:
    """The LSE is wrong beside a right out."""
    lse, right = observation.answer.output.lse, torch.from_numpy(observation.reference.expected["lse"].value)
    words = "out is right and the LSE is wrong: its base, its maximum, or its precision"
    if lse is None or lse.shape != right.shape:
        yield Guess("lse", words)
        return
    lse = lse.double().cpu()
    if any(score.kind == "sink" for score in observation.case.scores) and bool(
        (lse.isfinite() != right.isfinite()).any()
    ):
        yield Guess("sink", "the LSE overflows beside the sink, as if the sink were left out of the maximum")
    yield Guess("lse", words)
    apart = torch.where(lse == right, 0.0, lse - right).abs()
    if float(apart.max()) < SLIGHT:
        words = "the LSE is slightly off: low precision (the scores, the row sum or log2(e) in few bits)"
        yield Guess("low precision", words)


def _not_finite(name: str, x: Tensor, observation: Observation) -> Iterator[Guess]:
    """Which rows are not finite, and what these rows have in common."""
    bad = ~x.isfinite()
    if not bool(bad.any()):
        return
    place, share = [int(i) for i in bad.nonzero()[0]], float(bad.double().mean())
    at = f"{name} is not finite at {place} ({share:.0%})"
    case, allowed = observation.case, observation.allowed.to(x.device)
    empty = ~allowed.any(-1)  # [B, H, Q]
    if name in ("out", "dq"):
        rows = bad.any(-1)
        if bool(empty.any()) and not bool((rows & ~empty).any()):
            yield Guess("empty rows", f"{at}: rows without a key, and only those (0 / 0, or -inf - -inf)")
        for tile in TILES:
            late = ~allowed[..., :tile].any(-1)
            if bool(late.any()) and bool((rows == late).all()):
                words = f"{at}: rows whose first tile of {tile} keys is masked as a whole (-inf - -inf)"
                yield Guess("online softmax", words)
                return
        whole = bad.all(-1).any(1).any(0)
        first = int(whole.nonzero()[0]) if bool(whole.any()) else 0
        if first and bool(whole[first:].all()) and not bool(whole[:first].any()):
            yield Guess("missing rows", f"{at}: every row from {first} on, memory that is never written")
            return
    elif bool(empty.any()):
        yield Guess("empty rows", f"{at}: rows without a key give NaN (-inf - -inf), which spreads over keys")
    if share == 1.0 and any(case.k_len % tile for tile in TILES[:3]):
        yield Guess("tail tile", f"{at}: all of it, as if 0 met NaN in memory past the last key")
        yield Guess("split merge", f"{at}: all of it, as if a split or tile without keys gave 0 / 0")
    else:
        yield Guess(
            "online softmax", f"{at}: overflow, as without the row's maximum, or memory that is never written"
        )
        if any(score.kind == "sink" for score in case.scores):
            yield Guess("sink", f"{at}: exp of the sink overflows, as if it were left out of the maximum")


def _of_row_factors(name: str, x: Tensor, value: Tensor, sigma: Tensor) -> Iterator[Guess]:
    """Each row is right but for a factor of its own, as a wrong row sum, maximum or LSE gives it."""
    if name not in ("out", "dq") or x.shape[3] < 8 or not bool(x.isfinite().all()):
        return

    def beyond(right: Tensor) -> float:
        return root_mean_square(((x.double() - right).abs() - 4 * sigma).clamp_min(0.0))

    factor = (x.double() * value).sum(-1, keepdim=True) / value.square().sum(-1, keepdim=True).clamp_min(
        1e-300
    )
    is_of_rows = float(factor.min()) > 0.1 and factor.numel() > 1 and float(factor.std()) > 0.0
    if is_of_rows and beyond(factor * value) < 0.1 * beyond(value):
        few_bits = root_mean_square(factor - 1) < SLIGHT
        what = "the row sum, the LSE or the maximum of the forward"
        words = f"each row of {name} is off by a factor of its own: {what} is off"
        words += " by few bits (P = exp(S - LSE) in the forward does that)" if few_bits else ""
        yield Guess("low precision" if few_bits else "online softmax", words)


def _slight(name: str, x: Tensor, value: Tensor, off: Tensor) -> Iterator[Guess]:
    """Errors everywhere, all of them small: few bits somewhere."""
    error = torch.where(x.isfinite(), x.double() - value, 0.0)
    spread = float(off.any(3).any(1).any(0).double().mean()) > 0.5
    if bool(x.isfinite().all()) and spread and root_mean_square(error) < SLIGHT * root_mean_square(value):
        words = f"errors in {name} are slight: low precision (a sum, an accumulator, P, delta or the LSE in few bits)"
        yield Guess("low precision", words)


def _of_rows(name: str, x: Tensor, value: Tensor, off: Tensor, observation: Observation) -> Iterator[Guess]:
    """What the rows that are off hold."""
    without_key = ~observation.allowed.to(x.device).any(-1)  # [B, H, Q]
    rows = off.any(3)
    if name in ("out", "dq") and bool(without_key.any()) and not bool((rows & ~without_key).any()):
        words = f"only rows without a key are off in {name}: they have to be 0 (not 0 / 0, nor a mean of V)"
        yield Guess("empty rows", words)
    held = x.double()[rows]
    if len(held) and x.shape[3] > 1 and bool((held == held[:, :1]).all()) and bool(held.isfinite().all()):
        words = (
            f"the rows of {name} that are off hold one number, {float(held[0, 0]):g}: they are never written"
        )
        yield Guess("missing rows", words)
    if name == "out" and 0 < int(rows[0, 0].sum()) <= 64:
        at = rows[0, 0].nonzero()[:, 0]
        near = torch.cdist(x[0, 0, at].double().nan_to_num(), value[0, 0]).min(-1)
        elsewhere = (near.values < 0.05 * value[0, 0].norm(dim=-1).mean()) & (near.indices != at)
        if bool(elsewhere.all()):
            words = (
                f"row {int(at[0])} holds the answer of row {int(near.indices[0])}: stored at the wrong place"
            )
            yield Guess("layout", words)
    numbers, right = (y.flatten().sort().values for y in (x.double().nan_to_num(), value))
    if float(rows.double().mean()) > 0.3 and root_mean_square(numbers - right) < 0.02 * root_mean_square(
        value
    ):
        yield Guess("layout", f"{name} holds the right numbers at the wrong places (axes, heads or strides)")


def _of_place(name: str, x: Tensor, value: Tensor, off: Tensor, case: Case) -> Iterator[Guess]:
    """Which rows, heads, batch rows and features are off."""
    length = x.shape[2]
    rows, features = off.any(3).any(1).any(0), off.any(2).any(1).any(0)
    heads, batches = off.any(3).any(2).any(0), off.any(3).any(2).any(1)
    what = "queries" if name in ("out", "dq") else "keys"
    factor = float((x.double() * value).sum() / value.square().sum().clamp_min(1e-300))
    residue = (x.double() - factor * value).square().sum() / value.square().sum().clamp_min(1e-300)
    if float(residue) < 1e-3 and abs(factor - 1) > 0.02:
        yield Guess("scale", f"{name} is {factor:.4g} times what is right: a constant factor")
    if int(heads.sum()) < heads.numel():
        some = [int(h) for h in heads.nonzero()[:4, 0]]
        yield Guess("gqa mapping", f"only heads {some} of {name} are off")
    if int(batches.sum()) < batches.numel():
        some = [int(b) for b in batches.nonzero()[:4, 0]]
        yield Guess("layout", f"only batch rows {some} of {name} are off")
    some = [int(d) for d in features.nonzero()[:, 0]]
    at_an_end = some[-1] + 1 - some[0] == len(some) and (some[0] if some[0] else some[-1] + 1) % 8 == 0
    if len(some) < features.numel() and at_an_end and float(off[..., some].double().mean()) > 0.3:
        words = f"only features {some[0]} to {some[-1]} of {name} are off"
        yield Guess("layout", words)
    if int(rows.sum()) < length:
        first, last = int(rows.nonzero()[0]), int(rows.nonzero()[-1])
        for tile in reversed(TILES):
            if first and first % tile == 0 and bool(rows[first:].float().mean() > 0.5):
                words = f"all {what} from {first} on, a multiple of {tile}, are off in {name}"
                yield Guess("tail tile", words)
                break
        else:
            words = f"only {what} {first} to {last} are off in {name} ({int(rows.sum())} of {length})"
            yield Guess("mask boundary", words)
    elif 0.0 < float(off.double().mean()) < 0.9:
        share = float(off.double().mean())
        yield Guess("unknown", f"no known pattern: errors all over {name} ({share:.0%})")
    else:
        yield Guess("unknown", f"no known pattern: all of {name} is off")
