"""The gradients of the gradients, where they are claimed, against float64.

The exact ones are autograd's of a plain attention in float64, and their noise is that of float64 runs in which inputs
and weights are off by a random part of an ulp, and the two products by what adding up their terms in float32 leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attnbench.backend.differentiable import AutogradPrepared
from attnbench.conformance.properties.property import PropertyFailure, holds
from attnbench.conformance.subject import Raised, Refused, Subject, allowed_pairs
from attnbench.judge.rounding import UNITS
from attnbench.judge.verdict import LARGEST, MAX_Z
from attnbench.problem import Case, Inputs

RUNS = 16
FP32 = 2.0**-24


@holds("a second derivative that is missing, or of another formula", level="exhaustive")
def second_gradients_are_exact(subject: Subject) -> Iterator[PropertyFailure]:
    """Gradients by q, k, v and dO of a sum of dq, dk and dv are those of float64 within rounding."""
    if not subject.backend.capabilities.double_backward:
        raise Refused("claims no double backward")
    if not subject.backward:
        return
    for _, case in subject.any_case(q_heads=4):
        inputs = subject.inputs(case)
        assert inputs.dout is not None
        generator = torch.Generator().manual_seed(subject.seed + 1)
        by = tuple(torch.randn(x.shape, generator=generator).to(x) for x in (inputs.q, inputs.k, inputs.v))
        prepared = subject.backend.prepare(case, inputs)
        if not isinstance(prepared, AutogradPrepared):
            raise Raised("claims a double backward, and its gradients do not come from autograd")
        try:
            got = prepared.second_gradients(inputs.dout, by)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise Raised(f"raises {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        subject.answers += 1
        exact, sigma = _exact_and_noise(subject, inputs, by)
        for name, want in exact.items():
            z = ((got[name].double() - want).abs() / sigma[name].clamp_min(1e-300)).nan_to_num(nan=math.inf)
            worst = float(z.max())
            if worst > MAX_Z["dense"]:
                at = tuple(int(i) for i in (z == z.max()).nonzero()[0])
                reason = f"the second gradient of {name}{list(at)} is {float(got[name][at]):.6g} instead of "
                reason += f"{float(want[at]):.6g}, {worst:.3g} times its noise"
                yield PropertyFailure(case, name, at, reason, min(LARGEST, worst / MAX_Z["dense"]))
        return


def _exact_and_noise(
    subject: Subject, inputs: Inputs, by: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    case, allowed = inputs.case, allowed_pairs(inputs.case, subject.device)
    exact = _seconds(case, inputs, by, allowed, lambda shape: torch.zeros(()))
    generator = torch.Generator().manual_seed(subject.seed)

    def uniform(shape: torch.Size) -> Tensor:
        return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(subject.device)

    unit = UNITS[case.dtype]
    runs = [_seconds(case, inputs, by, allowed, uniform) for _ in range(RUNS)]
    sigma = {}
    for name, value in exact.items():
        moment = torch.stack([(run[name] - value).square() for run in runs]).mean(0)
        moment = (moment + moment.mean(-1, keepdim=True)) / 2
        sigma[name] = moment.sqrt() + unit / 2 * value.abs()
    return exact, sigma


def _seconds(
    case: Case,
    inputs: Inputs,
    by: tuple[Tensor, ...],
    allowed: Tensor,
    uniform: Callable[[torch.Size], Tensor],
) -> dict[str, Tensor]:
    """The second gradients in float64; `uniform` draws from -1 to 1 what each number is off by, in ulps."""
    assert inputs.dout is not None
    unit = UNITS[case.dtype]

    def rounded(x: Tensor) -> Tensor:
        return x * (1 + unit * uniform(x.shape))

    def product(equation: str, a: Tensor, b: Tensor) -> Tensor:
        # As in the contract: 2 u sqrt(L) sqrt(sum of (a b)^2) for L terms added up in float32.
        exact, squares = (
            torch.einsum(equation, a, b),
            torch.einsum(equation, a.detach() ** 2, b.detach() ** 2),
        )
        return exact + 2 * FP32 * a.shape[-1] ** 0.5 * squares.sqrt() * uniform(exact.shape)

    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "dout": inputs.dout}
    leaves = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    q, k, v, dout = (rounded(x) for x in leaves.values())
    k, v = (x.repeat_interleave(case.group, 1) for x in (k, v))
    s = rounded(product("bhqd,bhkd->bhqk", q, k) * case.softmax_scale)
    s = s.masked_fill(~allowed, -1e300)  # finite, so that a row without a key has gradients
    p = rounded(torch.softmax(s, -1)).masked_fill(~allowed, 0.0)
    out = rounded(product("bhqk,bhkd->bhqd", p, v))
    first = torch.autograd.grad(out, [leaves[name] for name in "qkv"], dout, create_graph=True)
    total = sum((g * b.double()).sum() for g, b in zip(first, by, strict=True))
    seconds = torch.autograd.grad(total, list(leaves.values()))  # type: ignore[arg-type]
    return dict(zip(leaves, seconds, strict=True))
