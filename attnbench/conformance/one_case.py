"""One case from inside: its mask, exact weights and tiles, and how far each query and head of a backend is off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnbench.backend.registry import resolve
from attnbench.errors import AttnbenchError
from attnbench.judge import Verdict, judge, make_reference
from attnbench.judge.oracle import attend
from attnbench.judge.reference import Reference
from attnbench.judge.scores import Part, Problem, full_precision
from attnbench.judge.verdict import MAX_Z
from attnbench.problem import Case, make_inputs

MOST_PAIRS = 1 << 26  # per head: a dense picture of a larger mask does not fit a laptop
BLOCK = 64
BY_KEY = ("dk", "dv")
# What a backend may raise; a sweep isolates backends in processes, this does not.
BACKEND_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
)


@dataclass(frozen=True)
class ErrorMap:
    """The errors of one tensor over what is allowed, [heads, length]: the largest over features, NaN if not judged."""

    name: str
    over: NDArray[np.float64]
    is_by_key: bool


@dataclass(frozen=True)
class CaseView:
    """One batch row of one case.

    mask         bool [heads or 1, Q, K]
    weights      exact weights of the chosen heads, float64 [chosen, Q, K]
    blocks       EMPTY, PARTIAL or FULL, int8 [heads or 1, query blocks, key blocks]; a block has `block` tokens
    errors       per tensor, over what is allowed: above 1 is wrong
    """

    case: Case
    backend: str
    batch_row: int
    heads: tuple[int, ...]
    verdict: Verdict
    mask: NDArray[np.bool_]
    weights: NDArray[np.float64]
    blocks: NDArray[np.int8]
    errors: tuple[ErrorMap, ...]
    block: int = BLOCK


def inspect_case(
    case: Case,
    backend: str,
    *,
    device: str = "cpu",
    seed: int = 0,
    distribution: str = "randn",
    contract: str | None = None,
    heads: tuple[int, ...] = (),
    block: int = BLOCK,
) -> CaseView:
    """Run a backend once on a case and locate its errors; `heads` defaults to the worst and up to three others."""
    if case.q_len * case.k_len > MOST_PAIRS:
        raise AttnbenchError(f"{case.q_len} x {case.k_len} is too large to draw; take at most 8192 x 8192")
    unknown = [h for h in heads if not 0 <= h < case.q_heads]
    if unknown:
        raise AttnbenchError(f"no head {unknown[0]}; the case has heads 0 to {case.q_heads - 1}")
    implementation = resolve(backend, contract=contract)
    refusal = implementation.refuses(case, device.split(":")[0])
    if refusal is not None:
        raise AttnbenchError(f"{backend} refuses this case: {refusal.reason}")
    inputs = make_inputs(case, seed, device, distribution)
    reference = make_reference(inputs, contract or implementation.capabilities.contract, seed)
    try:
        prepared = implementation.prepare(case, inputs.fresh())
        output = prepared.forward()
        gradients = prepared.backward(inputs.dout) if inputs.dout is not None else None
    except NotImplementedError as error:
        raise AttnbenchError(f"{backend} refuses this case: {error}") from error
    except BACKEND_ERRORS as error:
        raise AttnbenchError(f"{backend} gives nothing to draw: {type(error).__name__}: {error}") from error
    verdict = judge(reference, output, gradients, inputs)
    tensors = {"out": output.out, "lse": output.lse}
    if gradients is not None:
        tensors |= {"dq": gradients.dq, "dk": gradients.dk, "dv": gradients.dv}
    over = {
        n: _over(reference, n, x) for n, x in tensors.items() if x is not None and n in reference.expected
    }
    worst_batch, worst_head = _worst(case, over)
    chosen = heads or _some_heads(case, worst_head)
    mask = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len)  # [B|1, H|1, Q, K]
    kinds = case.mask.block_map(case.extent, block, block).kinds
    return CaseView(
        case,
        backend,
        worst_batch,
        chosen,
        verdict,
        mask[min(worst_batch, mask.shape[0] - 1)].numpy(),
        _weights(Problem(inputs), worst_batch, chosen),
        kinds[min(worst_batch, kinds.shape[0] - 1)],
        tuple(ErrorMap(name, values[worst_batch], name in BY_KEY) for name, values in over.items()),
        block,
    )


def _over(reference: Reference, name: str, tensor: Any) -> NDArray[np.float64]:
    """Errors over what is allowed, [B, heads, length]: NaN if not judged, inf if not finite."""
    expected = reference.expected[name]
    got = tensor.detach().double().cpu().numpy()
    over = np.full(got.shape[:3], np.nan)
    if got.ndim == 4 and got.shape[3] != expected.value.shape[3]:
        raise AttnbenchError(f"{name} has {got.shape[3]} features, not {expected.value.shape[3]}")
    at = np.ix_(*expected.at)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.abs(got[at] - expected.value) / expected.sigma
    z = np.where(got[at] == expected.value, 0.0, np.where(np.isnan(z), np.inf, z))
    over[at] = (z.max(axis=-1) if z.ndim == 4 else z) / MAX_Z[reference.contract]
    return over


def _worst(case: Case, over: dict[str, NDArray[np.float64]]) -> tuple[int, int]:
    """The batch row and the query head with the largest error."""
    largest, place = -1.0, (0, 0)
    for name, values in over.items():
        filled = np.nan_to_num(values, nan=-1.0, posinf=np.finfo(np.float64).max)
        b, h, _ = np.unravel_index(int(filled.argmax()), filled.shape)
        if filled.max() > largest:
            largest = float(filled.max())
            place = (int(b), int(h) * (case.group if name in BY_KEY else 1))
    return place


def _some_heads(case: Case, worst: int) -> tuple[int, ...]:
    others = dict.fromkeys((worst, 0, case.q_heads - 1, case.q_heads // 2))
    return tuple(sorted(others))


def _weights(problem: Problem, batch_row: int, heads: tuple[int, ...]) -> NDArray[np.float64]:
    """The exact weights of these heads of one batch row, [chosen, Q, K], computed in pieces of rows."""
    case, device = problem.case, problem.device
    weights = np.zeros((len(heads), case.q_len, case.k_len))
    whole = problem.whole()
    with full_precision():
        for n, head in enumerate(heads):
            kv = torch.tensor([head // case.group], device=device)
            for rows in whole.rows.split(max(1, (1 << 22) // (case.k_len * case.group))):
                part = Part(torch.tensor([batch_row], device=device), kv, rows, whole.columns)
                p = attend(problem, part, with_dq=False).p  # [1, group, R, K]
                weights[n, rows.cpu().numpy()] = p[0, head % case.group].cpu().numpy()
    return weights
