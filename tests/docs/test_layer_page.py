"""The Python on the layer's page runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layer.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_of_the_layer_page_runs(block: str) -> None:
    exec(compile(block, str(PAGE), "exec"), {})


def test_the_page_has_code() -> None:
    assert len(BLOCKS) == 2
