"""An eager backend is one file: that of docs/adding-a-backend.md is listed, checked, and caught when wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from attnbench.backend import entries, resolve
from attnbench.backend.sources import bundled_folder
from attnbench.conformance import check

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-backend.md"


def shown(name: str) -> str:
    """The file of this name on the page."""
    block = re.search(rf'^```python title="{name}"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    return block.group(1)


def failures(spec: str, folder: Path | None = None, directions: tuple[str, ...] = ("fwd",)) -> list[str]:
    report = check(resolve(spec, folder), level="smoke", device="cpu", dtypes=["fp32"], directions=directions)
    return [str(failure) for failure in report.failures]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of backends that holds what they share, and `matmul.py` of the page."""
    for file in bundled_folder().glob("_dense*.py"):
        shutil.copy(file, tmp_path)
    (tmp_path / "matmul.py").write_text(shown("matmul.py"))
    return tmp_path


def test_the_file_of_the_page_is_listed_and_right(folder: Path) -> None:
    (entry,) = [entry for entry in entries(folder) if entry.name == "matmul"]
    assert (entry.available, entry.source) == (True, str(folder / "matmul.py"))
    assert failures("matmul", folder, directions=("fwd", "fwd_bwd")) == []


def test_an_error_planted_in_it_is_found(folder: Path) -> None:
    file = folder / "matmul.py"
    right, wrong = "case.changed(products * case.scale)", "products * case.scale"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    assert failures("matmul", folder) != []


def test_outside_the_repository_it_is_named_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "matmul.py"
    file.write_text(shown("matmul.py").replace("from ._", "from attnbench_backends._"))
    assert failures(f"{file}:backend") == []
