"""How do runner and worker talk? One JSON object a line over a socket of their own, never over stdout.

Down: `{"step": name, "fields": {...}}`. Up: any number of `{"phase": name}` while it works, then one of
`{"ok": {...}}` and `{"fault": {...}}`.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any


class Closed(Exception):
    """The other side is gone."""


class Late(Exception):
    """No whole message came before the deadline."""


class Channel:
    """One end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; raises Closed where nobody listens, ValueError for NaN or infinity in it."""
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        try:
            self._end.settimeout(None)
            self._end.sendall(line)
        except OSError as problem:
            raise Closed(str(problem)) from problem

    def receive(self, deadline: float | None = None) -> dict[str, Any]:
        """The next message; raises Late past the deadline (of time.monotonic) and Closed at the end."""
        while b"\n" not in self._unread:
            if deadline is not None and time.monotonic() >= deadline:
                raise Late
            self._end.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                piece = self._end.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as problem:
                raise Closed(str(problem)) from problem
            if not piece:
                raise Closed("end of the channel")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError as problem:
            raise Closed(f"not a message: {line[:80]!r}") from problem

    def close(self) -> None:
        self._end.close()
