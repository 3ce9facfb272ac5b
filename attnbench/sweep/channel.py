"""The link between runner and worker: one JSON object per line over a socket of its own, never over stdout.

Requests: `{"step": name, "fields": {...}}`. Replies: any number of `{"phase": name}` while the step runs, then either
`{"ok": {...}}` or `{"error": {...}}`.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any


class Closed(Exception):
    """The other end is gone."""


class Late(Exception):
    """No whole message came before the deadline."""


class Channel:
    """One end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; raises Closed if the other end is gone, ValueError for NaN or infinity."""
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        try:
            self._end.settimeout(None)
            self._end.sendall(line)
        except OSError as error:
            raise Closed(str(error)) from error

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
            except OSError as error:
                raise Closed(str(error)) from error
            if not piece:
                raise Closed("end of the channel")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError as error:
            raise Closed(f"not a message: {line[:80]!r}") from error

    def close(self) -> None:
        self._end.close()
