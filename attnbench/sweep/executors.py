"""Who does the steps? A worker process that may die, or this process: the same calls and the same faults."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from attnbench.sweep.channel import Channel, Closed, Late
from attnbench.sweep.step_errors import Fault, one_line, out_of_memory_in
from attnbench.sweep.worker import answer

TAIL_BYTES = 1 << 16
NOTE_CHARACTERS = 2000


class Executor(Protocol):
    """What does steps for the runner."""

    def start(self) -> None:
        """Begin to start; does not wait."""
        ...

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Do a step and give its answer; raises Fault. After a fatal one the executor is stopped."""
        ...

    def stop(self) -> None:
        """End it and all that it started; may be called at any time."""
        ...


class InProcess:
    """Steps in the calling process: for callables, which cannot be named. Nothing limits their time."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._bench: Any = None

    def start(self) -> None:
        if self._bench is None:
            from attnbench.sweep.bench import Bench

            self._bench = Bench(self._device)

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        self.start()
        if step in ("pin", "settle"):  # threads and limits of the caller's process are the caller's
            return {}
        return answer(self._bench, step, fields)

    def stop(self) -> None:
        if self._bench is not None:
            with contextlib.suppress(Fault):
                answer(self._bench, "release", {})
        self._bench = None


@dataclass
class _Process:
    """A running worker: what is held of it."""

    popen: subprocess.Popen[bytes]
    channel: Channel
    alive: int  # the worker ends when this is closed
    tail: _Tail
    phase: str = "starting"


class WorkerProcess:
    """Steps in a process of its own, spoken to over a socketpair, killed with its children where need be."""

    def __init__(self, device: str, python: str = sys.executable, threads: int | None = None) -> None:
        self._device = device
        self._threads = threads
        self._python = python
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        return None if self._process is None else self._process.popen.pid

    def start(self) -> None:
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        command = [self._python, "-P", "-m", "attnbench.sweep.worker", "--device", self._device]
        command += [
            "--channel-fd",
            str(theirs.fileno()),
            "--alive-fd",
            str(read_end),
            "--parent",
            str(os.getpid()),
        ]
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), read_end),
                start_new_session=True,
                env=_environment(self._threads),
            )
        except OSError as problem:
            ours.close()
            os.close(write_end)
            raise Fault("crashed", f"the worker cannot be started: {problem}", fatal=True) from problem
        finally:
            theirs.close()
            os.close(read_end)
        self._process = _Process(popen, Channel(ours), write_end, _Tail(popen.stdout))

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        self.start()
        process = self._process
        assert process is not None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            process.channel.send({"step": step, "fields": fields})
            while True:
                message = process.channel.receive(deadline)
                if "phase" in message:
                    process.phase = message["phase"]
                elif "fault" in message:
                    fault = Fault(**message["fault"])
                    if fault.fatal:
                        self.stop()
                    raise fault
                else:
                    return message["ok"]
        except Late:
            phase = process.phase
            self.stop()
            raise Fault(
                "timeout", f"no answer after {timeout_s:.4g} s while in: {phase}", fatal=True
            ) from None
        except Closed as problem:
            raise self._crash(str(problem)) from None
        except BaseException as problem:
            # Ctrl-C between question and answer: the next answer would be taken for another question's.
            if not isinstance(problem, Fault):
                self.stop()
            raise

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # The whole session: a plug-in's own children go with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.kill()
        process.popen.wait()
        process.channel.close()
        os.close(process.alive)
        process.tail.close()

    def _crash(self, detail: str) -> Fault:
        process = self._process
        assert process is not None
        try:
            code: int | None = process.popen.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = None
        process.tail.settle()
        text = process.tail.text()
        phase = process.phase
        self.stop()
        if code is None:
            how = f"broke off its channel ({detail})"
        elif code < 0:
            how = f"killed by {_signal_name(-code)}"
        else:
            how = f"exited with status {code}"
        notes = [f"its last output: {text[-NOTE_CHARACTERS:]}"] if text.strip() else []
        if out_of_memory_in(text):
            return Fault("oom", f"{how} while in: {phase}; {_last_line(text)}", notes, fatal=True)
        place = _place_of_crash(text)
        return Fault("crashed", f"{how} while in: {phase}{place or _said(text)}", notes, fatal=True)


class _Tail:
    """The last of what a worker wrote to stdout and stderr; however much it was."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._kept = b""
        self._thread = threading.Thread(target=self._read, name="worker-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._stream.fileno(), 1 << 16):
                self._kept = (self._kept + piece)[-TAIL_BYTES:]

    def settle(self) -> None:
        """Wait for what a dead worker left in the pipe (its children may hold it open for longer)."""
        self._thread.join(timeout=1.0)

    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def close(self) -> None:
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            self._stream.close()


def _environment(threads: int | None) -> dict[str, str]:
    """The caller's environment, with attnbench found where the caller found it; `threads` of torch where given."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    home = str(Path(__file__).resolve().parents[2])
    if "site-packages" not in home:  # a checkout: the worker may use another Python than the caller
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{before}{os.pathsep}{home}" if before else home
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _place_of_crash(text: str) -> str:
    """Where Python was when it crashed, from faulthandler's dump."""
    dump = re.search(r"^Current thread .*?\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', dump.group(1)) if dump else []
    theirs = [
        f for f in frames if not re.search(r"[\\/](site-packages|attnbench|lib[\\/]python[\d.]+)[\\/]", f[0])
    ]
    if not theirs:
        return ""
    file, line, function = theirs[0]
    return f", in {function} ({Path(file).name}:{line})"


def _said(text: str) -> str:
    line = _last_line(text)
    return f"; its last line: {line}" if line else ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""
