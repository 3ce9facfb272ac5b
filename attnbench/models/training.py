"""Does a model train on this backend as it should? The same model, data and seed, beside float64 and its roundings.

Runs of one seed differ by rounding alone, so a right backend's curve stays where rounding can take it: the
float64 run is repeated with random roundings of the dtype (`attnbench.models.rounding`), and the spread of those
curves, times what the judge allows, is the budget. A backend whose loss or gradient norm leaves it is wrong. The
spread over seeds of initialisation is far wider (a scale that is off by 2 % stays inside); it is the yardstick
of how much an error matters, not of whether there is one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.registry import entries, resolve
from attnbench.errors import AttnbenchError, BackendUnavailable, did_you_mean
from attnbench.judge.verdict import MAX_Z
from attnbench.layer.attend import attend_with, forget, reason_of
from attnbench.measure.fingerprint import fingerprint
from attnbench.models.record import ModelRun, TooSlow, finite
from attnbench.models.rounding import UNIT, RoundingNoise, exact_attention
from attnbench.problem import Mask, Score, torch_dtype

from .tasks import TASKS, Task

NAME = "training"
STEPS = {"cpu": 30, "cuda": 200}
DTYPES = ("fp32", "bf16")
ROUNDING_RUNS, SEED_RUNS = 4, 3
LEARNING_RATE = 3e-3
LIMIT_S = 60.0  # what a backend may spend on one run
JUDGED = ("loss", "grad_norm")
# What an implementation may raise that this process survives; a crash of the process is a sweep's to survive.
FAULTS = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Curve:
    """One training run: loss and gradient norm of each step, and what the model reached."""

    loss: list[float]
    grad_norm: list[float]
    figures: dict[str, float]
    non_finite: int


def train(
    task: Task,
    backend: Any,
    *,
    seed: int,
    steps: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    noise: RoundingNoise | None = None,
    limit_s: float = math.inf,
) -> Curve:
    """Train a task's model from a seed. With noise (and float64) every operation and the parameters are rounded.

    A step whose loss or gradient is not finite is counted and changes nothing. Raises TooSlow after `limit_s`.
    """
    torch.manual_seed(seed)
    model = task.model(backend).to(device=device, dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses, norms, spent_ms, non_finite = [], [], [], 0
    for step in range(steps):
        batch = tuple(x.to(device) for x in task.batch(seed, step))
        start_ns = time.perf_counter_ns()
        with noise or nullcontext():
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        losses.append(float(loss.detach()))
        norms.append(float(norm))
        if math.isfinite(losses[-1]) and math.isfinite(norms[-1]):
            optimizer.step()
        else:
            non_finite += 1
        if noise is not None:
            _round(model.parameters())
        spent_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        if sum(spent_ms) > 1e3 * limit_s:
            raise TooSlow(
                f"{step + 1} of {steps} steps in {sum(spent_ms) / 1e3:.0f} s; {limit_s:.0f} s were given"
            )
    with noise or nullcontext():
        figures = task.figures(_OnDevice(model, device), seed)
    return Curve(losses, norms, figures | {"step_ms": statistics.median(spent_ms)}, non_finite)


class _OnDevice(torch.nn.Module):
    """A model that is given tensors of the CPU: held-out batches are drawn there."""

    def __init__(self, model: torch.nn.Module, device: str) -> None:
        super().__init__()
        self.model, self.device = model, device

    def forward(self, *given: Any) -> Tensor:
        return self.model(*(x.to(self.device) if isinstance(x, Tensor) else x for x in given)).cpu()


def _round(parameters: Iterable[Tensor]) -> None:
    """Parameters live in float32 in every run that is compared."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter.float())


def in_dtype(backend: Any, dtype: str) -> Any:
    """The backend for attention in another dtype than the model's: q, k, v are cast to it, the output back."""
    if dtype == "fp32":
        return backend

    def cast(
        q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: tuple[Score, ...], scale: float
    ) -> Tensor:
        low = torch_dtype(dtype)
        return attend_with(backend)(q.to(low), k.to(low), v.to(low), mask=mask, scale=scale).to(q.dtype)

    cast.__name__ = backend if isinstance(backend, str) else backend.__name__
    return cast


