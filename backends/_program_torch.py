"""The program of torch libraries: one case as leaves in the library's layout, its forward and its backward.

Imported by attnbench if the library is installed here, else run by its foreign process; imports torch and nothing of
attnbench. Tensors are [B, S, H, D]; packed sequences are [T, H, D]. The library's own call is in a file that the task
names: `build(task, fixed, device) -> (attend, kernel)`, where `attend(q, k, v, changes) -> (out, lse or None)`, lse
as [B, H, Q] or packed as [H, T].
"""

import gc
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHANGES = ("bias", "relative", "sink")
# Before each timed call a GPU is held back for longer than the host takes to enqueue it.
HELD_FACTOR, HELD_MORE_MS, MOST_HELD_MS = 2.0, 0.05, 50.0
HOST_CALLS, PROBES, PROBE_CYCLES = 3, 3, 1 << 21
TENSORS = ("q", "k", "v", "dout", *CHANGES)


def load_call(file: str) -> Any:
    """The module that calls the library, from the file of this name in this folder."""
    name = f"attnbench_call_{os.path.splitext(file)[0]}"
    if name not in sys.modules:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), file)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def start(device: str) -> dict[str, Any]:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ImportError(f"torch {torch.__version__} finds no CUDA device here")
    return {}


def prepare(task: dict[str, Any], arrays: dict[str, Any], device: str) -> "Job":
    """A job for the foreign worker: arrays become tensors on the device."""
    return Job(task, {name: tensor_of(array, device) for name, array in arrays.items()}, device)


def tensor_of(array: tuple[str, np.ndarray], device: str) -> torch.Tensor:
    dtype, values = array
    tensor = torch.from_numpy(values.view(np.int16) if dtype == "bf16" else values)
    return (tensor.view(torch.bfloat16) if dtype == "bf16" else tensor).to(device)


