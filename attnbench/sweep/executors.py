"""Where steps run: in a worker process that may die, or in this process, with the same calls and errors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from attnbench.errors import is_library_file
from attnbench.sweep.channel import Channel, Closed, Late
from attnbench.sweep.starting import Anew, ForkServer, Started
from attnbench.sweep.step_errors import StepError, one_line, out_of_memory_in
from attnbench.sweep.worker import BENCH, do_step

KEPT_OUTPUT_BYTES = 1 << 16
NOTE_CHARACTERS = 2000
ENDING_S = 5.0  # a killed process may wait for the disk or a driver


class Executor(Protocol):
    """Does steps for the runner."""

    def start(self) -> None:
        """Start without waiting."""
        ...

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Do a step and return its answer; raises StepError. After a fatal one the executor is stopped."""
        ...

    def stop(self) -> None:
        """End it and every process it started; may be called at any time."""
        ...


class InProcess:
    """Steps in the calling process, for callables that no worker can import. Nothing limits their time."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._bench: Any = None

    def start(self) -> None:
        if self._bench is None:
            from attnbench.sweep.bench import Bench

            self._bench = Bench(self._device)

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        self.start()
        if step in ("pin", "settle"):  # the caller sets its own threads and limits
            return {}
        return do_step(self._bench, step, fields)

    def stop(self) -> None:
        if self._bench is not None:
            with contextlib.suppress(StepError):
                do_step(self._bench, "release", {})
        self._bench = None


@dataclass
class _Process:
    """The handles of a running worker."""

    started: Started
    channel: Channel
    alive: int  # the worker ends when this is closed
    output: _Output
    phase: str = "starting"


class WorkerProcess:
    """Steps in a process of their own, over a socketpair; it is killed together with its children.

    With a `server` workers are forked from it; if it cannot fork, or without one, they start anew.
    """

    def __init__(
        self,
        device: str,
        python: str = sys.executable,
        threads: int | None = None,
        server: ForkServer | None = None,
        bench: str = BENCH,
    ) -> None:
        self._anew = Anew(device, python, threads, bench)
        self._server = server
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if it is not running."""
        return None if self._process is None else self._process.started.pid

    @property
    def printed(self) -> str:
        """The end of what the running worker wrote to stdout and stderr."""
        return "" if self._process is None else self._process.output.text()

    def start(self) -> None:
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        output, output_end = os.pipe()
        try:
            started = self._start(theirs.fileno(), read_end, output_end)
        except OSError as error:
            ours.close()
            os.close(write_end)
            os.close(output)
            raise StepError("crashed", f"the worker cannot be started: {error}", fatal=True) from error
        finally:
            theirs.close()
            os.close(read_end)
            os.close(output_end)
        self._process = _Process(started, Channel(ours), write_end, _Output(output))

    def _start(self, *ends: int) -> Started:
        if self._server is not None:
            with contextlib.suppress(OSError):  # the server keeps the reason for the runner to tell
                return self._server.start(*ends)
        return self._anew.start(*ends)

    def call(
        self,
        step: str,
        timeout_s: float | None = None,
        on_phase: Callable[[Any], float | None] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Do a step; `on_phase` gets each phase that it tells, and gives the seconds until the next, if limited."""
        self.start()
        process = self._process
        assert process is not None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            process.channel.send({"step": step, "fields": fields})
            while True:
                message = process.channel.receive(deadline)
                if "phase" in message and on_phase is not None:
                    process.phase = step
                    timeout_s = on_phase(message["phase"])
                    deadline = None if timeout_s is None else time.monotonic() + timeout_s
                elif "phase" in message:
                    process.phase = message["phase"]
                elif "error" in message:
                    step_error = StepError(**message["error"])
                    if step_error.fatal:
                        self.stop()
                    raise step_error
                else:
                    return message["ok"]
        except Late:
            phase = process.phase
            self.stop()
            raise StepError(
                "timeout", f"no answer after {timeout_s:.4g} s while in: {phase}", fatal=True
            ) from None
        except Closed as error:
            raise self._crash(str(error)) from None
        except StepError:
            raise
        except BaseException:
            # Ctrl-C between request and reply: the next request would read this one's reply.
            self.stop()
            raise

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # The whole session: a plug-in's own children go with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.started.pid, signal.SIGKILL)
        process.started.wait(ENDING_S)
        process.channel.close()
        os.close(process.alive)
        process.output.close()

    def _crash(self, detail: str) -> StepError:
        process = self._process
        assert process is not None
        code = process.started.wait(ENDING_S)
        process.output.drain()
        text = process.output.text()
        phase = process.phase
        self.stop()
        if code is None:
            how = f"closed its channel ({detail})"
        elif code < 0:
            how = f"killed by {_signal_name(-code)}"
        else:
            how = f"exited with status {code}"
        notes = [f"its last output: {text[-NOTE_CHARACTERS:]}"] if text.strip() else []
        if out_of_memory_in(text):
            return StepError("oom", f"{how} while in: {phase}; {_last_line(text)}", notes, fatal=True)
        place = _place_of_crash(text)
        return StepError("crashed", f"{how} while in: {phase}{place or _ending(text)}", notes, fatal=True)


class _Output:
    """The end of what a worker wrote to stdout and stderr, read continuously so that the worker never blocks."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._kept = b""
        self._thread = threading.Thread(target=self._read, name="worker-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._end, 1 << 16):
                self._kept = (self._kept + piece)[-KEPT_OUTPUT_BYTES:]

    def drain(self) -> None:
        """Wait for the rest of a dead worker's output (its children may hold the pipe open for longer)."""
        self._thread.join(timeout=1.0)

    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def close(self) -> None:
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            os.close(self._end)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _place_of_crash(text: str) -> str:
    """The function and line where Python crashed, from faulthandler's dump."""
    dump = re.search(r"^Current thread .*?\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', dump.group(1)) if dump else []
    own = [frame for frame in frames if not is_library_file(frame[0])]
    if not own:
        return ""
    file, line, function = own[0]
    return f", in {function} ({Path(file).name}:{line})"


def _ending(text: str) -> str:
    line = _last_line(text)
    return f"; its last line: {line}" if line else ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""