@dataclass(frozen=True)
class Allowed:
    """The exact curves, how far rounding takes each step (so far or now), and the spread over seeds."""

    exact: dict[str, list[float]]
    sigma: dict[str, list[float]]
    seed_spread: dict[str, list[float]]

    @classmethod
    def of(cls, runs: Iterable[ModelRun], dtype: str) -> Allowed:
        """From the records of one task: its exact run, its rounding runs of this dtype, its seeds."""
        runs = list(runs)
        exact = {n: _floats(c) for r in runs if r.role == "exact" for n, c in r.curves.items()}
        rounded = [r.curves for r in runs if r.role == "rounding" and r.dtype == dtype]
        seeds = [r.curves for r in runs if r.role in ("exact", "seed")]
        sigma = {}
        for name, curve in exact.items():
            widest, found = 0.0, []
            for step, value in enumerate(curve):
                squares = [(_number(c[name][step]) - value) ** 2 for c in rounded]
                # Errors of earlier steps stay in the parameters, so what rounding can do never shrinks.
                widest = max(widest, math.sqrt(statistics.fmean(squares)))
                found.append(widest + UNIT["fp32"] * abs(value))
            sigma[name] = found
        spread = {
            n: [statistics.pstdev([_number(c[n][s]) for c in seeds]) for s in range(len(exact[n]))]
            for n in exact
        }
        return cls(exact, sigma, spread)

    def judged(self, run: ModelRun) -> ModelRun:
        """The run with its verdict, and by how much it is off at its worst step."""
        worst: dict[str, Any] = {}
        largest = 0.0
        curves = dict(run.curves)
        limit = MAX_Z["dense"]
        for name in JUDGED:
            over = []
            for step, given in enumerate(curves[name]):
                allowed = limit * self.sigma[name][step]
                off = math.inf if given is None else abs(given - self.exact[name][step])
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
            given is not None and given > exact + spread
            for given, exact, spread in zip(
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


def chosen_tasks(suite: str, known: list[str], wanted: Iterable[str] | None) -> list[str]:
    """The wanted of the known tasks, all where None; AttnbenchError where one is unknown, or none is wanted."""
    if wanted is None:
        return known
    chosen = list(wanted)
    if not chosen:
        raise AttnbenchError(f"no task of {suite} was asked for; it has {', '.join(known)}")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise AttnbenchError(f"{suite} has no task {unknown[0]!r}{near}; it has {', '.join(known)}")
    return chosen


def default_backends(device: str) -> list[str]:
    """Every backend whose time means something on this device; an interpreter takes minutes for a step."""
    found = []
    for entry in entries():
        if not entry.available:
            continue
        try:
            can = resolve(entry.name).capabilities
        except BackendUnavailable:
            continue
        if can.timed and device.split(":")[0] in can.devices:
            found.append(entry.name)
    return found


def run(
    backends: list[Any] | None,
    *,
    device: str = "cpu",
    dtypes: Iterable[str] = DTYPES,
    seed: int = 0,
    steps: int | None = None,
    tasks: Iterable[str] | None = None,
    done: Iterable[ModelRun] = (),
    limit_s: float = LIMIT_S,
) -> Iterator[ModelRun]:
    """Every run of the suite, each as soon as it is done; those in `done` are taken as they are and not given again."""
    kind = device.split(":")[0]
    steps = STEPS[kind] if steps is None else steps
    chosen = chosen_tasks(NAME, [task.name for task in TASKS], tasks)
    wanted = [task for task in TASKS if task.name in chosen]
    known = {run.key: run for run in done}
    names = default_backends(device) if backends is None else backends
    suite = _Suite(device, seed, steps, tuple(dtypes), known, limit_s)
    for task in wanted:
        reason = task.missing()
        if reason:
            yield from suite.not_there(task, reason)
            continue
        yield from suite.task(task, names)
        forget()


class _Suite:
    def __init__(
        self,
        device: str,
        seed: int,
        steps: int,
        dtypes: tuple[str, ...],
        known: dict[Any, ModelRun],
        limit_s: float,
    ) -> None:
        self.limit_s = limit_s
        self.device, self.seed, self.steps, self.dtypes, self.known = device, seed, steps, dtypes, known
        self.machine = fingerprint(device)["machine"]

    def _record(self, task: Task, role: str, **values: Any) -> ModelRun:
        return ModelRun(
            suite=NAME,
            task=task.name,
            role=role,
            steps=self.steps,
            device=self.device,
            machine=self.machine,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            **({"seed": self.seed} | values),
        )

    def not_there(self, task: Task, reason: str) -> Iterator[ModelRun]:
        record = self._record(task, "exact", status="unavailable", reason=reason)
        if record.key not in self.known:
            yield record

    def _once(self, record: ModelRun, curve: Callable[[], Curve]) -> tuple[ModelRun, bool]:
        """The record filled in, or the one that is there already; whether it is new."""
        known = self.known.get(record.key)
        return (known, False) if known is not None else (_filled(record, curve()), True)

    def task(self, task: Task, backends: list[Any]) -> Iterator[ModelRun]:
        """The float64 runs of one task, then every backend in every dtype."""
        double: dict[str, Any] = {"steps": self.steps, "device": self.device, "dtype": torch.float64}
        about: list[ModelRun] = []
        plans: list[tuple[ModelRun, Callable[[], Curve]]] = []
        for n in range(SEED_RUNS):
            seed = self.seed + n
            record = self._record(task, "seed" if n else "exact", seed=seed)
            plans.append((record, partial(train, task, exact_attention, seed=seed, **double)))
        for dtype in self.dtypes:
            for n in range(ROUNDING_RUNS):
                record = self._record(task, "rounding", dtype=dtype, backend=f"roundings {n}")

                def noisy(n: int = n, dtype: str = dtype) -> Curve:
                    noise = RoundingNoise(n, "fp32", self.device, attention=dtype)
                    return train(task, exact_attention, seed=self.seed, noise=noise, **double)

                plans.append((record, noisy))
        for record, curve in plans:
            found, is_new = self._once(record, curve)
            about.append(found)
            if is_new:
                yield found
        for dtype in self.dtypes:
            allowed = Allowed.of(about, dtype)
            for backend in backends:
                name = backend if isinstance(backend, str) else backend.__name__
                record = self._record(task, "backend", backend=name, dtype=dtype)
                if record.key not in self.known:
                    yield self._on_backend(task, backend, record, allowed)

    def _on_backend(self, task: Task, backend: Any, record: ModelRun, allowed: Allowed) -> ModelRun:
        try:
            attend_with(backend)
            form = in_dtype(backend, record.dtype)
            curve = train(
                task, form, seed=self.seed, steps=self.steps, device=self.device, limit_s=self.limit_s
            )
        except TooSlow as problem:
            return replace(record, status="timeout", reason=str(problem))
        except BackendUnavailable as problem:
            return replace(record, status="unavailable", reason=str(problem))
        except AttnbenchError as problem:
            return replace(record, status="refused", reason=reason_of(problem))
        except FAULTS as problem:
            said = f"{type(problem).__name__}: {problem}".split("\n")[0][:300]
            return replace(record, status="error", reason=said)
        return allowed.judged(_filled(record, curve))


def _filled(record: ModelRun, curve: Curve) -> ModelRun:
    figures = {name: value for name, value in curve.figures.items() if math.isfinite(value)}
    curves = {"loss": finite(curve.loss), "grad_norm": finite(curve.grad_norm)}
    return replace(record, curves=curves, figures=figures, counts={"non_finite": curve.non_finite})
