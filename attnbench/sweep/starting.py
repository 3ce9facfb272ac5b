"""Starts worker processes: anew, or forked from a server that has imported torch once."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from attnbench.sweep.fork_server import MESSAGE_BYTES
from attnbench.waiting import as_given

LOAD_TIMEOUT_S = 180.0
FORK_TIMEOUT_S = 60.0
CAN_FORK = sys.platform == "linux"  # elsewhere system libraries may run threads of their own


class Started(Protocol):
    """A started process, the first of its own session."""

    pid: int

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, negative for a signal; None if it has not ended or nobody knows."""
        ...


class Anew:
    """Starts each worker as a new interpreter. `threads`: the number of torch's threads; `bench`: of another sort."""

    def __init__(
        self, device: str, python: str = sys.executable, threads: int | None = None, bench: str = ""
    ) -> None:
        self._device, self._python, self._threads = device, python, threads
        self._bench = ["--bench", bench] if bench else []

    def start(self, channel: int, alive: int, output: int) -> Started:
        """Start a worker on its end of the channel, the pipe that ends it, and its stdout; may raise OSError."""
        command = [self._python, "-P", "-m", "attnbench.sweep.worker", "--device", self._device]
        command += ["--channel-fd", str(channel), "--alive-fd", str(alive), "--parent", str(os.getpid())]
        command += self._bench
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(channel, alive),
            start_new_session=True,
            env=worker_environment(self._device, self._threads),
        )
        return _OwnChild(popen)


class _OwnChild:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen, self.pid = popen, popen.pid

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


class ForkServer:
    """Forks the workers of a plain run on a CPU; see `fork_server`. `unfit` says why it cannot, once it is known."""

    def __init__(self) -> None:
        self.unfit: str | None = None
        self._control: socket.socket | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the server without waiting for it."""
        if self._popen is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "attnbench.sweep.fork_server"]
        try:
            self._popen = subprocess.Popen(
                [*command, "--control-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=worker_environment("cpu"),
            )
        finally:
            theirs.close()
        self._control = ours

    def start(self, channel: int, alive: int, output: int) -> Started:
        """Fork a worker; OSError if the server cannot, and `unfit` says why."""
        self._wait_until_loaded()
        if self.unfit:
            raise OSError(self.unfit)
        assert self._control is not None
        status, theirs = os.pipe()
        try:
            message = json.dumps({"device": "cpu"}).encode()
            socket.send_fds(self._control, [message], [channel, alive, output, theirs])
        except OSError as error:
            os.close(status)
            self.unfit = f"it ended: {error.strerror}"
            raise
        finally:
            os.close(theirs)
        forked = _Forked(status)
        if forked.pid < 0:
            self.unfit = "it forks no more: more than one thread runs in it, or it ended"
            raise OSError(self.unfit)
        return forked

    def close(self) -> None:
        """End the server."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None

    def _wait_until_loaded(self) -> None:
        if self.unfit is not None:
            return
        self.launch()
        assert self._control is not None
        self._control.settimeout(LOAD_TIMEOUT_S)
        try:
            hello = self._control.recv(MESSAGE_BYTES)
        except OSError as error:
            hello, self.unfit = b"", f"it does not load: {error}"
        if hello:
            self.unfit = json.loads(hello)["unfit"]
        elif self.unfit is None:
            self.unfit = "it ended while it loaded"


class _Forked:
    """A worker that the server forked. The pipe carries its process id, then its exit status. -1: not forked."""

    def __init__(self, status: int) -> None:
        self._status, self._unread = status, b""
        self._code: int | None = None
        pid = self._number(FORK_TIMEOUT_S)
        self.pid = -1 if pid is None else pid

    def wait(self, timeout_s: float) -> int | None:
        if self._code is None and self._status >= 0:
            self._code = self._number(timeout_s)
            if self._code is not None:
                self._close()
        return self._code

    def _number(self, timeout_s: float) -> int | None:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._status], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._status, 64) if ready else b""
            if not piece:
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return int(line)

    def _close(self) -> None:
        if self._status >= 0:
            with contextlib.suppress(OSError):
                os.close(self._status)
            self._status = -1

    def __del__(self) -> None:
        self._close()


def worker_environment(device: str, threads: int | None = None) -> dict[str, str]:
    """The caller's environment with its attnbench on the path; `threads`: the number of torch's threads."""
    environment = as_given(dict(os.environ))
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if device.split(":")[0] == "cpu":
        # Else torch.compile starts processes that import torch, beside what is timed.
        environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    root = str(Path(__file__).resolve().parents[2])
    if "site-packages" not in root:  # a checkout: the worker may use another Python than the caller
        path = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{root}" if path else root
    return environment
