"""What does a report show of its worst failure? The picture of `attnbench show`, drawn in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.sweep.result import Result

LIMIT_S = 120.0


def draw_worst(result: Result, folder: Path) -> Path | None:
    """Draw the errors of a result into `folder`; None where its backend cannot be run here any more.

    A wrong backend may crash: it is run in a process of its own, for LIMIT_S at most.
    """
    words = ["show", json.dumps(result.case), "--backend", result.backend, "--out", str(folder)]
    words += ["--seed", str(result.seed), "--distribution", result.distribution]
    words += ["--device", result.device.split(":")[0]] if result.device else []
    words += ["--contract", result.contract] if result.contract else []
    program = [sys.executable, "-c", "from attnbench.cli import main; main()", *words]
    picture = folder / "errors.png"
    picture.unlink(missing_ok=True)
    try:
        subprocess.run(program, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    return picture if picture.exists() else None


def embed(report: Path, result: Result, picture: Path) -> None:
    """Put the picture at the end of a Markdown report."""
    from attnbench.report.cells import clean

    case, backend, reason = (
        clean(x, 300).replace("`", "'") for x in (result.case_id, result.backend, result.reason)
    )
    text = f"\n## The worst failure\n\n`{backend}` on `{case}`: {reason}\n\n"
    text += (
        f"![Error over what is allowed, by query and head]({picture.relative_to(report.parent).as_posix()})\n"
    )
    with report.open("a", encoding="utf-8") as file:
        file.write(text)
