"""The foreign process, in a backend's own Python environment: answers requests, maps arrays, times calls.

This file is run by path under another interpreter: it needs numpy and nothing of attnbench. A *program* (a file
named by the first request) holds the library: `start(device) -> {}` and `prepare(task, arrays, device) -> job`. A
job has `kernel`, `prepare_ms`, `refill(arrays)`, `forward()`, `backward()`, `outputs()`, `gradients()`, `memory()`,
`drop()`; forward and backward return when all is computed, or the job has its own
`time(direction, samples, calls)`, named by `clock`. Arrays are `name -> (dtype, ndarray)`; bf16 is sent as uint16.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

Json = dict[str, Any]
Arrays = dict[str, tuple[str, np.ndarray]]  # dtype's name and bits, by array
TRACE_CHARACTERS = 2000
OUT_OF_MEMORY = re.compile(r"out of memory|RESOURCE_EXHAUSTED|bad_alloc|cannot allocate|can't allocate", re.I)


def load_file(path: str) -> ModuleType:
    """A module from its file, once."""
    name = "attnbench_program_" + os.path.splitext(os.path.basename(path))[0]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype that holds the bits of a dtype name."""
    return np.dtype({"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}.get(name, name))


def digest(values: np.ndarray) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()


def read_arrays(file: BinaryIO, listed: Json) -> Arrays:
    """The arrays of a file, each verified by its checksum and copied, since the parent overwrites the file."""
    arrays = {}
    for name, entry in listed.items():
        shape, dtype = tuple(entry["shape"]), numpy_dtype(entry["dtype"])
        values = np.empty(shape, dtype)
        if entry["bytes"]:
            values[...] = np.memmap(file, dtype=dtype, mode="r", offset=entry["offset"], shape=shape)
        if digest(values) != entry["checksum"]:
            raise ValueError(f"the bytes of {name} arrived changed")
        arrays[name] = (entry["dtype"], values)
    return arrays


def write_arrays(file: BinaryIO, arrays: Arrays) -> Json:
    """Write arrays one after another, on boundaries of 64 bytes; returns what `read_arrays` needs."""
    listed = {}
    file.seek(0)
    file.truncate()
    for name, (dtype, values) in arrays.items():
        values = np.ascontiguousarray(values)
        file.write(b"\0" * (-file.tell() % 64))
        entry = {"dtype": dtype, "shape": list(values.shape), "offset": file.tell(), "bytes": values.nbytes}
        listed[name] = {**entry, "checksum": digest(values)}
        file.write(values.tobytes())
    file.flush()
    return listed


def involuntary_switches() -> int:
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def time_calls(job: Any, direction: str, samples: int, calls: int) -> Json:
    """Milliseconds per call, one number per sample; garbage collection is off in the loop.

    A job with a clock of its own gives the host's time per call, too, and how many samples contain some.
    """
    if hasattr(job, "time"):
        return job.time(direction, samples, calls)
    call = job.forward if direction == "fwd" else job.backward
    samples_ms, between = [], range(calls - 1)
    was_collecting = gc.isenabled()
    gc.disable()
    switches = involuntary_switches()
    try:
        for _ in range(samples):
            start = time.perf_counter_ns()
            for _ in between:
                call()
            call()
            samples_ms.append((time.perf_counter_ns() - start) / calls / 1e6)
    finally:
        if was_collecting:
            gc.enable()
    return {"samples_ms": samples_ms, "switches": involuntary_switches() - switches, "host_ms": [], "late": 0}


def limit_memory(limit_bytes: int) -> None:
    """Limit this process to this much more memory than it holds now."""
    import resource

    with open("/proc/self/status") as file:
        mapped = re.search(r"^VmSize:\s+(\d+) kB$", file.read(), re.M)
    if mapped:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (int(mapped.group(1)) * 1024 + limit_bytes, hard))


def unlimited() -> None:
    """Lift a limit on address space that the parent set for itself alone."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def end_with(parent: int) -> None:
    """Exit with the parent, also while the library computes: a closed socket is noticed only between requests."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class Worker:
    """The requests; a method's name is a request's `do`. The parent writes `inputs`, this side `outputs`."""

    def __init__(self, inputs: BinaryIO, outputs: BinaryIO) -> None:
        self.inputs, self.answers = inputs, outputs
        self.program: Any = None
        self.device = "cpu"
        self.jobs: dict[int, Any] = {}

    def start(self, program: str, device: str) -> Json:
        self.program, self.device = load_file(program), device
        started = self.program.start(device)
        packages = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
        return {"packages": packages, **started}

    def limit(self, limit_bytes: int) -> Json:
        limit_memory(limit_bytes)
        return {}

    def prepare(self, job: int, task: Json, arrays: Json) -> Json:
        begun = time.perf_counter()
        self.jobs[job] = prepared = self.program.prepare(task, read_arrays(self.inputs, arrays), self.device)
        prepare_ms = dict(prepared.prepare_ms)
        whole_ms = (time.perf_counter() - begun) * 1e3
        prepare_ms["transfer"] = max(0.0, whole_ms - sum(prepare_ms.values()))
        clock = getattr(prepared, "clock", "perf_counter_ns")
        return {"kernel": prepared.kernel, "prepare_ms": prepare_ms, "clock": clock}

    def refill(self, job: int, arrays: Json) -> Json:
        self.jobs[job].refill(read_arrays(self.inputs, arrays))
        return {}

    def forward(self, job: int) -> Json:
        self.jobs[job].forward()
        return {"arrays": write_arrays(self.answers, self.jobs[job].outputs())}

    def backward(self, job: int) -> Json:
        self.jobs[job].backward()
        return {"arrays": write_arrays(self.answers, self.jobs[job].gradients())}

    def time(self, job: int, direction: str, samples: int, calls: int) -> Json:
        timed = self.jobs[job]
        answer = time_calls(timed, direction, samples, calls)
        arrays = timed.outputs() if direction == "fwd" else timed.gradients()
        return {**answer, "arrays": write_arrays(self.answers, arrays)}

    def memory(self, job: int) -> Json:
        memory: Json = self.jobs[job].memory()
        return memory

    def kernels(self, job: int) -> Json:
        kernels = getattr(self.jobs[job], "kernels", list)
        return {"names": kernels()}

    def drop(self, job: int) -> Json:
        self.jobs[job].drop()
        return {}

    def release(self, job: int) -> Json:
        if self.jobs.pop(job, None) is not None:
            gc.collect()
        return {}


def fault_of(error: BaseException) -> Json:
    """What an exception means: refused, unavailable, oom or error."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, NotImplementedError):
        return {"kind": "refused", "text": str(error) or "raises NotImplementedError"}
    if isinstance(error, ImportError):
        return {"kind": "unavailable", "text": text}
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
        return {"kind": "oom", "text": str(error) or text}
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"kind": "error", "text": text, "trace": trace[-TRACE_CHARACTERS:]}


def serve(channel: socket.socket, inputs: BinaryIO, outputs: BinaryIO) -> None:
    worker = Worker(inputs, outputs)
    lines = channel.makefile("rb")
    for line in lines:
        request = json.loads(line)
        try:
            reply = {"ok": getattr(worker, request.pop("do"))(**request)}
        except Exception as error:  # noqa: BLE001 - the parent is told whatever a library raises
            reply = {"fault": fault_of(error)}
        channel.sendall(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    # The folder of this file holds modules of attnbench, which must not be importable here.
    sys.path = [
        place for place in sys.path if os.path.abspath(place) != os.path.dirname(os.path.abspath(__file__))
    ]
    unlimited()
    channel_fd, inputs_fd, outputs_fd, parent = map(int, sys.argv[1:5])
    end_with(parent)
    serve(socket.socket(fileno=channel_fd), os.fdopen(inputs_fd, "rb"), os.fdopen(outputs_fd, "wb"))
    # Threads that a library left behind would delay a normal exit.
    sys.stdout.flush()
    os._exit(0)
