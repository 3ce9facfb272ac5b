"""Two CUDA devices that are the CPU underneath, and as strict as real ones: tensors of two devices never meet.

`install()` makes torch.cuda answer as a machine with two H100 does, for the whole process; nothing undoes it. A tensor
"on cuda:0" wraps one on the CPU, and every torch function that mixes devices raises in torch's words. Each device has
a clock of its own that moves by the time its operators take, so an event of another device's stream measures nothing.
"""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICES = 2
MEMORY_BYTES = 80 << 30
L2_BYTES = 1 << 20  # of an H100: 50 MiB, which a CPU would zero for milliseconds before each sample
# Torch moves these between devices itself, and a CPU tensor may index one of a GPU.
MOVES = frozenset({"copy_", "to", "cuda", "type_as"})
INDEXED = frozenset({"__getitem__", "__setitem__", "index_put_"})


class State:
    """What the devices did: per device its busy time and the bytes that live on it; kernels while profiled."""

    def __init__(self) -> None:
        self.current = 0
        self.busy_ms = [0.0] * DEVICES
        self.fractions: dict[int, float] = {}
        self.profiled: list[str] | None = None
        self.capturing = False


STATE = State()


class Cuda(torch.Tensor):
    """A tensor on a fake device; its `host` tensor, on the CPU, holds the numbers."""

    host: Any
    index: Any

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int = 0) -> Cuda:
        assert not isinstance(inner, Cuda)
        device = torch.device("cuda", index)
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=device)  # type: ignore[attr-defined]
        made.__dict__["host"], made.__dict__["index"] = inner, index
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} reached the dispatcher with a fake CUDA tensor")


class _Everywhere(TorchFunctionMode):
    """Hands the functions to `run` that take no tensor at all, such as torch.zeros(device="cuda")."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One torch function on the CPU tensors inside; RuntimeError or TypeError where a GPU would raise."""
    name = getattr(func, "__name__", str(func))
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, Cuda)]
    if name == "__get__" and ours:
        return _attribute(func, args)
    _refuse_a_mix(name, args, tensors, ours)
    kwargs = dict(kwargs)
    args, kwargs, target = _placed(name, args, kwargs, ours)
    generator = kwargs.get("generator")
    if target is not None and generator is not None:
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")
    known = {id(x.host): x for x in ours}
    start = time.perf_counter()
    plain_args, plain_kwargs = tree_map(lambda x: x.host if isinstance(x, Cuda) else x, (args, kwargs))
    with torch._C.DisableTorchFunction():
        returned = func(*plain_args, **plain_kwargs)
    if ours or target is not None:
        STATE.busy_ms[ours[0].__dict__["index"] if ours else target or 0] += (
            time.perf_counter() - start
        ) * 1e3
        if STATE.profiled is not None:
            STATE.profiled.append(_kernel(name))

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, Cuda) or target is None:
            return x
        if id(x) in known:
            return known[id(x)]
        return x if any(x is y for y in tensors) else Cuda(x, target)

    return tree_map(wrapped, returned)


def _attribute(func: Any, args: Any) -> Any:
    tensor = args[0]
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    fixed = {"device": torch.device("cuda", tensor.__dict__["index"]), "is_cuda": True, "is_cpu": False}
    if name in fixed:
        return fixed[name]
    with torch._C.DisableTorchFunction():
        value = func(tensor.host, *args[1:])
    return Cuda(value, tensor.__dict__["index"]) if isinstance(value, torch.Tensor) else value


def _refuse_a_mix(name: str, args: Any, tensors: list[torch.Tensor], ours: list[Cuda]) -> None:
    """RuntimeError if tensors of two devices meet; 0-dimensional numbers of the CPU may join any."""
    if ours and name in ("numpy", "__array__"):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first."
        )
    if len({x.__dict__["index"] for x in ours}) > 1 and name not in MOVES:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found two cuda devices in {name}"
        )
    theirs = [x for x in tensors if not isinstance(x, Cuda) and x.dim() > 0]
    if not ours or not theirs or name in MOVES:
        return
    indexes = name in INDEXED and isinstance(args[0], Cuda)
    assigned = args[2] if name == "__setitem__" and len(args) > 2 else None
    if not indexes or any(x is assigned for x in theirs):
        shapes = [tuple(x.shape) for x in tensors]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda and cpu in {name} {shapes}"
        )


def _placed(
    name: str, args: Any, kwargs: dict[str, Any], ours: list[Cuda]
) -> tuple[Any, dict[str, Any], int | None]:
    """The arguments with the CPU as device, and the index of the device of what is returned (None: the CPU)."""
    here = ours[0].__dict__["index"] if ours else None
    if name == "cpu":
        return args, kwargs, None
    if name == "cuda":
        return (args[0], torch.device("cpu")), {"copy": True}, _index(args[1] if len(args) > 1 else None)
    device = kwargs.pop("device", None)
    if name == "to":
        like = next((a for a in args[1:] if isinstance(a, torch.Tensor)), None)
        device = next((a for a in args[1:] if isinstance(a, str | torch.device)), device)
        args = tuple("cpu" if isinstance(a, str | torch.device) else a for a in args)
        if like is not None:
            device = like.device
    if device is None:
        return args, kwargs, here
    target = _index(device) if torch.device(device).type == "cuda" else None
    if name != "to":
        kwargs["device"] = "cpu"
    elif target != here:
        kwargs["copy"] = True
    return args, kwargs, target


