"""The worker process: it does a runner's steps, so that a crash costs one row.

Started as `python -m attnbench.sweep.worker` or forked by the fork server, in its own session. This is the one place
that catches any exception: it becomes a StepError with its reason.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from attnbench.sweep.channel import Channel, Closed
from attnbench.sweep.limits import become_worker
from attnbench.sweep.step_errors import StepError, step_error_of

BENCH = "attnbench.sweep.bench:Bench"  # module:class of what does the steps of a sweep
STEPS = (
    "pin",
    "open",
    "settle",
    "warm",
    "environment",
    "roofs",
    "reference",
    "admit",
    "judge",
    "judge_again",
    "block",
    "recheck",
    "release",
    "load",  # these two are of the process of `attnbench check`
    "check",
)


def do_step(bench: Any, step: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Do one step; if it fails, raises StepError and nothing else (Ctrl-C passes)."""
    if step not in STEPS:
        raise StepError("error", f"no step {step!r}; the steps are {', '.join(STEPS)}")
    try:
        return getattr(bench, step)(**fields)
    except Exception as error:
        raise step_error_of(error) from error
    except SystemExit as error:
        # sys.exit() in a plug-in is a mistake of the plug-in, not the end of the sweep.
        raise StepError("error", f"called sys.exit({error.code!r})") from error


def serve(channel: Channel, device: str, bench_class: str) -> None:
    """Do steps until the runner is gone."""
    bench = _make_bench(channel, device, bench_class)
    while True:
        try:
            request = channel.receive()
        except Closed:
            return
        try:
            if isinstance(bench, StepError):
                raise bench
            reply = {"ok": do_step(bench, request["step"], request["fields"])}
        except StepError as error:
            reply = {"error": error.to_json()}
        try:
            channel.send(reply)
        except ValueError:
            not_json = StepError("error", f"{request['step']} gave NaN or infinity in its answer")
            channel.send({"error": not_json.to_json()})


def _make_bench(channel: Channel, device: str, bench_class: str) -> Any:
    """The bench, made before the first request so that workers import torch side by side; or why there is none."""
    try:
        module, _, name = bench_class.partition(":")
        return getattr(import_module(module), name)(device, phase=lambda name: channel.send({"phase": name}))
    except Exception as error:
        step_error = step_error_of(error)
        step_error.fatal = True
        return step_error


def work(channel_fd: int, alive_fd: int, parent: int, device: str, bench_class: str = BENCH) -> None:
    """Be a worker of the process `parent` until the runner is gone."""
    # Before torch is imported, so that a crash in an import is located too.
    faulthandler.enable()
    become_worker(parent, alive_fd)
    for fd in (channel_fd, alive_fd):
        os.set_inheritable(fd, False)  # processes of a plug-in must not hold the channel open
    serve(Channel(socket.socket(fileno=channel_fd)), device, bench_class)
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One worker of a sweep; started by the runner.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--alive-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--bench", default=BENCH, help="module:class of what does the steps")
    options = parser.parse_args(arguments)
    work(options.channel_fd, options.alive_fd, options.parent, options.device, options.bench)
    # Threads that a plug-in left behind would hold up a normal exit.
    os._exit(0)


if __name__ == "__main__":
    main()
