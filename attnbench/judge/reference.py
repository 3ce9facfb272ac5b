"""The reference of a case: exact values at chosen rows and columns, and the noise allowed on each."""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnbench.backend.interface import CONTRACTS
from attnbench.errors import AttnbenchError
from attnbench.judge.noise_of_columns import column_answer
from attnbench.judge.noise_of_rows import row_noise
from attnbench.judge.noise_of_sums import full_pass
from attnbench.judge.oracle import attend, slices_of
from attnbench.judge.rounding import Rounding, Uniform
from attnbench.judge.sampling import Sample, chosen_columns, chosen_rows
from attnbench.judge.scores import Part, Problem, full_precision
from attnbench.problem.inputs import Inputs
from attnbench.problem.scores import Bias

RUNS_AT_ONCE = 1 << 20  # noise runs times scores of a piece


@dataclass(frozen=True)
class Expected:
    """The exact values of one tensor at the outer product of `at`, and the noise of each: float64 arrays."""

    value: np.ndarray
    sigma: np.ndarray
    at: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Reference:
    """Expected values of one case, seed and contract, by tensor name (out, lse, dq, ...)."""

    case_id: str
    contract: str
    expected: dict[str, Expected]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`, read back by `from_arrays`."""
        head = json.dumps({"case_id": self.case_id, "contract": self.contract})
        arrays = {"about": np.array(head)}
        for name, e in self.expected.items():
            arrays |= {f"{name}/value": e.value, f"{name}/sigma": e.sigma}
            arrays |= {f"{name}/at{dim}": index for dim, index in enumerate(e.at)}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Reference:
        about = json.loads(str(arrays["about"]))
        expected = {}
        for name in sorted({key.split("/")[0] for key in arrays if "/" in key}):
            dims = sum(1 for key in arrays if key.startswith(f"{name}/at"))
            at = tuple(arrays[f"{name}/at{dim}"] for dim in range(dims))
            expected[name] = Expected(arrays[f"{name}/value"], arrays[f"{name}/sigma"], at)
        return cls(about["case_id"], about["contract"], expected)


def make_reference(inputs: Inputs, contract: str = "flash", seed: int = 0) -> Reference:
    """Exact values and their allowed noise, at rows and columns chosen by the seed.

    Raises AttnbenchError for an unknown contract.
    """
    if contract not in CONTRACTS:
        raise AttnbenchError(f"no contract {contract!r}; take one of {', '.join(CONTRACTS)}")
    with full_precision():
        return _Builder(inputs, contract, seed).build()


class _Builder:
    def __init__(self, inputs: Inputs, contract: str, seed: int) -> None:
        self.inputs, self.case, self.contract = inputs, inputs.case, contract
        self.problem = Problem(inputs)
        self.rounding = Rounding(inputs.case.dtype, contract == "dense", contract == "flash_splits")
        self.rng = random.Random(f"{inputs.case.id}/{seed}")
        a_row = inputs.case.group * max(inputs.case.k_len, inputs.case.q_len) * 16
        noise_seed = zlib.crc32(f"{inputs.case.id}/{seed}/noise".encode())
        largest = 2 * max(RUNS_AT_ONCE * self.problem.enlarged, a_row)
        self.uniform = Uniform(noise_seed, inputs.device, self.rounding.run_dtype, largest)

    def build(self) -> Reference:
        kind = self.inputs.device.type
        expected = self._rows(chosen_rows(self.case, kind, self.rng))
        if self.case.needs_backward:
            expected |= self._columns(chosen_columns(self.case, kind, self.rng))
        return Reference(self.case.id, self.contract, expected)

    def _index(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.inputs.device)

    def _rows(self, sample: Sample) -> dict[str, Expected]:
        problem, case = self.problem, self.case
        keys = problem.whole().columns
        part = Part(
            self._index(sample.batches), self._index(sample.kv_heads), self._index(sample.tokens), keys
        )
        heads = problem.heads(part.kv_heads)
        shape = (len(part.batches), len(heads), len(part.rows))
        new = lambda *tail: torch.zeros(*shape, *tail, dtype=torch.float64, device=problem.device)  # noqa: E731
        names = {"out": new(case.v_dim), "lse": new()} | (
            {"dq": new(case.head_dim)} if case.needs_backward else {}
        )
        moments = {name: torch.zeros_like(value) for name, value in names.items()}
        bias = self._bias_of_rows(part)
        for piece in problem.pieces(part, max(1, RUNS_AT_ONCE // 16)):
            at = slices_of(problem, part, piece)
            rows = attend(problem, piece)
            noise = row_noise(problem, rows, self.rounding, self.uniform)
            for name in names:
                names[name][at] = getattr(rows, name)
                moments[name][at] = getattr(noise, name)
            if bias is not None and rows.ds is not None and noise.ds_runs is not None:
                bias.add(at, rows.ds, noise.ds_runs)
        where = (part.batches, heads, part.rows)
        expected = {name: self._expected(names[name], moments[name], where) for name in names}
        # The LSE is float32 under every contract and has no features to average over.
        expected["lse"] = self._lse(names["lse"], moments["lse"], where)
        if bias is not None:
            expected["dbias"] = self._expected(bias.value, bias.moment, bias.where())
        return expected

    def _bias_of_rows(self, part: Part) -> _BiasRows | None:
        bias = self.problem.bias
        if (
            not self.case.needs_backward
            or not isinstance(bias, Bias)
            or bias.tensor is None
            or bias.tensor.shape[2] == 1
        ):
            return None
        return _BiasRows(self.problem, part, bias.tensor)

    def _columns(self, sample: Sample) -> dict[str, Expected]:
        problem = self.problem
        batches, kv_heads, columns = (
            self._index(x) for x in (sample.batches, sample.kv_heads, sample.tokens)
        )
        full = full_pass(problem, batches, kv_heads, self.rounding)
        answer = column_answer(problem, columns, full, self.rounding, self.uniform, RUNS_AT_ONCE)
        where = (batches, kv_heads, columns)
        expected = {
            "dk": self._expected(answer.dk, answer.var_dk, where),
            "dv": self._expected(answer.dv, answer.var_dv, where),
        }
        if answer.ds is not None and answer.var_ds is not None:
            b, h = (torch.arange(size, device=problem.device) for size in answer.ds.shape[:2])
            one = torch.zeros(1, dtype=torch.int64, device=problem.device)
            expected["dbias"] = self._expected(answer.ds, answer.var_ds, (b, h, one, columns))
        for name, value in full.values.items():
            everything = tuple(torch.arange(size, device=problem.device) for size in value.shape)
            variance = full.variances[name] + self.rounding.rounded(value) ** 2 / 3
            expected[name] = self._expected(value, variance, everything, over_row=False)
        return expected

    def _expected(
        self, value: Tensor, moment: Tensor, at: tuple[Tensor, ...], over_row: bool = True
    ) -> Expected:
        if over_row:
            moment = (moment + moment.mean(-1, keepdim=True)) / 2
        sigma = moment.sqrt() + self.rounding.u / 2 * value.abs()
        return Expected(value.cpu().numpy(), sigma.cpu().numpy(), tuple(index.cpu().numpy() for index in at))

    def _lse(self, value: Tensor, moment: Tensor, at: tuple[Tensor, ...]) -> Expected:
        finite = value.masked_fill(value == -math.inf, 0.0)
        sigma = ((moment + moment.mean(-1, keepdim=True)) / 2).sqrt() + 2.0**-24 * (finite.abs() + 1)
        return Expected(value.cpu().numpy(), sigma.cpu().numpy(), tuple(index.cpu().numpy() for index in at))


class _BiasRows:
    """dbias at the chosen rows, summed over the dimensions in which the bias is broadcast."""

    def __init__(self, problem: Problem, part: Part, bias: Tensor) -> None:
        self.problem, self.part, self.sizes = problem, part, bias.shape
        full = (len(part.batches), len(part.kv_heads) * problem.case.group, len(part.rows), len(part.columns))
        shape = [1 if size == 1 else whole for size, whole in zip(bias.shape, full, strict=True)]
        self.value = torch.zeros(shape, dtype=torch.float64, device=problem.device)
        self.moment = torch.zeros_like(self.value)

    def add(self, at: tuple[slice, slice, slice], ds: Tensor, runs: Tensor) -> None:
        """Add ds [B, H, R, K] of a piece and its runs' differences [B, H, n, R, K]."""
        over = [dim for dim in (0, 1, 3) if self.sizes[dim] == 1]
        runs = runs.double().movedim(2, -1)  # [B, H, R, K, n]
        if over:
            ds, runs = ds.sum(over, keepdim=True), runs.sum(over, keepdim=True)
        here = tuple(slice(0, 1) if self.sizes[dim] == 1 else window for dim, window in enumerate(at))
        self.value[here] += ds
        self.moment[here] += runs.square().mean(-1)

    def where(self) -> tuple[Tensor, ...]:
        heads = self.problem.heads(self.part.kv_heads)
        wanted = (self.part.batches, heads, self.part.rows, self.part.columns)
        zero = torch.zeros(1, dtype=torch.int64, device=self.problem.device)
        return tuple(zero if size == 1 else index for size, index in zip(self.sizes, wanted, strict=True))
