"""docs/backends.md says what the backends answer today."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.backend import Capabilities, FunctionBackend, Refusal
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
