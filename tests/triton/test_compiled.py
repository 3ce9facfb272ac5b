"""What do the kernels compile to on GPUs that are not here? Held against the committed table, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import triton

from attnbench.cli.compile import committed, compiled_rows, regressions

FEW = "bf16-d128-causal"
TABLE: list[dict[str, Any]] = committed("triton")


def _row(**changes: Any) -> dict[str, Any]:
    first = {"arch": "sm_90", "kernel": "forward", "specimen": "x", "spill_bytes": 0, "shared_bytes": 1000}
    return first | {"shared_limit": 2000, "matrix_instructions": 8} | changes


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
    assert regressions(rows, TABLE) == []


@pytest.mark.interpret
def test_all_of_the_table_compiles_today_and_is_no_worse() -> None:
    assert regressions(compiled_rows("triton", "sm_80,sm_90,sm_100"), TABLE) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spill_bytes": 4}, "spills 4 bytes, 0 in the table"),
        ({"matrix_instructions": 7}, "7 matrix instructions, 8 in the table"),
        ({"shared_bytes": 2001}, "2001 bytes of shared memory"),
        ({"specimen": "y"}, "not in the table"),
    ],
)
def test_a_kernel_that_got_worse_is_named(change: dict[str, Any], words: str) -> None:
    (line,) = regressions([_row(**change)], [_row()])
    assert words in line
    assert "sm_90" in line


def test_a_kernel_as_good_as_the_table_is_no_regression() -> None:
    assert regressions([_row(matrix_instructions=9)], [_row(spill_bytes=8)]) == []


def test_the_table_is_kept_beside_the_kernels() -> None:
    import attnbench_backends.triton as package

    path = Path(package.__file__).parent / "compiled.json"
    assert json.loads(path.read_text()) == TABLE
