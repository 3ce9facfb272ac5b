"""Result sets for the tests of the page: of a few results, of two to compare, of 50,000; nothing is run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnbench.gate import ResultSet
from attnbench.sweep.result import Result

ROOFS = {"matmul_flops_per_s": {"fp32": 2e11, "bf16": 4e11}, "copy_bytes_per_s": 6e10, "exps_per_s": 2e9}
MACHINE = {
    "machine": "Model of a machine, 2 cores",
    "libraries": {"torch": "2.13.0"},
    "threads": 2,
    "roofs": ROOFS,
    "clock_policy": {"governor": "performance"},
}


def a_result(
    backend: str = "naive",
    milliseconds: float = 1.0,
    *,
    mask: str = "causal",
    length: int = 256,
    direction: str = "fwd",
    heads: int = 4,
    head_dim: int = 64,
    dtype: str = "fp32",
    seed: int = 1,
    **changes: Any,
) -> Result:
    """One result; per pass eight rounds of three samples just above `milliseconds`."""
    passes = ("fwd", "bwd") if direction == "fwd_bwd" else ("fwd",)
    rng = np.random.default_rng([seed, length, heads, len(mask)])
    pairs = heads * length * length
    fields: dict[str, Any] = {
        "case": {
            "batch": 1,
            "q_len": length,
            "k_len": length,
            "q_heads": heads,
            "kv_heads": heads,
            "head_dim": head_dim,
            "v_dim": head_dim,
            "dtype": dtype,
            "mask": mask,
            "scores": [],
            "direction": direction,
            "layout": "bhsd",
        },
        "case_id": f"q{length}-h{heads}-d{head_dim}-{dtype}-{mask.replace(' ', '')}-{direction}",
        "backend": backend,
        "status": "ok",
        "suite": "synthetic",
        "backend_version": "1.0",
        "kernel": f"{backend} kernel",
        "pairs": pairs,
        "flops": {name: pairs * 4 * head_dim * (1 + n) for n, name in enumerate(passes)},
        "least_bytes": dict.fromkeys(passes, 16 * heads * length * head_dim),
        "least_peak_bytes": 4 * heads * length * head_dim,
        "samples_ms": {
            name: (milliseconds * np.exp(np.abs(rng.normal(0, 0.01, (8, 3))))).tolist() for name in passes
        },
        "memory_bytes": {
            "fwd_peak": 8 * heads * length * head_dim,
            "bwd_peak": 9 * heads * length * head_dim,
        },
        "error_over_budget": 0.25,
        "errors": {"out": {"over_budget": 0.25, "worst": [0, 0, 1, 2]}, "lse": {"over_budget": 0.1}},
        "machine": "Model of a machine, 2 cores",
        "device": "cpu",
        "environment": "here",
        "commit": "0123456789ab",
        "started_at": "2026-01-02T03:04:05+00:00",
    }
    if changes.get("status", "ok") != "ok":
        fields |= {"samples_ms": {}, "memory_bytes": {}, "error_over_budget": None, "errors": {}}
    return Result(**(fields | changes))


def a_set(results: Sequence[Result], name: str = "set", **machine: Any) -> ResultSet:
    return ResultSet(results, {"here": MACHINE | machine, "there": MACHINE | {"threads": 64}}, name)


def small_set(name: str = "set", slower: float = 1.0) -> ResultSet:
    """Two masks, three lengths, both directions: `quick` wins, `bad` is wrong, `idle` refuses, `slow` has no time."""
    results = []
    for mask, length, direction in itertools.product(
        ("full", "causal"), (256, 512, 1024), ("fwd", "fwd_bwd")
    ):
        case: dict[str, Any] = {"mask": mask, "length": length, "direction": direction}
        size = length / 256
        results += [
            a_result("quick", size * slower, **case),
            a_result("plain", 1.5 * size, seed=2, **case),
            a_result(
                "bad", **case, status="wrong", reason="out is 37 budgets off", error_over_budget=37.0,
                errors={"out": {"over_budget": 37.0, "worst": [0, 1, 2, 3]}},
            ),
            a_result("idle", **case, status="refused", reason="has no such mask"),
            a_result("slow", **case, samples_ms={}, notes=["not timed: an interpreter"]),
        ]  # fmt: skip
    return a_set(results, name)


def many(count: int) -> ResultSet:
    """`count` results of 20 backends over masks, lengths, directions, heads, dims and dtypes."""
    masks = ("full", "causal", "causal & window(63, 0)", "prefix(64)", "documents(100, 28) & causal")
    lengths = [128 * 2**n for n in range(9)]
    axes = (("fwd", "fwd_bwd"), (4, 8, 16), (64, 128), ("fp32", "bf16"), masks, lengths)
    cases = itertools.cycle(itertools.product(*axes))
    results = []
    for number, (direction, heads, dim, dtype, mask, length) in zip(range(count // 20), cases, strict=False):
        case: dict[str, Any] = {
            "mask": mask,
            "direction": direction,
            "heads": heads,
            "head_dim": dim,
            "dtype": dtype,
            "length": length + number // 1080,  # every turn of the cycle has other lengths
        }
        for place in range(20):
            centre = (1 + place / 7) * length**1.5 / 3e3
            results.append(a_result(f"backend_{place:02d}", centre, seed=place, **case))
    return a_set(results)
