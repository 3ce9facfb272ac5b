"""A backend in another Python environment: this process's side of the foreign process that runs it.

The inputs travel as bytes through a mapped file, each array with a checksum, never as a seed; outputs come back the
same way and are judged in this process. Blocks of timed calls run in the foreign process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnbench.backend.interface import Gradients, Output, Prepared
from attnbench.errors import AttnbenchError, BackendUnavailable, ForeignDied

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.problem import Case, Inputs

WORKER = Path(__file__).with_name("foreign_worker.py")
SHARED_MEMORY = Path("/dev/shm")
TAIL_BYTES = 2000
ALIGNED = 64

Arrays = dict[str, tuple[str, np.ndarray[Any, Any]]]  # name -> dtype name, values (bf16 as uint16)


class Foreign:
    """A process under another interpreter that runs one program; starts at the first call, ends with its owner."""

    def __init__(self, python: Path, program: Path, device: str, *, keep_path: bool = False) -> None:
        self.python, self.program, self.device = python, program, device
        self._keep_path = keep_path
        self._end: Callable[[], None] | None = None
        self._jobs = count()
        self.released: list[int] = []

    def start(self) -> dict[str, Any]:
        """Start the process unless it runs; returns the program's first answer."""
        if self._end is None:
            self._spawn()
        return self._started

    def next_job(self) -> int:
        return next(self._jobs)

    def call(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send one request and wait for the answer."""
        self.start()
        while self.released:
            self._ask("release", job=self.released.pop())
        return self._ask(do, **fields)

    def send(self, arrays: Arrays) -> dict[str, Any]:
        """Write arrays to the file that the foreign process reads; returns the request fields that describe them."""
        self.start()
        listed: dict[str, Any] = {}
        file = self._inputs
        file.seek(0)
        file.truncate()
        for name, (dtype, values) in arrays.items():
            data = np.ascontiguousarray(values).tobytes()
            file.write(b"\0" * (-file.tell() % ALIGNED))
            entry = {"dtype": dtype, "shape": list(values.shape), "offset": file.tell(), "bytes": len(data)}
            listed[name] = entry | {"checksum": hashlib.blake2b(data, digest_size=16).hexdigest()}
            file.write(data)
        file.flush()
        return {"arrays": listed}

    def receive(self, listed: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of an answer, verified by their checksums."""
        tensors = {}
        for name, entry in listed.items():
            self._outputs.seek(entry["offset"])
            data = bytearray(self._outputs.read(entry["bytes"]))
            if hashlib.blake2b(data, digest_size=16).hexdigest() != entry["checksum"]:
                raise AttnbenchError(f"the bytes of {name} came back changed from {self.python}")
            tensors[name] = tensor_of(entry["dtype"], entry["shape"], data)
        return tensors

    def stop(self) -> None:
        """End the process and remove its files."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def _spawn(self) -> None:
        place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) and _roomy(SHARED_MEMORY) else None
        # Files without a name: nothing stays behind if a process is killed.
        files = [tempfile.TemporaryFile(dir=place, buffering=0) for _ in range(3)]  # noqa: SIM115 - _stop closes them
        self._inputs, self._outputs, self._printed = files
        ours, theirs = socket.socketpair()
        passed = (theirs.fileno(), self._inputs.fileno(), self._outputs.fileno())
        try:
            self._popen = subprocess.Popen(
                [str(self.python), str(WORKER), *map(str, (*passed, os.getpid()))],
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                pass_fds=passed,
                env=self._environment(),
            )
        except OSError as error:
            ours.close()
            raise BackendUnavailable(f"{self.python} cannot be started: {error}") from error
        finally:
            theirs.close()
        self._channel, self._lines = ours, ours.makefile("rb")
        # The process ends when the socket closes, however this object is destroyed.
        self._end = weakref.finalize(self, _stop, self._popen, [self._lines, ours, *files])
        try:
            self._started: dict[str, Any] = self._ask("start", program=str(self.program), device=self.device)
        except BaseException:
            self.stop()
            raise

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        for name in ("PYTHONHOME", "VIRTUAL_ENV", "TRITON_INTERPRET"):
            environment.pop(name, None)
        if not self._keep_path:
            environment.pop("PYTHONPATH", None)
        environment["PYTHONUNBUFFERED"] = "1"
        return environment

    def _ask(self, do: str, **fields: Any) -> dict[str, Any]:
        try:
            self._channel.sendall(json.dumps({"do": do, **fields}, allow_nan=False).encode() + b"\n")
            line = self._lines.readline()
        except OSError:
            line = b""
        except (
            BaseException
        ):  # Ctrl-C between question and answer: the next answer would be another question's
            self.stop()
            raise
        if not line.endswith(b"\n"):
            raise self._death(do)
        answer = json.loads(line)
        if "fault" in answer:
            raise _error_of(answer["fault"], self.python)
        return answer["ok"]

    def _death(self, do: str) -> ForeignDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=5.0)
        code = self._popen.poll()
        how = (
            "does not answer"
            if code is None
            else f"was killed by signal {-code}"
            if code < 0
            else f"exited with {code}"
        )
        self._printed.seek(0)
        last = self._printed.read()[-TAIL_BYTES:].decode(errors="replace").strip()
        self.stop()
        tail = f"\nit wrote last: {last}" if last else ""
        return ForeignDied(f"the process under {self.python} {how} while in: {do}{tail}")


def _roomy(place: Path) -> bool:
    return shutil.disk_usage(place).free > 4 << 30


def _stop(popen: subprocess.Popen[bytes], files: Sequence[Any]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.close()
    popen.kill()
    popen.wait()


def _error_of(fault: dict[str, str], python: Path) -> Exception:
    text = fault["text"]
    if fault["kind"] == "refused":
        return NotImplementedError(text)
    if fault["kind"] == "unavailable":
        return BackendUnavailable(f"{text} (under {python})")
    if fault["kind"] == "oom":
        return MemoryError(text)
    error = AttnbenchError(f"{text} (under {python})")
    error.add_note(fault.get("trace", ""))
    return error


def array_of(tensor: Tensor) -> tuple[str, np.ndarray[Any, Any]]:
    """The dtype name of a tensor, and its bits."""
    import torch

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    whole = tensor.detach().cpu().contiguous()
    if whole.dtype == torch.bfloat16:
        return "bf16", whole.view(torch.int16).numpy().view(np.uint16)
    return names.get(whole.dtype) or str(whole.numpy().dtype), whole.numpy()


def tensor_of(dtype: str, shape: list[int], data: bytearray) -> Tensor:
    """A tensor from its bits."""
    import torch

    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    if not data:
        return torch.empty(shape, dtype=torch_dtype)
    return torch.frombuffer(data, dtype=torch_dtype).reshape(shape)


class ForeignPrepared(Prepared):
    """A case prepared in the foreign process. Tensors cross as [B, S, H, D], the layout of all its libraries.

    `task` is the lowered case; `arrays` are the arrays that belong to it (masks, index tables).
    """

    def __init__(
        self, foreign: Foreign, case: Case, inputs: Inputs, task: dict[str, Any], arrays: Arrays
    ) -> None:
        super().__init__()
        self._foreign, self._inputs, self._arrays = foreign, inputs, arrays
        self._job = foreign.next_job()
        self._device = inputs.device
        with self.step("start"):
            foreign.start()
        with self.step("transfer"):
            self._sent = inputs.checksum()
            fields = foreign.send(self._tensors() | arrays)
        answer = foreign.call("prepare", job=self._job, task=task | {"case": facts_of(case)}, **fields)
        self.kernel, self.clock = answer["kernel"], answer["clock"]
        for name, milliseconds in answer["prepare_ms"].items():
            self.prepare_ms[name] = self.prepare_ms.get(name, 0.0) + milliseconds
        weakref.finalize(self, foreign.released.append, self._job)

    def forward(self) -> Output:
        self._refill()
        return self._output(self._foreign.call("forward", job=self._job))

    def backward(self, dout: Tensor) -> Gradients:
        self._refill(dout)
        return self._gradients(self._foreign.call("backward", job=self._job))

    def call(self, direction: str, dout: Tensor | None) -> ForeignCall:
        if direction == "bwd":
            assert dout is not None
            self.forward()
        return ForeignCall(self, direction, dout)

    def memory(self) -> dict[str, int]:
        """Bytes, as the library in the foreign process accounts for them."""
        return self._foreign.call("memory", job=self._job)

    def kernels(self) -> list[str]:
        """The names of the GPU kernels that run in the foreign process, if the program knows them."""
        return list(self._foreign.call("kernels", job=self._job)["names"])

    def drop_graph(self) -> None:
        self._foreign.call("drop", job=self._job)

    def timed(
        self, direction: str, samples: int, calls: int
    ) -> tuple[list[float], Any, int, list[float], int]:
        """Time calls in the foreign process: the fields of `Timed`."""
        answer = self._foreign.call("time", job=self._job, direction=direction, samples=samples, calls=calls)
        last = self._output(answer) if direction == "fwd" else self._gradients(answer)
        return answer["samples_ms"], last, answer["switches"], answer["host_ms"], answer["late"]

    def _tensors(self, dout: Tensor | None = None) -> Arrays:
        named = dict(self._inputs.tensors)
        if dout is not None:
            named["dout"] = dout
        outer = ("q", "k", "v", "dout")
        # [B, H, S, D] -> [B, S, H, D]
        return {name: array_of(x.transpose(1, 2) if name in outer else x) for name, x in named.items()}

    def _refill(self, dout: Tensor | None = None) -> None:
        """Send the tensors again if their values changed since they were sent (the storage may be reused)."""
        own = self._inputs.dout
        other = None if dout is None or dout is own else dout
        now = self._inputs.checksum() + ("" if other is None else _checksum(other))
        if now != self._sent:
            fields = self._foreign.send(self._tensors(other))
            self._foreign.call("refill", job=self._job, **fields)
            self._sent = now

    def _output(self, answer: dict[str, Any]) -> Output:
        tensors = self._received(answer)
        return Output(tensors["out"].transpose(1, 2), tensors.get("lse"))  # [B, H, Q, Dv], [B, H, Q]

    def _gradients(self, answer: dict[str, Any]) -> Gradients:
        tensors = self._received(answer)
        dq, dk, dv = (tensors.pop(name).transpose(1, 2) for name in ("dq", "dk", "dv"))  # [B, H, S, D]
        return Gradients(dq, dk, dv, tensors)

    def _received(self, answer: dict[str, Any]) -> dict[str, Tensor]:
        return {name: x.to(self._device) for name, x in self._foreign.receive(answer["arrays"]).items()}


class ForeignCall:
    """One direction of a prepared case, as a callable that times itself in the foreign process."""

    def __init__(self, prepared: ForeignPrepared, direction: str, dout: Tensor | None) -> None:
        self._prepared, self._direction, self._dout = prepared, direction, dout

    def __call__(self) -> Output | Gradients:
        if self._direction == "fwd":
            return self._prepared.forward()
        assert self._dout is not None
        return self._prepared.backward(self._dout)

    def timed(self, samples: int, calls_per_sample: int) -> tuple[list[float], Any, int, list[float], int]:
        """Milliseconds per call, one number per sample; the result of the last call; forced switches; on a GPU the
        host's milliseconds per call, and the samples that contain some.
        """
        return self._prepared.timed(self._direction, samples, calls_per_sample)


def facts_of(case: Case) -> dict[str, Any]:
    """What the foreign process must know of a case; the mask and the score changes are in the task."""
    names = ("batch", "q_len", "k_len", "q_heads", "kv_heads", "head_dim", "v_dim", "dtype", "direction")
    return {name: getattr(case, name) for name in names} | {"scale": case.softmax_scale}


def _checksum(tensor: Tensor) -> str:
    return hashlib.blake2b(array_of(tensor)[1].tobytes(), digest_size=16).hexdigest()
