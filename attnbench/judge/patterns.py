"""Where does an error lie, and what does that look like? Rows, heads, features, tiles; by a factor or at random."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attnbench.judge.hypotheses import TILES
from attnbench.judge.protocol import same_bits
from attnbench.judge.subject import Answer, Failed, Refused, Subject, allowed_pairs
from attnbench.problem import Case, Inputs

SLIGHT = (
    0.08  # root mean square of an error relative to the answer's: what few bits leave, not another formula
)
FAR = 12.0  # an element is off when it is that far in units of its noise


def root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def patterns(subject: Subject, inputs: Inputs, answer: Answer, wrong: set[str]) -> Iterator[str]:
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
    slight = root_mean_square(error) < SLIGHT * root_mean_square(value)
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
