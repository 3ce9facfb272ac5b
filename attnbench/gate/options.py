"""How revisions are gated and a machine is calibrated: cases, backends, effect, time, device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """The options that gating revisions and calibrating share; `attnbench gate --help` explains each.

    `backends` None: those whose code differs. `record` is a Parquet file for the raw rounds.
    """

    suite: str = "gate"
    backends: list[str] | None = None
    everything: bool = False
    effect: float = 0.05
    minutes: float = 10.0
    device: str = "auto"
    threads: int = 1
    record: Path | None = None
    arch: str = "sm_90"

    def threads_on(self, device: str) -> int | None:
        """The number of torch threads; None on a GPU, where they do not matter."""
        return self.threads if device == "cpu" else None
