"""A kernel that no longer compiles is a finding of the gate, not its end. Small programs stand in for compilers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbench.backend.ahead_of_time import compiled_rows
from attnbench.errors import AttnbenchError
from attnbench.gate import BackendVersions
from attnbench.gate.arms import Arm
from attnbench.gate.compiled import kernel_findings

ROW = {"arch": "sm_90", "kernel": "forward", "specimen": "x", "config": "64x64", "triton": "3.8.0"} | {
    "spill_bytes": 0,
    "shared_bytes": 1,
    "shared_limit": 2,
    "matrix_instructions": 8,
}
FAILS = "raise SystemExit('no such instruction')\n"


def compiles(**changes: Any) -> str:
    return f"print({json.dumps(ROW | changes)!r})\n"


def versions(folder: Path, base: str, head: str) -> BackendVersions:
    for name, program in (("base", base), ("head", head)):
        (folder / name / "kernels").mkdir(parents=True)
        for package in (folder / name, folder / name / "kernels"):
            (package / "__init__.py").write_text("")
        (folder / name / "kernels/ahead_of_time.py").write_text(program)
    return BackendVersions("kernels", *(Arm(name, "kernels", folder / name) for name in ("base", "head")))


@pytest.mark.parametrize(
    ("base", "head", "kind", "message"),
    [
        (compiles(), FAILS, "broken", "no such instruction; base's could"),
        (compiles(), "", "broken", "compiled nothing for sm_90; base's could"),
        (FAILS, FAILS, "inconclusive", "nor could base's"),
        (FAILS, compiles(), "new", "compile for sm_90; base's do not"),
        (compiles(), compiles(), "same", "spill no more"),
        (compiles(), compiles(spill_bytes=64), "worse compiled", "spills 64 bytes, base 0"),
    ],
    ids=["broken", "nothing", "in neither", "now", "as before", "worse"],
)
def test_what_kernels_compile_to_is_said_whatever_happens(
    tmp_path: Path, base: str, head: str, kind: str, message: str
) -> None:
    findings = list(kernel_findings([versions(tmp_path, base, head)], "sm_90", lambda line: None))
    assert [finding.kind for finding in findings] == [kind]
    assert message in findings[0].message


def test_a_specimen_that_is_none_is_named_and_no_check_of_nothing(tmp_path: Path) -> None:
    versions(tmp_path, compiles(), compiles(specimen="y"))
    (tmp_path / "head/kernels/compiled.json").write_text(json.dumps([ROW]))
    with pytest.raises(AttnbenchError, match=r"kernels has no specimen 'z'; there are x, y"):
        compiled_rows("kernels", "sm_90", "y,z", folder=tmp_path / "head")
