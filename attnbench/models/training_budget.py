"""The budget of training curves: how far rounding alone takes them from float64, and the verdict on a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from attnbench.judge.verdict import MAX_Z
from attnbench.models.record import ModelRun, finite
from attnbench.models.rounding import UNIT

JUDGED_CURVES = ("loss", "grad_norm")


@dataclass(frozen=True)
class Allowed:
    """The exact curves, how far rounding takes each step at most so far, and the spread over seeds."""

    exact: dict[str, list[float]]
    sigma: dict[str, list[float]]
    seed_spread: dict[str, list[float]]

    @classmethod
    def of(cls, runs: Iterable[ModelRun], dtype: str) -> Allowed:
        """The budget from the records of one task: its exact run, its rounding runs in this dtype, its seeds."""
        runs = list(runs)
        exact = {n: _floats(c) for r in runs if r.role == "exact" for n, c in r.curves.items()}
        rounded = [r.curves for r in runs if r.role == "rounding" and r.dtype == dtype]
        seeds = [r.curves for r in runs if r.role in ("exact", "seed")]
        sigma = {}
        for name, curve in exact.items():
            widest, widths = 0.0, []
            for step, value in enumerate(curve):
                squares = [(_number(c[name][step]) - value) ** 2 for c in rounded]
                # Errors of earlier steps stay in the parameters, so the effect of rounding never shrinks.
                widest = max(widest, math.sqrt(statistics.fmean(squares)))
                widths.append(widest + UNIT["fp32"] * abs(value))
            sigma[name] = widths
        spread = {
            n: [statistics.pstdev([_number(c[n][s]) for c in seeds]) for s in range(len(exact[n]))]
            for n in exact
        }
        return cls(exact, sigma, spread)

    def judged(self, run: ModelRun) -> ModelRun:
        """The run with its verdict, and its deviation at the worst step."""
        worst: dict[str, Any] = {}
        largest = 0.0
        curves = dict(run.curves)
        limit = MAX_Z["dense"]
        for name in JUDGED_CURVES:
            over = []
            for step, value in enumerate(curves[name]):
                allowed = limit * self.sigma[name][step]
                off = math.inf if value is None else abs(value - self.exact[name][step])
                over.append(off / allowed)
                if over[-1] > largest:
                    largest = over[-1]
                    spread = self.seed_spread[name][step]
                    worst = {"curve": name, "step": step, "off": off, "allowed": allowed}
                    worst["of_seed_spread"] = off / spread if spread else None
            curves[f"{name}_over_budget"] = finite(over)
        first = next((s for s, x in enumerate(curves["loss_over_budget"]) if x is None or x > 1), None)
        worst = {n: v if not isinstance(v, float) or math.isfinite(v) else None for n, v in worst.items()}
        spikes = sum(
            value is not None and value > exact + spread
            for value, exact, spread in zip(
                curves["loss"], self.exact["loss"], self.seed_spread["loss"], strict=True
            )
        )
        reason = ""
        if run.counts.get("non_finite"):
            reason = f"{run.counts['non_finite']} steps are not finite where float64's are"
        elif largest > 1:
            reason = (
                f"{worst['curve']} is off by {worst['off']:.2g} at step {worst['step']}, "
                f"{largest:.3g} times what rounding allows"
                + ("" if first is None else f"; the loss leaves it from step {first}")
            )
        return replace(
            run,
            curves=curves,
            status="wrong" if reason else "ok",
            reason=reason,
            over_budget=largest if math.isfinite(largest) else None,
            deviation=worst,
            counts=run.counts | {"spikes": spikes},
        )


def _number(x: float | None) -> float:
    return math.inf if x is None else x


def _floats(curve: list[float | None]) -> list[float]:
    return [_number(x) for x in curve]
