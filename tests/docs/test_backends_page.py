"""docs/backends.md says what the backends answer today."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
import torch

from attnbench.backend import Capabilities, FunctionBackend, Refusal
from attnbench.backend.interface import CLAIMS
from attnbench.conformance.claims import DIFFERS, SAME
from tests.tools.loaded import tool


@pytest.fixture(scope="module", name="tool")
def backends_page() -> Any:
    return tool("backends_page.py")


def test_the_page_is_up_to_date(tool: Any) -> None:
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/backends_page.py"


def test_every_backend_and_environment_is_on_the_page(tool: Any) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    for name in tool.every_backend():
        assert f"`{name}`" in text


def test_the_claims_are_those_of_the_stored_records(tool: Any) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    paths = list(tool.RECORDS.glob("*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"machine", "threads", "instruction set", "libraries"} <= set(record["environment"])
        for entry in record["backends"].values():
            told = {(claim["name"], claim["dtype"]) for claim in entry["claims"]}
            assert told == set(product(CLAIMS, tool.DTYPES))
            assert not [c for c in entry["claims"] if c["is_claimed"] and c["told"] == DIFFERS]
        assert "\n".join(tool.measured(record)) in text


def test_a_difference_and_a_claim_show_in_the_table(tool: Any) -> None:
    claims = [
        {"name": name, "dtype": dtype, "is_claimed": name == CLAIMS[0], "told": SAME, "calls": 2}
        for name, dtype in product(CLAIMS, tool.DTYPES)
    ]
    claims[2] |= {"told": DIFFERS, "differing": 1, "words": "dq in 3 of 8 elements"}
    claims[4] |= {"told": "not asked"}
    here = {
        "machine": "M",
        "device": "cpu",
        "threads": 2,
        "instruction set": "S",
        "libraries": {"torch": "1"},
    }
    lines = tool.measured({"environment": here, "backends": {"b": {"version": "v", "claims": claims}}})
    assert "### M, 2 threads" in lines
    assert "| `b` | v | **= =** | ≠ = | · = | = = | = = |" in lines
    assert "- `b`, bitwise repeatable backward, fp32: 1 of 2 calls; dq in 3 of 8 elements" in lines


def test_a_backend_that_takes_less_changes_the_page(tool: Any) -> None:
    class Picky(FunctionBackend):
        def refuses(self, case: Any, device: str = "cpu") -> Refusal | None:
            if case.needs_backward:
                return Refusal("has no backward")
            return Refusal("takes no window") if "window" in str(case.mask) else super().refuses(case, device)

    picky = Picky(torch.add, "picky", Capabilities(scores=frozenset({"softcap"})))
    table = tool.answered({"picky": picky}, "cpu")
    cells = dict(zip(table[0].split(" | "), table[2].split(" | "), strict=True))
    assert (cells["full"], cells["window"], cells["softcap"]) == (tool.FORWARD, tool.NEITHER, tool.FORWARD)
    assert any("window, causal & window" in line and "takes no window" in line for line in table)
