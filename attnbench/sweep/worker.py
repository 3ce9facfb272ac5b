"""What runs apart, so that its death costs one row? A process that answers a runner's steps.

Started as `python -m attnbench.sweep.worker`, in a session of its own. This is the one place where any
exception is caught: it becomes a fault with its reason.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from attnbench.sweep.channel import Channel, Closed
from attnbench.sweep.limits import behave_as_a_worker
from attnbench.sweep.step_errors import Fault, fault_of

STEPS = (
    "pin",
    "open",
    "settle",
    "environment",
    "roofs",
    "reference",
    "admit",
    "judge",
    "block",
    "recheck",
    "release",
)


def answer(bench: Any, step: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Do one step; raises a Fault, and nothing else, where it fails (Ctrl-C passes)."""
    if step not in STEPS:
        raise Fault("error", f"no step {step!r}; there are {', '.join(STEPS)}")
    try:
        return getattr(bench, step)(**fields)
    except Exception as problem:
        raise fault_of(problem) from problem
    except SystemExit as problem:
        # sys.exit() in a plug-in is a mistake of the plug-in, not the end of the sweep.
        raise Fault("error", f"called sys.exit({problem.code!r})") from problem


def serve(channel: Channel, device: str) -> None:
    """Answer steps until the runner is gone."""
    bench = _make_bench(channel, device)
    while True:
        try:
            request = channel.receive()
        except Closed:
            return
        try:
            if isinstance(bench, Fault):
                raise bench
            reply = {"ok": answer(bench, request["step"], request["fields"])}
        except Fault as fault:
            reply = {"fault": fault.to_json()}
        try:
            channel.send(reply)
        except ValueError:
            problem = Fault("error", f"{request['step']} gave NaN or infinity in its answer")
            channel.send({"fault": problem.to_json()})


def _make_bench(channel: Channel, device: str) -> Any:
    """The bench, made before the first request: workers import torch side by side; or why there is none."""
    try:
        from attnbench.sweep.bench import Bench

        return Bench(device, phase=lambda name: channel.send({"phase": name}))
    except Exception as problem:
        fault = fault_of(problem)
        fault.fatal = True
        return fault


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One worker of a sweep; started by the runner.")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--alive-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--device", required=True)
    given = parser.parse_args(arguments)
    # Before anything of torch: a crash while importing has its place told, too.
    faulthandler.enable()
    behave_as_a_worker(given.parent, given.alive_fd)
    for fd in (given.channel_fd, given.alive_fd):
        os.set_inheritable(fd, False)  # what a plug-in starts must not hold the channel open
    serve(Channel(socket.socket(fileno=given.channel_fd)), given.device)
    # Threads that a plug-in left behind would hold a tidy exit up.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
