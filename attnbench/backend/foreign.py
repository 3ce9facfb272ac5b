"""How does a backend answer from another Python environment? Home's end of the process that runs there.

The inputs travel as their bytes through a mapped file, each array with a checksum, and never by a random generator;
outputs come back the same way. Judging is done at home, on what came back. Blocks of timed calls run over there.
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
    """A process under another interpreter that runs one program; started at the first call, ended with its owner."""

    def __init__(self, python: Path, program: Path, device: str, *, keep_path: bool = False) -> None:
        self.python, self.program, self.device = python, program, device
        self._keep_path = keep_path
        self._end: Callable[[], None] | None = None
        self._jobs = count()
        self.released: list[int] = []

    def start(self) -> dict[str, Any]:
        """Start the process where it does not run; what the program says of itself."""
        if self._end is None:
            self._spawn()
        return self._started

    def next_job(self) -> int:
        return next(self._jobs)

    def call(self, do: str, **fields: Any) -> dict[str, Any]:
        """Ask for one thing and wait for the answer."""
        self.start()
        while self.released:
            self._ask("release", job=self.released.pop())
        return self._ask(do, **fields)

    def send(self, arrays: Arrays) -> dict[str, Any]:
        """Write arrays where the other side reads them; the fields of a request that say so."""
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
        """The tensors of an answer, held against their checksums."""
        found = {}
        for name, entry in listed.items():
            self._outputs.seek(entry["offset"])
            data = bytearray(self._outputs.read(entry["bytes"]))
            if hashlib.blake2b(data, digest_size=16).hexdigest() != entry["checksum"]:
                raise AttnbenchError(f"the bytes of {name} came back changed from {self.python}")
            found[name] = tensor_of(entry["dtype"], entry["shape"], data)
        return found

    def stop(self) -> None:
        """End the process and remove its files."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def _spawn(self) -> None:
        place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) and _roomy(SHARED_MEMORY) else None
        # Files without a name: nothing stays behind, whichever process is killed.
        files = [tempfile.TemporaryFile(dir=place, buffering=0) for _ in range(3)]  # noqa: SIM115 - _stop closes them
        self._inputs, self._outputs, self._said = files
        ours, theirs = socket.socketpair()
        passed = (theirs.fileno(), self._inputs.fileno(), self._outputs.fileno())
        try:
            self._popen = subprocess.Popen(
                [str(self.python), str(WORKER), *map(str, (*passed, os.getpid()))],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                pass_fds=passed,
                env=self._environment(),
            )
        except OSError as problem:
            ours.close()
            raise BackendUnavailable(f"{self.python} cannot be started: {problem}") from problem
        finally:
            theirs.close()
        self._channel, self._lines = ours, ours.makefile("rb")
        # However this object goes: the process ends when the socket closes.
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
            raise _problem(answer["fault"], self.python)
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
        self._said.seek(0)
        said = self._said.read()[-TAIL_BYTES:].decode(errors="replace").strip()
        self.stop()
        tail = f"\nit wrote last: {said}" if said else ""
        return ForeignDied(f"the process under {self.python} {how} while in: {do}{tail}")


def _roomy(place: Path) -> bool:
    return shutil.disk_usage(place).free > 4 << 30


