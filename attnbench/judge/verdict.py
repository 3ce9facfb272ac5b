"""The verdict on one output: its errors in units of the noise that the case allows, against the exact answer.

z = |x - exact| / sigma for each element, sigma from the rounding model. A tensor is wrong if max z > 8 (DENSE: 12) or
rms z > 3, if it is finite where the exact answer is not or the other way round, and if dtype, shape or device are not
as requested. Why these limits: the noise is a sum of many bounded terms, so nearly normal; among 10^9 judged elements a
right backend's largest |z| is about 6. 8 leaves a third for the uncertainty of sigma after sixteen runs; DENSE backends
round in orders of their own, some steps twice, and get 12. A right backend that rounds at every allowed point has an
rms z of at most 1; 3 allows sigma to be wrong by that factor everywhere.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.backend.interface import Gradients, Output
from attnbench.errors import AttnbenchError
from attnbench.judge.reference import Expected, Reference
from attnbench.judge.scores import take
from attnbench.problem.case import Case
from attnbench.problem.inputs import Inputs, torch_dtype

MAX_Z: Mapping[str, float] = {"flash": 8.0, "flash_splits": 8.0, "dense": 12.0}
RMS_Z = 3.0
LARGEST = sys.float_info.max  # stands for an infinite error where JSON needs a number


@dataclass(frozen=True, kw_only=True)
class TensorError:
    """How far one tensor is off, and where most: `over_budget` is right up to 1, LARGEST for an infinite error.

    A tensor of the wrong form has no `max_z`; one with a stray NaN or infinity has no `expected` and `sigma`.
    """

    over_budget: float
    max_z: float | None = None
    rms_z: float | None = None
    worst: tuple[int, ...] = ()  # index of the element that is most off
    got: float | str | None = None  # its value; a string if not finite, for JSON
    expected: float | str | None = None
    sigma: float | None = None  # its noise
    share_wrong: float | None = None
    reason: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.over_budget > 1

    def to_json(self) -> dict[str, Any]:
        """What a stored result holds: the fields that are known."""
        return {name: value for name, value in vars(self).items() if value is not None} | {
            "worst": list(self.worst)
        }


@dataclass(frozen=True)
class Verdict:
    """Right or wrong, and by how much: `errors` by tensor; `reason` is that of the largest, empty if right."""

    reason: str
    errors: dict[str, TensorError] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.reason

    @property
    def wrong(self) -> dict[str, TensorError]:
        """The errors of the tensors that are wrong."""
        return {name: error for name, error in self.errors.items() if error.is_wrong}

    @property
    def error_over_budget(self) -> float:
        """The largest over_budget."""
        return max((error.over_budget for error in self.errors.values()), default=0.0)


def judge(reference: Reference, output: Output, gradients: Gradients | None, inputs: Inputs) -> Verdict:
    """Compare an answer with the reference: the form of every tensor, then its values."""
    case = inputs.case
    if reference.case_id != case.id:
        raise AttnbenchError(f"the reference is of {reference.case_id}, not of {case.id}")
    tensors: dict[str, Tensor | None] = {"out": output.out}
    if output.lse is not None:
        tensors["lse"] = output.lse
    if case.needs_backward:
        if gradients is None:
            return Verdict("no gradients came back, and the case asks for them")
        tensors |= {"dq": gradients.dq, "dk": gradients.dk, "dv": gradients.dv}
        wanted = [s.gradient for s in inputs.scores if s.gradient is not None and s.tensor is not None]
        tensors |= {name: gradients.scores.get(name) for name in wanted}
    shapes = _shapes(case, inputs)
    errors: dict[str, TensorError] = {}
    reasons = []
    for name, tensor in tensors.items():
        dtype = torch.float32 if name == "lse" else torch_dtype(case.dtype)
        fault = _form(name, tensor, shapes[name], dtype, inputs.device)
        if fault or tensor is None:
            errors[name] = TensorError(over_budget=LARGEST, reason=fault)
            reasons.append((LARGEST, fault))
            continue
        error = _values(name, tensor.detach(), reference.expected[name], reference.contract)
        errors[name] = error
        if error.is_wrong:
            reasons.append((error.over_budget, error.reason))
    return Verdict(max(reasons, key=lambda r: r[0])[1] if reasons else "", errors)


def _shapes(case: Case, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    named = {
        "out": (case.batch, case.q_heads, case.q_len, case.v_dim),
        "lse": (case.batch, case.q_heads, case.q_len),
        "dq": (case.batch, case.q_heads, case.q_len, case.head_dim),
        "dk": (case.batch, case.kv_heads, case.k_len, case.head_dim),
        "dv": (case.batch, case.kv_heads, case.k_len, case.v_dim),
    }
    return named | {
        s.gradient: tuple(s.tensor.shape) for s in inputs.scores if s.gradient and s.tensor is not None
    }


def _form(
    name: str, x: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str:
    if x is None:
        return f"{name} is missing: no gradient came back"
    if not isinstance(x, Tensor):
        return f"{name} is a {type(x).__name__}, not a tensor"
    if tuple(x.shape) != shape:
        return f"{name} has shape {tuple(x.shape)}, not {shape}"
    if x.dtype != dtype:
        return f"{name} is {x.dtype}, not {dtype}"
    if x.device.type != device.type:
        return f"{name} lies on {x.device}, the inputs on {device}"
    return ""


def _values(name: str, x: Tensor, expected: Expected, contract: str) -> TensorError:
    at = tuple(torch.from_numpy(index).to(x.device) for index in expected.at)
    value = torch.from_numpy(expected.value).to(x.device)
    sigma = torch.from_numpy(expected.sigma).to(x.device)
    largest = torch.finfo(x.dtype).max
    # An exact value beyond the dtype's largest number rounds to infinity, and is right as infinity.
    value = torch.where(value.abs() > largest, value.sign() * math.inf, value)
    stray = _stray(name, x, bool(value.isfinite().all()) or name == "lse")
    if stray is not None:
        return stray
    got = take(x, *at).double()
    same = got == value  # also where both are the same infinity
    error = torch.where(same, 0.0, (got - value).abs())
    z = torch.where(same, 0.0, error / sigma).nan_to_num_(nan=math.inf)
    z = torch.where(~same & (got.isfinite() != value.isfinite()), math.inf, z)
    max_z, rms_z = float(z.max()), float(z.square().mean().sqrt())
    place = np.unravel_index(int(z.argmax()), tuple(z.shape))
    worst = [int(index[p]) for index, p in zip(expected.at, place, strict=False)] + [
        int(p) for p in place[len(at) :]
    ]
    limit = MAX_Z[contract]
    over = min(LARGEST, max(max_z / limit, rms_z / RMS_Z))
    spot = f"{name}{worst}"
    numbers = f"{float(got[place]):.6g} instead of {float(value[place]):.6g}"
    if max_z > limit:
        reason = f"{spot} is {numbers}, {max_z:.3g} times its noise ({limit:g} is allowed)"
    else:
        mean = f"{name} is off by {rms_z:.3g} times its noise in the mean ({RMS_Z:g} is allowed)"
        reason = f"{mean}; worst {spot}: {numbers}"
    return TensorError(
        over_budget=over,
        max_z=min(LARGEST, max_z),
        rms_z=min(LARGEST, rms_z),
        worst=tuple(worst),
        got=_number(float(got[place])),
        expected=_number(float(value[place])),
        sigma=float(sigma[place]),
        share_wrong=float((z > limit).double().mean()),
        reason=reason if over > 1 else "",
    )


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else repr(x)


def _stray(name: str, x: Tensor, is_finite: bool) -> TensorError | None:
    """A non-finite value anywhere in the tensor, in judged rows or not, that no exact answer can have."""
    bad = (x.isnan() | (x == math.inf)) if name == "lse" else ~x.isfinite() if is_finite else x.isnan()
    if not bool(bad.any()):
        return None
    worst = [int(i) for i in bad.nonzero()[0]]
    got = float(x[tuple(worst)])
    many = f"{int(bad.sum())} of {x.numel()} elements are like it"
    return TensorError(
        over_budget=LARGEST,
        max_z=LARGEST,
        rms_z=LARGEST,
        worst=tuple(worst),
        got=repr(got),
        share_wrong=float(bad.double().mean()),
        reason=f"{name}{worst} is {got} where the exact answer is finite; {many}",
    )
