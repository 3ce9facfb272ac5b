"""The kernels compiled for GPUs that are not here are no worse than the committed table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import triton

from attnbench.backend.ahead_of_time import committed, compiled_rows
from attnbench.gate import FAILING
from attnbench.gate.compiled import against_the_table, compiled_findings, regressions

FEW = "bf16-d128-causal"
TABLE: list[dict[str, Any]] = committed("triton")


def _row(**changes: Any) -> dict[str, Any]:
    first = {"arch": "sm_90", "kernel": "forward", "specimen": "x", "spill_bytes": 0, "shared_bytes": 1000}
    return (
        first
        | {"shared_limit": 2000, "config": "64x64", "triton": "3.8.0", "matrix_instructions": 8}
        | changes
    )


def test_the_committed_table_has_no_spill(triton_backend: Any) -> None:
    assert [row for row in TABLE if row["spill_bytes"]] == []


def test_the_committed_table_fits_the_shared_memory_of_every_architecture() -> None:
    assert {row["arch"] for row in TABLE} >= {"sm_80", "sm_90", "sm_100"}
    assert all(row["shared_bytes"] <= row["shared_limit"] for row in TABLE)


def test_half_precision_products_are_on_the_matrix_units() -> None:
    products = [
        row
        for row in TABLE
        if row["kernel"] not in ("delta", "combine") and not row["specimen"].startswith("fp32")
    ]
    assert len(products) > 90
    assert all(row["matrix_instructions"] > 0 for row in products)


def test_float32_products_are_ieee_and_not_tf32() -> None:
    rows = [row for row in TABLE if row["specimen"].startswith("fp32")]
    assert rows
    assert all(row["matrix_instructions"] == 0 for row in rows)


@pytest.mark.skipif(
    triton.__version__ != TABLE[0]["triton"], reason="the table is of another version of triton"
)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_what_compiles_today_is_no_worse_than_the_table(arch: str) -> None:
    rows = compiled_rows("triton", arch, FEW)
    assert len(rows) == 4
    assert against_the_table(rows, "triton") == []


@pytest.mark.interpret
def test_all_of_the_table_compiles_today_and_is_no_worse() -> None:
    assert against_the_table(compiled_rows("triton", "sm_80,sm_90,sm_100"), "triton") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spill_bytes": 4}, "spills 4 bytes, base 0"),
        ({"matrix_instructions": 7}, "7 matrix instructions, base 8"),
        ({"shared_bytes": 2001}, "2001 bytes of shared memory"),
    ],
)
def test_a_kernel_that_got_worse_is_named_and_fails(change: dict[str, Any], words: str) -> None:
    ((row, message),) = regressions([_row(**change)], [_row()])
    assert words in message
    (finding,) = compiled_findings("triton", [row], [_row()])
    assert finding.kind == "worse compiled"
    assert finding.kind in FAILING
    assert "sm_90" in finding.case


def test_a_kernel_that_is_gone_fails_and_a_new_one_does_not() -> None:
    gone = compiled_findings("triton", [_row()], [_row(), _row(specimen="y")])
    assert [finding.kind for finding in gone] == ["missing", "same"]
    new = compiled_findings("triton", [_row(), _row(specimen="y")], [_row()])
    assert [finding.kind for finding in new] == ["same"]


def test_a_kernel_that_the_table_lacks_is_said() -> None:
    (line,) = against_the_table([TABLE[0] | {"specimen": "a new one"}], "triton")
    assert "not in the table" in line


def test_kernels_of_another_folder_are_compiled_from_there(tmp_path: Path) -> None:
    """Planted: the copy calls its kernels by another name."""
    import attnbench_backends

    copy = tmp_path / "backends"
    shutil.copytree(Path(attnbench_backends.__path__[0]), copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "triton" / "launch.py"
    file.write_text(
        file.read_text().replace(
            "def name(self) -> str:", 'def name(self) -> str:\n        return "another name"'
        )
    )
    rows = compiled_rows("triton", "sm_90", "bf16-d128-causal", folder=copy)
    assert {row["kernel"] for row in rows} == {"another name"}


def test_a_kernel_as_good_as_the_table_is_no_regression() -> None:
    assert regressions([_row(matrix_instructions=9)], [_row(spill_bytes=8)]) == []


def test_a_part_of_the_table_is_written_anew_in_its_place(triton_backend: Any) -> None:
    from attnbench_backends.triton.ahead_of_time import with_rows

    assert with_rows(TABLE, []) == TABLE
    some = [row | {"registers": 1} for row in TABLE if row["specimen"].startswith("bf16-d256-causal")]
    table = with_rows(TABLE, [row for row in some if row["arch"] == "sm_90"])
    changed = [new["specimen"] for new, old in zip(table, TABLE, strict=True) if new != old]
    # forward, delta, dk_dv in two launches, dq
    assert [name.removeprefix("bf16-d256-causal") for name in changed] == ["", "", " dK", " dV", ""]
    assert with_rows([TABLE[0] | {"specimen": "gone"}], TABLE) == TABLE


def test_the_table_is_kept_beside_the_kernels() -> None:
    import attnbench_backends.triton as package

    path = Path(package.__file__).parent / "compiled.json"
    assert json.loads(path.read_text()) == TABLE
