"""docs/adding-a-mask.md, followed in a copy of the repository, adds a mask that tests, backends and battery take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_pages import FENCE, squeezed

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = FENCE.findall((ROOT / "docs" / "adding-a-mask.md").read_text())
CONSOLE = "".join(body for language, _, body in BLOCKS if language == "console")
USED = """
from attnbench.backend import Capabilities
from attnbench.backend.registry import resolve
from attnbench.conformance.battery import battery
from attnbench.problem import Case, Causal, Chunked, parse_mask

mask = Chunked(4)
assert parse_mask("chunked(4)") == mask
assert parse_mask("~chunked(4) & causal") == ~mask & Causal()
rows = ["000011110", "000011110", "000000001"]
assert mask.materialize(1, 1, 3, 9)[0, 0].int().tolist() == [[int(x) for x in row] for row in rows]

case = Case(q_len=8, k_len=8, q_heads=1, head_dim=8, dtype="fp32", mask=mask)
for name in ("naive", "per_head", "chunked_heads", "sdpa_math"):
    assert resolve(name).refuses(case) is None, name

for level, dtype in [("standard", "fp32"), ("standard", "bf16"), ("standard", "fp16"), ("exhaustive", "bf16")]:
    assert any("chunked" in case.mask.kinds for case, _ in battery(level, dtype)), f"{level} {dtype}: not asked"
causal_only = Capabilities(masks=frozenset({"causal"}))
assert not any("chunked" in case.mask.kinds for case, _ in battery(capabilities=causal_only))
"""


def edited(text: str, hunk: str) -> str:
    """The text with a hunk applied: its ` ` and `-` lines occur in it once, and its ` ` and `+` lines replace them."""
    lines = [(line[:1], line[1:]) for line in hunk.splitlines(keepends=True)]
    old = "".join(line for sign, line in lines if sign in " -")
    assert text.count(old) == 1, f"{text.count(old)} times in the file:\n{old}"
    return text.replace(old, "".join(line for sign, line in lines if sign in " +"))


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the copy, whose packages come before the installed ones."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the page's edits made."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("attnbench", "backends", "tests/problem"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "attnbench_backends").symlink_to("backends")
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    for language, title, body in BLOCKS:
        if title:
            text = (folder / title).read_text()
            (folder / title).write_text(edited(text, body) if language == "diff" else f"{text}\n\n{body}")
    return folder


def test_adding_a_mask_touches_at_most_four_files() -> None:
    assert 1 < len({title for _, title, _ in BLOCKS if title}) <= 4


def test_the_new_mask_is_read_taken_by_dense_backends_and_asked_by_the_battery(copy: Path) -> None:
    done = run(copy, sys.executable, "-c", USED)
    assert done.returncode == 0, done.stderr


def test_the_commands_on_the_page_show_what_it_says(copy: Path) -> None:
    # The installed program may find the packages it was installed from before those of PYTHONPATH.
    program = "attnbench() { python -c 'from attnbench.cli import main; main()' \"$@\"; }"
    for part in re.split(r"^\$ ", CONSOLE, flags=re.MULTILINE)[1:]:
        line, *shown = part.strip().splitlines()
        done = run(copy, "bash", "-c", f"{program}\n{line}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [text for text in shown if squeezed(text) not in squeezed(done.stdout)] == [], done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(q + shift) // n == k // n", "(q + shift + 1) // n == k // n"),
        ("start, start + self.n, extent", "start, start + self.n - 1, extent"),
    ],
    ids=["predicate", "spans"],
)
def test_a_wrong_predicate_and_wrong_spans_are_found(copy: Path, right: str, wrong: str) -> None:
    leaf = copy / "attnbench" / "problem" / "primitives.py"
    text = leaf.read_text()
    assert text.count(right) == 1
    try:
        leaf.write_text(text.replace(right, wrong))
        done = run(copy, sys.executable, "-m", "pytest", "-q", "tests/problem/test_masks.py", "-k", "chunked")
    finally:
        leaf.write_text(text)
    for test in ("a_mask_allows_what_its_definition_says", "predicate_and_spans_of_a_leafs_examples_agree"):
        assert re.search(rf"FAILED.*{test}\[.*chunked", done.stdout), done.stdout


def test_a_hunk_that_does_not_fit_the_file_is_seen() -> None:
    assert edited("a\nb\nc\n", " a\n+x\n b\n") == "a\nx\nb\nc\n"
    with pytest.raises(AssertionError, match="0 times"):
        edited("a\nc\n", " a\n+x\n b\n")
    with pytest.raises(AssertionError, match="2 times"):
        edited("a\na\n", " a\n+x\n")
