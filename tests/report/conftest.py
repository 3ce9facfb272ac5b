"""Plausible results without running anything: a machine with a matrix rate, backends of fixed costs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from attnbench.problem import Case, parse_mask
from attnbench.sweep.result import Result

# name: (share of the machine's rate, start-up ms, whether scores are materialized, refuses masks)
MODEL: dict[str, tuple[float, float, bool, tuple[str, ...]]] = {
    "naive": (0.10, 0.03, True, ()),
    "sdpa_math": (0.12, 0.04, True, ()),
    "sdpa_flash": (0.62, 0.01, False, ()),
    "flex": (0.55, 0.09, False, ()),
    "per_head": (0.07, 0.08, True, ()),
    "torch_mha": (0.11, 0.10, True, ("window",)),
    "mask_multiply": (0.05, 0.05, True, ()),
}
RATE = 150e9
ROOFS = {"matmul_flops_per_s": {"fp32": RATE, "bf16": RATE / 2}, "copy_bytes_per_s": 2e10, "exps_per_s": 4e9}


def _a_result(case: Case, backend: str = "naive", **changes: Any) -> Result:
    """One plausible result; `changes` are fields of Result."""
    rate, start_ms, dense, refused = MODEL.get(backend, (0.3, 0.05, False, ()))
    rng = np.random.default_rng(zlib.crc32(f"{case.id} {backend}".encode()))
    passes: tuple[Literal["fwd", "bwd"], ...] = ("fwd", "bwd") if case.needs_backward else ("fwd",)
    fields: dict[str, Any] = {
        "case": case.to_json(),
        "case_id": case.id,
        "backend": backend,
        "status": "ok",
        "suite": "synthetic",
        "backend_version": "1.0",
        "kernel": backend,
        "contract": "flash",
        "pairs": case.pairs,
        "least_peak_bytes": case.least_peak_bytes,
        "flops": {name: case.flops(name) for name in passes},
        "least_bytes": {name: case.least_bytes(name) for name in passes},
        "device": "cpu",
        "machine": "Model of a machine, 2 cores",
        "environment": "e1",
        "commit": "0123456789ab",
        "started_at": "2026-01-02T03:04:05+00:00",
    }
    if any(kind in str(case.mask) for kind in refused):
        reason = "refused", f"has no {refused[0]} mask"
        return Result(**(fields | {"status": reason[0], "reason": reason[1]} | changes))
    scores_bytes = 4 * case.batch * case.q_heads * case.q_len * case.k_len if dense else 0
    work = case.batch * case.q_heads * case.q_len * case.k_len if dense else case.pairs
    samples = {}
    for name in passes:
        per_pair = case.flops(name) / max(case.pairs, 1)
        centre = start_ms + 1e3 * work * per_pair / (rate * RATE)
        rounds = centre * np.exp(rng.normal(0, 0.01, (6, 1)) + np.abs(rng.normal(0, 0.03, (6, 4))))
        samples[name] = rounds.tolist()
    memory = {"fwd_peak": scores_bytes + int(1.1 * case.out_elements * case.item_bytes)}
    if case.needs_backward:
        memory |= {
            "saved": memory["fwd_peak"],
            "bwd_peak": int(scores_bytes * 2 + 1.2 * case.least_peak_bytes),
        }
    share = float(rng.uniform(0.1, 0.8))
    fields |= {
        "samples_ms": samples,
        "calls_per_sample": dict.fromkeys(passes, 1),
        "memory_bytes": memory,
        "prepare_ms": {"mask": 0.3, "compile": 12.0},
        "error_over_budget": share,
        "errors": {"out": {"over_budget": share, "worst": [0, 0, 0, 0]}},
    }
    merged = fields | changes
    if merged["status"] != "ok":
        merged |= {name: {} for name in ("samples_ms", "memory_bytes") if name not in changes}
        if merged["status"] != "wrong":
            merged |= {"error_over_budget": None, "errors": {}}
    return Result(**merged)


def _sweep(
    lengths: Sequence[int] = (256, 512, 1024, 2048, 4096),
    masks: Sequence[str] = ("full", "causal", "causal & window(255, 0)"),
    backends: Sequence[str] = tuple(MODEL),
    directions: Sequence[str] = ("fwd_bwd",),
) -> list[Result]:
    """A sweep over lengths x masks x backends x directions; `mask_multiply` is wrong on every mask but full."""
    results = []
    for mask in masks:
        for length in lengths:
            for direction in directions:
                case = Case(
                    q_len=length,
                    k_len=length,
                    q_heads=8,
                    head_dim=64,
                    dtype="fp32",
                    mask=parse_mask(mask),
                    direction=direction,  # type: ignore[arg-type]
                )
                for backend in backends:
                    wrong = backend == "mask_multiply" and mask != "full"
                    changes: dict[str, Any] = {}
                    if wrong:
                        reason = "out is 37 budgets off at [0, 3, 17, 5]"
                        changes = {"status": "wrong", "reason": reason, "error_over_budget": 37.0}
                    results.append(_a_result(case, backend, **changes))
                reason = "xformers is not installed; pip install xformers"
                results.append(_a_result(case, "xformers", status="unavailable", reason=reason))
    return results


@pytest.fixture
def a_result() -> Callable[..., Result]:
    return _a_result


@pytest.fixture
def sweep() -> Callable[..., list[Result]]:
    return _sweep


@pytest.fixture
def roofs() -> dict[str, Any]:
    return ROOFS
