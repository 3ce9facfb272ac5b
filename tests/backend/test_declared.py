"""What is read from a backend's file without importing it is what the backend declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnbench.backend import entries, resolve
from attnbench.backend.declared import declared_capabilities

HERE = [entry for entry in entries() if entry.available and entry.source.endswith(".py")]


@pytest.mark.parametrize("entry", HERE, ids=lambda entry: entry.name)
def test_the_file_declares_what_the_loaded_backend_declares(entry: object) -> None:
    declared = declared_capabilities(Path(entry.source))  # type: ignore[attr-defined]
    loaded = resolve(entry.name).capabilities  # type: ignore[attr-defined]
    if declared is None:
        pytest.skip("what it declares is not written out in its file")
    unread = {name: getattr(declared, name) for name in ("source", "timed", "compiles")}
    assert declared == replace(loaded, **unread)


def test_those_that_run_on_a_gpu_only_say_so_in_their_files() -> None:
    declared = {entry.name: declared_capabilities(Path(entry.source)) for entry in HERE}
    for name in ("sdpa_cudnn", "sdpa_efficient", "torch_varlen"):
        assert getattr(declared[name], "devices", None) == {"cuda"}, name


@pytest.mark.parametrize(
    "text",
    [
        "capabilities = Capabilities(devices=frozenset({'cuda'}))\nother = Capabilities()",
        "capabilities = Capabilities(devices=DEVICES)",
        "capabilities = Capabilities(**options)",
        "capabilities = Capabilities(no_such_field=1)",
        "x = 1",
        "def (",
    ],
)
def test_what_is_not_written_out_is_not_guessed(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert declared_capabilities(tmp_path / "mine.py") is None


def test_a_source_that_is_no_literal_changes_nothing(tmp_path: Path) -> None:
    text = "capabilities = Capabilities(dtypes=frozenset({'bf16'}), source=LINK, timed=ON_GPU)"
    (tmp_path / "mine.py").write_text(text)
    declared = declared_capabilities(tmp_path / "mine.py")
    assert declared is not None
    assert declared.dtypes == {"bf16"}