def _index(device: Any, optional: bool = True) -> int:
    """The index of a CUDA device as torch.cuda reads it: without one, the current device, or a ValueError."""
    from torch.cuda._utils import _get_device_index

    if device is None or (optional and not isinstance(device, int) and torch.device(device).index is None):
        return STATE.current
    index = device if isinstance(device, int) else _get_device_index(device, optional=optional)
    if not 0 <= index < DEVICES:
        raise torch.AcceleratorError(f"CUDA error: invalid device ordinal {index}")  # type: ignore[attr-defined]
    return index


class Event:
    """An event of the current device's stream."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.device, self.at_ms = -1, 0.0

    def record(self, stream: Any = None) -> None:
        self.device, self.at_ms = STATE.current, STATE.busy_ms[STATE.current]

    def elapsed_time(self, end: Event) -> float:
        assert self.device == end.device >= 0, "two events of different devices"
        return end.at_ms - self.at_ms

    def synchronize(self) -> None:
        pass

    query = synchronize


class Stream:
    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    synchronize = wait_event = wait_stream


class Graph:
    """A graph that replays the calls captured in it: none, since the fake device runs them at once."""

    def replay(self) -> None:
        pass


@contextlib.contextmanager
def _capture(graph: Graph, **options: Any) -> Iterator[None]:
    STATE.capturing = True
    try:
        yield
    finally:
        STATE.capturing = False


def _synchronize(device: Any = None) -> None:
    _index(device)
    if STATE.capturing:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


def _set_fraction(fraction: float, device: Any = None) -> None:
    STATE.fractions[_index(device, optional=device is None)] = fraction


def _sleep(cycles: int) -> None:
    STATE.busy_ms[STATE.current] += cycles / 1.98e6


def _kernel(name: str) -> str:
    """The name of the kernel that a real GPU runs for a torch function, as far as attnbench tells kernels apart."""
    if name == "scaled_dot_product_attention":
        return "void pytorch_flash::flash_fwd_kernel<traits>(pytorch_flash::Flash_fwd_params)"
    return f"void at::native::vectorized_elementwise_kernel<{name}>"


PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3 (fake)",
    major=9,
    minor=0,
    total_memory=MEMORY_BYTES,
    L2_cache_size=L2_BYTES,
    multi_processor_count=132,
    uuid="00000000-0000-0000-0000-000000000000",
    clock_rate=1_980_000,
)


def install() -> None:
    """Make torch.cuda a machine with two fake devices, for this process."""
    cuda: Any = torch.cuda
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: DEVICES,
        "current_device": lambda: STATE.current,
        "set_device": lambda device: setattr(STATE, "current", _index(device)),
        "synchronize": _synchronize,
        "get_device_properties": lambda device=None: (_index(device), PROPERTIES)[1],
        "get_device_capability": lambda device=None: (_index(device), (9, 0))[1],
        "get_device_name": lambda device=None: (_index(device), PROPERTIES.name)[1],
        "mem_get_info": lambda device=None: (_index(device), (MEMORY_BYTES - (2 << 30), MEMORY_BYTES))[1],
        "memory_allocated": lambda device=None: _index(device) * 0,
        "max_memory_allocated": lambda device=None: 1 << 20,
        "memory_reserved": lambda device=None: 1 << 20,
        "max_memory_reserved": lambda device=None: 1 << 20,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_per_process_memory_fraction": _set_fraction,
        "empty_cache": lambda: None,
        "_sleep": _sleep,
        "is_current_stream_capturing": lambda: STATE.capturing,
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: Stream(),
        "graph": _capture,
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    _install_profiler()
    _Everywhere().__enter__()


def _install_profiler() -> None:
    """torch.profiler with CUDA activities tells the kernels of the fake device, beside the host's calls."""
    import torch.profiler as profiler

    real = profiler.profile

    class Profile:
        def __new__(cls, *args: Any, activities: Any = (), **options: Any) -> Any:
            if profiler.ProfilerActivity.CUDA not in activities:
                return real(*args, activities=activities or None, **options)
            return super().__new__(cls)

        def __init__(self, **options: Any) -> None:
            self.kernels: list[str] = []

        def __enter__(self) -> Profile:
            STATE.profiled = self.kernels
            return self

        def __exit__(self, *error: Any) -> None:
            STATE.profiled = None

        def key_averages(self) -> list[Any]:
            from torch.autograd import DeviceType

            host = [types.SimpleNamespace(key="cudaDeviceSynchronize", device_type=DeviceType.CPU)]
            return host + [
                types.SimpleNamespace(key=name, device_type=DeviceType.CUDA)
                for name in sorted(set(self.kernels))
            ]

    profiler.profile = Profile  # type: ignore[assignment, misc]
