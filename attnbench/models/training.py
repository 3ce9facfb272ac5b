"""The suite `training`: the same model, data and seed on every backend, against float64 and its roundings.

Runs of one seed differ by rounding alone, so a right backend's curve stays within what rounding can do: the float64
run is repeated with random roundings of the dtype (`attnbench.models.rounding`), and the spread of those curves,
times what the judge allows, is the budget. A backend whose loss or gradient norm exceeds it is wrong. The spread
over seeds of initialisation is far wider (a scale that is off by 2 % stays inside); it measures how much an error
matters, not whether there is one.
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

from attnbench.errors import AttnbenchError
from attnbench.layer.attend import attend_with, backend_name, forget
from attnbench.measure.fingerprint import fingerprint
from attnbench.models.record import ModelRun, TooSlow, finite
from attnbench.models.rounding import RoundingNoise, exact_attention
from attnbench.models.suite import SURVIVED, chosen_tasks, default_backends, failed
from attnbench.models.tasks import TASKS, Task
from attnbench.models.training_budget import Allowed
from attnbench.problem import Mask, Score, torch_dtype

SUITE = "training"
STEPS = {"cpu": 30, "cuda": 200}
TRAINED_DTYPES = ("fp32", "bf16")
ROUNDING_RUNS, SEED_RUNS = 4, 3
LEARNING_RATE = 3e-3
RUN_LIMIT_S = 60.0  # per backend and run


@dataclass(frozen=True)
class TrainingCurve:
    """One training run: loss and gradient norm of each step, and the figures of the trained model."""

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
) -> TrainingCurve:
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
                f"{step + 1} of {steps} steps in {sum(spent_ms) / 1e3:.0f} s; the limit is {limit_s:.0f} s"
            )
    with noise or nullcontext():
        figures = task.figures(_OnDevice(model, device), seed)
    return TrainingCurve(losses, norms, figures | {"step_ms": statistics.median(spent_ms)}, non_finite)


class _OnDevice(torch.nn.Module):
    """A model that takes tensors of the CPU, on which held-out batches are drawn."""

    def __init__(self, model: torch.nn.Module, device: str) -> None:
        super().__init__()
        self.model, self.device = model, device

    def forward(self, *inputs: Any) -> Tensor:
        return self.model(*(x.to(self.device) if isinstance(x, Tensor) else x for x in inputs)).cpu()


def _round(parameters: Iterable[Tensor]) -> None:
    """Round parameters to float32, as they are in every run that is compared."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter.float())


def in_dtype(backend: Any, dtype: str) -> Any:
    """The backend in another dtype than the model's: q, k, v are cast to it, the output back."""
    if dtype == "fp32":
        return backend

    def cast(
        q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: tuple[Score, ...], scale: float
    ) -> Tensor:
        low = torch_dtype(dtype)
        return attend_with(backend)(q.to(low), k.to(low), v.to(low), mask=mask, scale=scale).to(q.dtype)

    cast.__name__ = backend_name(backend)
    return cast


def run(
    backends: list[Any] | None,
    *,
    device: str = "cpu",
    dtypes: Iterable[str] = TRAINED_DTYPES,
    seed: int = 0,
    steps: int | None = None,
    tasks: Iterable[str] | None = None,
    done: Iterable[ModelRun] = (),
    limit_s: float = RUN_LIMIT_S,
) -> Iterator[ModelRun]:
    """Every run of the suite, each as soon as it is done; those in `done` are neither run nor yielded again."""
    kind = device.split(":")[0]
    steps = STEPS[kind] if steps is None else steps
    chosen = chosen_tasks(SUITE, [task.name for task in TASKS], tasks)
    done_by_key = {run.key: run for run in done}
    names = default_backends(device) if backends is None else backends
    suite = _Suite(device, seed, steps, tuple(dtypes), done_by_key, limit_s)
    for task in TASKS:
        if task.name not in chosen:
            continue
        reason = task.missing()
        if reason:
            yield from suite.unavailable(task, reason)
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
        done: dict[Any, ModelRun],
        limit_s: float,
    ) -> None:
        self.limit_s = limit_s
        self.device, self.seed, self.steps, self.dtypes, self.done = device, seed, steps, dtypes, done
        self.machine = fingerprint(device)["machine"]

    def _record(self, task: Task, role: str, **values: Any) -> ModelRun:
        return ModelRun(
            suite=SUITE,
            task=task.name,
            role=role,
            steps=self.steps,
            device=self.device,
            machine=self.machine,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            **({"seed": self.seed} | values),
        )

    def unavailable(self, task: Task, reason: str) -> Iterator[ModelRun]:
        record = self._record(task, "exact", status="unavailable", reason=reason)
        if record.key not in self.done:
            yield record

    def _once(self, record: ModelRun, curve: Callable[[], TrainingCurve]) -> tuple[ModelRun, bool]:
        """The finished record, from `done` if it is there; and whether it is new."""
        earlier = self.done.get(record.key)
        return (earlier, False) if earlier is not None else (_filled(record, curve()), True)

    def task(self, task: Task, backends: list[Any]) -> Iterator[ModelRun]:
        """The float64 runs of one task, then every backend in every dtype."""
        double: dict[str, Any] = {"steps": self.steps, "device": self.device, "dtype": torch.float64}
        references: list[ModelRun] = []
        plans: list[tuple[ModelRun, Callable[[], TrainingCurve]]] = []
        for n in range(SEED_RUNS):
            seed = self.seed + n
            record = self._record(task, "seed" if n else "exact", seed=seed)
            plans.append((record, partial(train, task, exact_attention, seed=seed, **double)))
        for dtype in self.dtypes:
            for n in range(ROUNDING_RUNS):
                record = self._record(task, "rounding", dtype=dtype, backend=f"roundings {n}")

                def noisy(n: int = n, dtype: str = dtype) -> TrainingCurve:
                    noise = RoundingNoise(n, "fp32", self.device, attention=dtype)
                    return train(task, exact_attention, seed=self.seed, noise=noise, **double)

                plans.append((record, noisy))
        for record, curve in plans:
            reference, is_new = self._once(record, curve)
            references.append(reference)
            if is_new:
                yield reference
        for dtype in self.dtypes:
            allowed = Allowed.of(references, dtype)
            for backend in backends:
                record = self._record(task, "backend", backend=backend_name(backend), dtype=dtype)
                if record.key not in self.done:
                    yield self._on_backend(task, backend, record, allowed)

    def _on_backend(self, task: Task, backend: Any, record: ModelRun, allowed: Allowed) -> ModelRun:
        try:
            attend_with(backend)
            cast_backend = in_dtype(backend, record.dtype)
            curve = train(
                task, cast_backend, seed=self.seed, steps=self.steps, device=self.device, limit_s=self.limit_s
            )
        except (TooSlow, AttnbenchError, *SURVIVED) as error:
            return failed(record, error)
        return allowed.judged(_filled(record, curve))


def _filled(record: ModelRun, curve: TrainingCurve) -> ModelRun:
    figures = {name: value for name, value in curve.figures.items() if math.isfinite(value)}
    curves = {"loss": finite(curve.loss), "grad_norm": finite(curve.grad_norm)}
    return replace(record, curves=curves, figures=figures, counts={"non_finite": curve.non_finite})