def bits_of(tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    whole = tensor.detach().contiguous().cpu()
    if whole.dtype == torch.bfloat16:
        return "bf16", whole.view(torch.int16).numpy().view(np.uint16)
    return {torch.float32: "fp32", torch.float16: "fp16"}[whole.dtype], whole.numpy()


@cache
def _cycles_per_ms() -> float:
    """Cycles of the GPU's delay per millisecond: the highest rate of a few tries, since an idle GPU wakes slowly."""
    cuda, rates = torch.cuda, []
    for _ in range(PROBES):
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize()
        start.record()
        cuda._sleep(PROBE_CYCLES)
        end.record()
        cuda.synchronize()
        rates.append(PROBE_CYCLES / max(start.elapsed_time(end), 1e-3))
    return max(rates)


class Job:
    """One case; `forward` and `backward` store their results in `out`, `lse` and `grads`."""

    def __init__(self, task: dict[str, Any], tensors: dict[str, torch.Tensor], device: str) -> None:
        self.task, self.case, self.device = task, task["case"], device
        self.prepare_ms: dict[str, float] = {}
        self.needs_backward = self.case["direction"] == "fwd_bwd"
        begun = time.perf_counter()
        self._fixed = {name: x for name, x in tensors.items() if name not in TENSORS}
        self._attend, self.kernel = load_call(task["call"]).build(task, self._fixed, device)
        self.prepare_ms["mask"] = (time.perf_counter() - begun) * 1e3
        begun = time.perf_counter()
        self.refill(tensors)
        self.prepare_ms["layout"] = (time.perf_counter() - begun) * 1e3
        self.out: Any = None
        self.lse: Any = None
        self.grads: Any = None
        self._host_ms: dict[str, float] = {}
        if device.startswith("cuda"):
            self.time, self.clock = self._time_with_events, "cuda_events_cold_l2"

    @property
    def is_packed(self) -> bool:
        return "cu_seqlens_q" in self._fixed

    def refill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take these values: q, k, v, dout [B, S, H, D] and the tensors of score changes."""
        self._leaves = {
            "q": self._leaf(self._pack(tensors["q"], "q_tokens")),
            "k": self._leaf(self._pack(tensors["k"], "k_tokens")),
            "v": self._leaf(self._pack(tensors["v"], "k_tokens")),
        }
        self._changes = {name: self._leaf(tensors[name]) for name in CHANGES if name in tensors}
        self.dout = None if tensors.get("dout") is None else self._pack(tensors["dout"], "q_tokens")

    def forward(self) -> None:
        self.compute()
        self._synchronise()

    def backward(self) -> None:
        self.compute_gradients(self.dout)
        self._synchronise()

    def compute(self) -> None:
        """The library's forward."""
        self.out = self.lse = None
        with torch.set_grad_enabled(self.needs_backward):
            self.out, self.lse = self._attend(*self._leaves.values(), self._changes)

    def compute_gradients(self, dout: Any) -> None:
        """The library's backward of the last forward; `dout` is packed as the queries are."""
        if self.out is None:
            self.compute()
        wanted = [*self._leaves.values(), *self._changes.values()]
        names = [f"d{name}" for name in self._leaves] + [self.task["gradients"][n] for n in self._changes]
        self.grads = dict(
            zip(names, torch.autograd.grad(self.out, wanted, dout, retain_graph=True), strict=True)
        )

    def pack_dout(self, dout: torch.Tensor) -> torch.Tensor:
        """dO [B, Q, H, Dv] in the layout of the library's output."""
        return self._pack(dout, "q_tokens")

    def whole_output(self) -> tuple[torch.Tensor, Any]:
        """out [B, Q, H, Dv] and lse [B, H, Q] or None; tokens of no sequence attend no key: 0 and -inf."""
        out = self._unpack(self.out.detach(), "q_tokens", "q_len")
        lse = self.lse
        if lse is not None:
            lse = lse.detach().float()
            # The library's LSE of a row without a key is +inf; attnbench's is the logarithm of zero.
            lse = torch.where(lse == torch.inf, -torch.inf, lse)
            if self.is_packed:
                rows = self._unpack(lse.transpose(0, 1), "q_tokens", "q_len", -torch.inf)  # [B, Q, H]
                lse = rows.transpose(1, 2)  # [B, H, Q]
        return out, lse

    def whole_gradients(self) -> dict[str, torch.Tensor]:
        """dq, dk, dv [B, S, H, D] and the gradients of score changes."""
        whole = dict(self.grads)
        whole["dq"] = self._unpack(whole["dq"], "q_tokens", "q_len")
        for name in ("dk", "dv"):
            whole[name] = self._unpack(whole[name], "k_tokens", "k_len")
        return whole

    def outputs(self) -> dict[str, Any]:
        out, lse = self.whole_output()
        return {"out": bits_of(out)} | ({} if lse is None else {"lse": bits_of(lse)})

    def gradients(self) -> dict[str, Any]:
        return {name: bits_of(grad) for name, grad in self.whole_gradients().items()}

    def drop(self) -> None:
        self.out = self.lse = self.grads = None

    def memory(self) -> dict[str, int]:
        """Peaks above the inputs on CUDA; empty on other devices."""
        if not self.device.startswith("cuda"):
            return {}
        self.drop()
        cuda = torch.cuda
        cuda.synchronize()
        baseline = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        self.forward()
        sizes = {"fwd_peak": cuda.max_memory_allocated() - baseline}
        if self.needs_backward:
            sizes["saved"] = cuda.memory_allocated() - baseline
            cuda.reset_peak_memory_stats()
            self.backward()
            sizes["bwd_peak"] = cuda.max_memory_allocated() - baseline
        return sizes

    def kernels(self) -> list[str]:
        """The names of the GPU kernels of one forward and one backward."""
        if not self.device.startswith("cuda"):
            return []
        from torch.profiler import ProfilerActivity, profile

        self.forward()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            self.forward()
            if self.needs_backward:
                self.backward()
        # The host's calls are events too.
        on_gpu = torch.autograd.DeviceType.CUDA
        return sorted({event.key for event in profiler.key_averages() if event.device_type == on_gpu})

    def _time_with_events(self, direction: str, samples: int, calls: int) -> dict[str, Any]:
        """One call per sample between events, as attnbench's own clock does (attnbench/measure/clocks.py).

        After a flush of twice the L2 the device is held back until the call is queued, so no sample holds host time.
        """
        assert calls == 1
        cuda = torch.cuda
        size = 2 * cuda.get_device_properties(self.device).L2_cache_size
        flush = torch.empty(size, dtype=torch.int8, device=self.device)
        if direction == "bwd" and self.out is None:
            self.compute()
        call = self.compute if direction == "fwd" else partial(self.compute_gradients, self.dout)
        if direction not in self._host_ms:
            self._host_ms[direction] = min(self._enqueued_ms(call) for _ in range(HOST_CALLS))
        held = min(MOST_HELD_MS, HELD_FACTOR * self._host_ms[direction] + HELD_MORE_MS)
        cycles = int(held * _cycles_per_ms())
        starts, ends = ([cuda.Event(enable_timing=True) for _ in range(samples)] for _ in range(2))
        host_ms = []
        gc.disable()
        try:
            for start, end in zip(starts, ends, strict=True):
                flush.zero_()
                cuda._sleep(cycles)
                start.record()
                begun = time.perf_counter()
                call()
                host_ms.append((time.perf_counter() - begun) * 1e3)
                end.record()
            cuda.synchronize()
        finally:
            gc.enable()
        taken = [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]
        on_time = [ms for ms, host in zip(taken, host_ms, strict=True) if host <= held]
        late = 0 if on_time else samples
        return {"samples_ms": on_time or taken, "switches": 0, "host_ms": host_ms, "late": late}

    def _enqueued_ms(self, call: Callable[[], None]) -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        return (time.perf_counter() - begun) * 1e3

    def _leaf(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach().requires_grad_(self.needs_backward)

    def _pack(self, x: torch.Tensor, tokens: str) -> torch.Tensor:
        # [B, S, H, D] -> [T, H, D]
        if not self.is_packed:
            return x
        flat = x.flatten(0, 1)
        return flat.index_select(0, self._fixed[tokens]) if tokens in self._fixed else flat

    def _unpack(self, x: torch.Tensor, tokens: str, length: str, fill: float = 0.0) -> torch.Tensor:
        # [T, ...] -> [B, S, ...]
        if not self.is_packed:
            return x
        batch, size = self.case["batch"], self.case[length]
        if tokens in self._fixed:
            whole = torch.full((batch * size, *x.shape[1:]), fill, dtype=x.dtype, device=x.device)
            x = whole.index_copy_(0, self._fixed[tokens], x)
        return x.unflatten(0, (batch, size))

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
