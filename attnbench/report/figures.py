"""Every derived figure of one result: medians, rates, shares of the roofs, peaks; raw samples in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from attnbench.sweep.result import Result

LOW, HIGH = 0.1, 0.9  # the quantiles drawn as a chart's band
WARM_L2, GRAPH = "cuda_events_warm_l2", "cuda_graph_rotating"  # the other clocks of a GPU


@dataclass(frozen=True, kw_only=True)
class PassFigures:
    """The figures of one pass ("fwd" or "bwd") of one result; None for what was not measured."""

    samples_ms: list[list[float]]
    samples: int | None
    median_ms: float | None
    low_ms: float | None
    high_ms: float | None
    min_ms: float | None
    host_ms: float | None
    warm_l2_ms: float | None
    graph_ms: float | None
    flops: int | None
    least_bytes: int | None
    roof_ms: float | None

    @property
    def tflops(self) -> float | None:
        return _ratio(self.flops, self.median_ms and self.median_ms * 1e9)

    @property
    def roof_share(self) -> float | None:
        return _ratio(self.roof_ms, self.median_ms)


class Figures:
    """What the columns are derived from: a result, the roofs of its machine, and the figures of its passes."""

    def __init__(self, result: Result, roofs: Mapping[str, Any]) -> None:
        self.result, self.roofs = result, roofs

    @cached_property
    def fwd(self) -> PassFigures:
        return pass_figures(self.result, "fwd", self.roofs)

    @cached_property
    def bwd(self) -> PassFigures:
        return pass_figures(self.result, "bwd", self.roofs)

    @property
    def peak_bytes(self) -> int | None:
        """The peak of the whole case: the forward's alone would flatter a case whose backward was not measured."""
        needed = ("fwd_peak", "bwd_peak") if self.result.case.get("direction") == "fwd_bwd" else ("fwd_peak",)
        peaks = [self.result.memory_bytes.get(name) for name in needed]
        return max(peak for peak in peaks if peak is not None) if None not in peaks else None

    @property
    def peak_over_least(self) -> float | None:
        return _ratio(self.peak_bytes, self.result.least_peak_bytes)

    @property
    def roof_share(self) -> float | None:
        """The share of the whole case: the passes that were timed, against the roofs of the same passes."""
        timed = [one for one in (self.fwd, self.bwd) if one.median_ms is not None]
        if not timed or any(one.roof_ms is None for one in timed):
            return None
        least_ms = math.fsum(one.roof_ms or 0.0 for one in timed)
        return _ratio(least_ms, math.fsum(one.median_ms or 0.0 for one in timed))

    @property
    def prepare_total_ms(self) -> float | None:
        return math.fsum(self.result.prepare_ms.values()) if self.result.prepare_ms else None


def pass_figures(result: Result, which: str, roofs: Mapping[str, Any]) -> PassFigures:
    """Quantiles of the samples of one pass, and what bounds it."""
    rounds = result.samples_ms.get(which) or []
    samples = np.asarray([ms for one in rounds for ms in one], dtype=float)
    timed = samples.size > 0
    low, median, high = np.quantile(samples, (LOW, 0.5, HIGH)).tolist() if timed else (None, None, None)
    return PassFigures(
        samples_ms=rounds,
        samples=int(samples.size) if timed else None,
        median_ms=median,
        low_ms=low,
        high_ms=high,
        min_ms=float(samples.min()) if timed else None,
        host_ms=result.host_ms.get(which),
        warm_l2_ms=result.other_clocks_ms.get(WARM_L2, {}).get(which),
        graph_ms=result.other_clocks_ms.get(GRAPH, {}).get(which),
        flops=result.flops.get(which),
        least_bytes=result.least_bytes.get(which),
        roof_ms=roof_ms(result, which, roofs),
    )


def roof_ms(result: Result, which: str, roofs: Mapping[str, Any]) -> float | None:
    """The least milliseconds that the measured roofs allow a pass; None if a roof is unknown.

    The binding one of: the matrix product rate at the case's dtype, the copy bandwidth, the exponentials' rate.
    """
    matrix = (roofs.get("matmul_flops_per_s") or {}).get(result.case.get("dtype"))
    bounds = [
        _ratio(result.flops.get(which), matrix),
        _ratio(result.least_bytes.get(which), roofs.get("copy_bytes_per_s")),
    ]
    if any(bound is None for bound in bounds):
        return None
    bounds.append(_ratio(result.pairs, roofs.get("exps_per_s")))
    return 1e3 * max(bound for bound in bounds if bound is not None)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below
