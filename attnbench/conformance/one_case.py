"""What does one case look like from inside? Mask, weights, tiles, and how far each query of each head is off."""

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

MOST_PAIRS = 1 << 26  # of one head: beyond, a dense picture of the mask does not fit a laptop
BLOCK = 64
BY_KEY = ("dk", "dv")
# What an implementation may raise; whatever else it does to this process is the sweep's to survive.
FAULTS = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Errors:
    """One tensor's errors: over [heads, length], the largest of a head's features; NaN where nothing was judged."""

    name: str
    over: NDArray[np.float64]
    is_by_key: bool


@dataclass(frozen=True)
class Seen:
    """One case from inside, for one batch row.

    mask         bool [heads or 1, Q, K]
    weights      exact weights of the chosen heads, float64 [chosen, Q, K]
    blocks       EMPTY, PARTIAL, FULL: int8 [heads or 1, query blocks, key blocks], of `block` tokens
    errors       by tensor, in units of what is allowed (wrong above 1)
    """

    case: Case
    backend: str
    batch_row: int
    heads: tuple[int, ...]
    verdict: Verdict
    mask: NDArray[np.bool_]
    weights: NDArray[np.float64]
    blocks: NDArray[np.int8]
    errors: tuple[Errors, ...]
    block: int = BLOCK


def look(
    case: Case,
    backend: str,
    *,
    device: str = "cpu",
    seed: int = 0,
    distribution: str = "randn",
    contract: str | None = None,
    heads: tuple[int, ...] = (),
    block: int = BLOCK,
) -> Seen:
    """Run a case once and see where it is off. Without `heads` the worst one and up to three others are chosen."""
    if case.q_len * case.k_len > MOST_PAIRS:
        raise AttnbenchError(
            f"{case.q_len} x {case.k_len} is too large to be drawn; take at most 8192 x 8192"
        )
    unknown = [h for h in heads if not 0 <= h < case.q_heads]
    if unknown:
        raise AttnbenchError(f"no head {unknown[0]}; the case has heads 0 to {case.q_heads - 1}")
    contestant = resolve(backend, contract=contract)
    refusal = contestant.refuses(case, device.split(":")[0])
    if refusal is not None:
        raise AttnbenchError(f"{backend} refuses this case: {refusal.reason}")
    inputs = make_inputs(case, seed, device, distribution)
    reference = make_reference(inputs, contract or contestant.capabilities.contract, seed)
    try:
        prepared = contestant.prepare(case, inputs.fresh())
        output = prepared.forward()
        gradients = prepared.backward(inputs.dout) if inputs.dout is not None else None
    except NotImplementedError as problem:
        raise AttnbenchError(f"{backend} refuses this case: {problem}") from problem
    except FAULTS as problem:
        raise AttnbenchError(
            f"{backend} gives nothing to draw: {type(problem).__name__}: {problem}"
        ) from problem
    verdict = judge(reference, output, gradients, inputs)
    given = {"out": output.out, "lse": output.lse}
    if gradients is not None:
        given |= {"dq": gradients.dq, "dk": gradients.dk, "dv": gradients.dv}
    whole = {n: _over(reference, n, x) for n, x in given.items() if x is not None and n in reference.expected}
    worst_batch, worst_head = _worst(case, whole)
    chosen = heads or _some_heads(case, worst_head)
    mask = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len)  # [B|1, H|1, Q, K]
    kinds = case.mask.block_map(case.extent, block, block).kinds
    return Seen(
        case,
        backend,
        worst_batch,
        chosen,
        verdict,
        mask[min(worst_batch, mask.shape[0] - 1)].numpy(),
        _weights(Problem(inputs), worst_batch, chosen),
        kinds[min(worst_batch, kinds.shape[0] - 1)],
        tuple(Errors(name, over[worst_batch], name in BY_KEY) for name, over in whole.items()),
        block,
    )


def _over(reference: Reference, name: str, given: Any) -> NDArray[np.float64]:
    """Errors over what is allowed, [B, heads, length], NaN where not judged, inf where not finite."""
    expected = reference.expected[name]
    got = given.detach().double().cpu().numpy()
    shape = got.shape[:3]
    found = np.full(shape, np.nan)
    if got.ndim == 4 and got.shape[3] != expected.value.shape[3]:
        raise AttnbenchError(f"{name} has {got.shape[3]} features, not {expected.value.shape[3]}")
    at = np.ix_(*expected.at)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.abs(got[at] - expected.value) / expected.sigma
    z = np.where(got[at] == expected.value, 0.0, np.where(np.isnan(z), np.inf, z))
    found[at] = (z.max(axis=-1) if z.ndim == 4 else z) / MAX_Z[reference.contract]
    return found


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
    """The exact weights of these heads of one batch row, [chosen, Q, K], a piece of the rows at a time."""
    case, device = problem.case, problem.device
    found = np.zeros((len(heads), case.q_len, case.k_len))
    whole = problem.whole()
    with full_precision():
        for n, head in enumerate(heads):
            kv = torch.tensor([head // case.group], device=device)
            for rows in whole.rows.split(max(1, (1 << 22) // (case.k_len * case.group))):
                part = Part(torch.tensor([batch_row], device=device), kv, rows, whole.columns)
                p = attend(problem, part, with_dq=False).p  # [1, group, R, K]
                found[n, rows.cpu().numpy()] = p[0, head % case.group].cpu().numpy()
    return found