def _stop(popen: subprocess.Popen[bytes], files: Sequence[Any]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.close()
    popen.kill()
    popen.wait()


def _problem(fault: dict[str, str], python: Path) -> Exception:
    text = fault["text"]
    if fault["kind"] == "refused":
        return NotImplementedError(text)
    if fault["kind"] == "unavailable":
        return BackendUnavailable(f"{text} (under {python})")
    if fault["kind"] == "oom":
        return MemoryError(text)
    problem = AttnbenchError(f"{text} (under {python})")
    problem.add_note(fault.get("trace", ""))
    return problem


def array_of(tensor: Tensor) -> tuple[str, np.ndarray[Any, Any]]:
    """The bits of a tensor, and what they mean."""
    import torch

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    whole = tensor.detach().cpu().contiguous()
    if whole.dtype == torch.bfloat16:
        return "bf16", whole.view(torch.int16).numpy().view(np.uint16)
    return names.get(whole.dtype) or str(whole.numpy().dtype), whole.numpy()


def tensor_of(dtype: str, shape: list[int], data: bytearray) -> Tensor:
    """A tensor from its bits."""
    import torch

    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if not data:
        return torch.empty(shape, dtype=known[dtype])
    return torch.frombuffer(data, dtype=known[dtype]).reshape(shape)


class ForeignPrepared(Prepared):
    """A case prepared over there. Tensors cross as [B, S, H, D], the layout of all libraries that live there.

    `task` is what the backend lowered the case to; `arrays` are the arrays that belong to it (masks, index tables).
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
        made = foreign.call("prepare", job=self._job, task=task | {"case": facts_of(case)}, **fields)
        self.kernel, self.clock = made["kernel"], made["clock"]
        for name, milliseconds in made["prepare_ms"].items():
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
        """Bytes as the library over there accounts for them."""
        return self._foreign.call("memory", job=self._job)

    def kernels(self) -> list[str]:
        """The names of the GPU kernels that run over there, where the program can tell."""
        return list(self._foreign.call("kernels", job=self._job)["names"])

    def drop_graph(self) -> None:
        self._foreign.call("drop", job=self._job)

    def timed(self, direction: str, samples: int, calls: int) -> tuple[list[float], Any, int]:
        """Time calls over there: milliseconds a call, what the last one gave, forced switches."""
        asked = {"direction": direction, "samples": samples, "calls": calls}
        answer = self._foreign.call("time", job=self._job, **asked)
        last = self._output(answer) if direction == "fwd" else self._gradients(answer)
        return answer["samples_ms"], last, answer["switches"]

    def _tensors(self, dout: Tensor | None = None) -> Arrays:
        named = dict(self._inputs.tensors)
        if dout is not None:
            named["dout"] = dout
        outer = ("q", "k", "v", "dout")
        # [B, H, S, D] -> [B, S, H, D]
        return {name: array_of(x.transpose(1, 2) if name in outer else x) for name, x in named.items()}

    def _refill(self, dout: Tensor | None = None) -> None:
        """Send the tensors again where their numbers changed since they were sent (the storage may be reused)."""
        own = self._inputs.dout
        other = None if dout is None or dout is own else dout
        now = self._inputs.checksum() + ("" if other is None else _checksum(other))
        if now != self._sent:
            fields = self._foreign.send(self._tensors(other))
            self._foreign.call("refill", job=self._job, **fields)
            self._sent = now

    def _output(self, answer: dict[str, Any]) -> Output:
        found = {name: x.to(self._device) for name, x in self._foreign.receive(answer["arrays"]).items()}
        return Output(found["out"].transpose(1, 2), found.get("lse"))  # [B, H, Q, Dv], [B, H, Q]

    def _gradients(self, answer: dict[str, Any]) -> Gradients:
        found = {name: x.to(self._device) for name, x in self._foreign.receive(answer["arrays"]).items()}
        dq, dk, dv = (found.pop(name).transpose(1, 2) for name in ("dq", "dk", "dv"))  # [B, H, S, D]
        return Gradients(dq, dk, dv, found)


class ForeignCall:
    """One direction of a prepared case as a callable that can time itself where it runs."""

    def __init__(self, prepared: ForeignPrepared, direction: str, dout: Tensor | None) -> None:
        self._prepared, self._direction, self._dout = prepared, direction, dout

    def __call__(self) -> Output | Gradients:
        if self._direction == "fwd":
            return self._prepared.forward()
        assert self._dout is not None
        return self._prepared.backward(self._dout)

    def timed(self, samples: int, calls_per_sample: int) -> tuple[list[float], Any, int]:
        """Milliseconds a call, one number a sample; what the last call gave; forced switches."""
        return self._prepared.timed(self._direction, samples, calls_per_sample)


def facts_of(case: Case) -> dict[str, Any]:
    """What the other side must know of a case; the mask and the score changes are in the task."""
    names = ("batch", "q_len", "k_len", "q_heads", "kv_heads", "head_dim", "v_dim", "dtype", "direction")
    return {name: getattr(case, name) for name in names} | {"scale": case.softmax_scale}


def _checksum(tensor: Tensor) -> str:
    return hashlib.blake2b(array_of(tensor)[1].tobytes(), digest_size=16).hexdigest()
