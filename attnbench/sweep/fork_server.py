"""The fork server: a process that imports torch once and forks the workers of a plain run on a CPU.

Started as `python -m attnbench.sweep.fork_server`. It has one thread and no CUDA context when it forks, and imports
nothing that a backend might have to set up first (Triton reads its environment at import). Over a socket it says once
whether it can fork; then each message carries the four descriptors of a worker: channel, alive, output, status. Its
workers share an address layout, so whatever measures differences between processes starts them anew.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path

MESSAGE_BYTES = 4096
_PR_SET_PDEATHSIG = 1


def unfit() -> str:
    """Why this process must not fork: more than one thread, or CUDA in use; empty if it may."""
    import torch

    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        return f"{threads} threads run after importing torch"
    return "CUDA is initialised" if torch.cuda.is_initialized() else ""


def load() -> None:
    """Import what every worker needs; afterwards one thread runs."""
    from attnbench.sweep import bench  # noqa: F401

    # numpy's OpenBLAS starts its threads at import and ends them at a fork; a child starts them again when needed.
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page that workers share


def serve(control: socket.socket) -> None:
    """Fork a worker per message until the runner is gone."""
    statuses: dict[int, int] = {}  # worker -> the pipe that gets its exit status
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, MESSAGE_BYTES)
        _report_ended(statuses)
        if control.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4)
        if not message:
            return
        channel, alive, output, status = descriptors
        server = os.getpid()
        if not unfit():  # else the runner reads the end of the status pipe
            if (child := os.fork()) == 0:
                for descriptor in (control.fileno(), woken, wake, *statuses.values()):
                    os.close(descriptor)
                _become(json.loads(message)["device"], server, channel, alive, output, status)
            statuses[child] = os.dup(status)
        for descriptor in descriptors:
            os.close(descriptor)


def _report_ended(statuses: dict[int, int]) -> None:
    while statuses:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(statuses[child], b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(statuses.pop(child))


def _become(device: str, server: int, channel: int, alive: int, output: int, status: int) -> None:
    """Turn the forked process into a worker; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        os.write(status, b"%d\n" % os.getpid())
        os.close(status)
        from attnbench.sweep.worker import work

        work(channel, alive, server, device)
        code = 0
    except BaseException:  # noqa: BLE001 - it must not return into the server's loop
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forks the workers of a sweep; started by the runner.")
    parser.add_argument("--control-fd", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().control_fd)
    control.set_inheritable(False)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        load()
        reason = unfit()
    except ImportError as error:
        reason = f"{type(error).__name__}: {error}"
    control.send(json.dumps({"unfit": reason[: MESSAGE_BYTES // 8]}).encode())
    if not reason:
        serve(control)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
