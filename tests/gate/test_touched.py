"""A change touches exactly the backends whose code it alters."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.errors import AttnbenchError, UnknownBackend
from attnbench.gate import touched

FILES = {
    "backends/plain.py": "from ._shared import f\nbackend = f\n",
    "backends/other.py": "def backend(q, k, v, *, mask, scores, scale):\n    return q\n",
    "backends/_shared.py": "from ._deeper import g\ndef f(*a, **b):\n    return g(*a)\n",
    "backends/_deeper.py": "def g(*a):\n    return a[0]\n",
    "backends/apart.py": "program = '_there.py'\nbackend = lambda *a, **b: a[0]\n",
    "backends/_there.py": "x = 1\n",
    "backends/folder/__init__.py": "from .inner import backend\n",
    "backends/folder/inner.py": "def backend(q, *a, **b):\n    return q\n",
    "backends/folder/table.json": "{}\n",
    "backends/absent.py": "REQUIRES = {'no_such_module_at_all': 'pip install it'}\nbackend = None\n",
    "mine.py": "def attention(q, *a, **b):\n    return q\n",
}


def tree(folder: Path, **changes: str | None) -> Path:
    for name, text in (FILES | changes).items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tree(tmp_path / "base")


def names_of(base: Path, head: Path) -> list[str]:
    return [one.name for one in touched(base, head).versions]


def test_the_same_code_is_not_timed(base: Path, tmp_path: Path) -> None:
    changed = touched(base, tree(tmp_path / "head"))
    assert not changed.versions
    assert changed.same == ("absent", "apart", "folder", "other", "plain")


def test_comments_and_layout_are_no_change(base: Path, tmp_path: Path) -> None:
    commented = "# What it is for.\n\n\ndef g(*a):\n    return (a[0])  # the first\n"
    assert not names_of(base, tree(tmp_path / "head", **{"backends/_deeper.py": commented}))


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("backends/other.py", "def backend(q, *a, **b):\n    return q + 0\n", "other"),
        ("backends/_deeper.py", "def g(*a):\n    return a[1]\n", "plain"),
        ("backends/_there.py", "x = 2\n", "apart"),
        ("backends/folder/inner.py", "def backend(q, *a, **b):\n    return q + 0\n", "folder"),
        ("backends/folder/table.json", "[]\n", "folder"),
        ("backends/other.py", "def backend(:\n", "other"),
    ],
    ids=["its own file", "a sibling's sibling", "its program", "in its folder", "its table", "broken"],
)
def test_a_change_touches_what_is_made_of_it_and_nothing_else(
    base: Path, tmp_path: Path, file: str, text: str, name: str
) -> None:
    assert names_of(base, tree(tmp_path / "head", **{file: text})) == [name]


SHARED = """
LIMIT = 3

def near(x):
    return far(x) + LIMIT

def far(x):
    return x

def unused(x):
    return x
"""


@pytest.mark.parametrize(
    ("before", "after", "touches"),
    [
        ("def unused(x):\n    return x", "def unused(x):\n    return 2 * x", False),
        ("def far(x):\n    return x", "def far(x):\n    return 2 * x", True),
        ("LIMIT = 3", "LIMIT = 4", True),
        ("LIMIT = 3", "LIMIT = 3\nprint('at import')", True),
        ("LIMIT = 3", "LIMIT = 3\nOTHER = 4", False),
        ("LIMIT = 3", "LIMIT = 3\nLIMIT += 1", True),
    ],
    ids=[
        "not imported",
        "named by what is",
        "a constant of it",
        "runs at import",
        "another constant",
        "changed later",
    ],
)
def test_of_a_sibling_only_what_is_imported_counts(
    base: Path, tmp_path: Path, before: str, after: str, touches: bool
) -> None:
    uses = {"backends/uses.py": "from ._near import near\nbackend = near\n"}
    tree(base, **uses, **{"backends/_near.py": SHARED})
    head = tree(tmp_path / "head", **uses, **{"backends/_near.py": SHARED.replace(before, after)})
    assert SHARED.replace(before, after) != SHARED
    assert names_of(base, head) == (["uses"] if touches else [])


def test_what_changed_itself_comes_first(base: Path, tmp_path: Path) -> None:
    changes: dict[str, str | None] = {
        "backends/_deeper.py": "def g(*a):\n    return a[1]\n",
        "backends/zest.py": "backend = 2\n",
    }
    tree(base, **{"backends/zest.py": "backend = 1\n"})
    assert names_of(base, tree(tmp_path / "head", **changes)) == ["zest", "plain"]


def test_a_backend_that_is_gone_or_new_has_one_side(base: Path, tmp_path: Path) -> None:
    head = tree(tmp_path / "head", **{"backends/other.py": None, "backends/new.py": "backend = None\n"})
    sides = {c.name: (c.base is not None, c.head is not None) for c in touched(base, head).versions}
    assert sides == {"other": (True, False), "new": (False, True)}


def test_what_cannot_run_here_is_named(base: Path, tmp_path: Path) -> None:
    head = tree(tmp_path / "head", **{"backends/absent.py": FILES["backends/absent.py"] + "x = 1\n"})
    changed = touched(base, head)
    assert not changed.versions
    assert changed.unavailable == (("absent", "no_such_module_at_all is not installed"),)


def test_each_side_is_loaded_from_its_own_tree(base: Path, tmp_path: Path) -> None:
    head = tree(tmp_path / "head")
    (by_name, by_path) = sorted(
        touched(base, head, ["other", "mine.py:attention"]).versions, key=lambda c: c.name
    )[::-1]
    assert by_name.base is not None
    assert by_name.head is not None
    assert (by_name.base.folder, by_name.head.folder) == (base / "backends", head / "backends")
    assert by_path.base is not None
    assert by_path.head is not None
    assert (by_path.base.backend, by_path.head.backend) == (
        f"{base}/mine.py:attention",
        f"{head}/mine.py:attention",
    )


def test_all_takes_what_is_the_same_too(base: Path, tmp_path: Path) -> None:
    changed = touched(base, tree(tmp_path / "head"), everything=True)
    assert [c.name for c in changed.versions] == ["apart", "folder", "other", "plain"]


def test_an_unknown_name_is_refused_with_what_is_near(base: Path, tmp_path: Path) -> None:
    head = tree(tmp_path / "head")
    with pytest.raises(UnknownBackend, match="did you mean 'plain'"):
        touched(base, head, ["plian"])
    with pytest.raises(UnknownBackend, match=r"no file 'gone\.py'"):
        touched(base, head, ["gone.py:f"])
    with pytest.raises(AttnbenchError, match="is absolute; give the path from the top"):
        touched(base, head, ["/gone.py:f"])


def test_a_repository_without_backends_is_said(tmp_path: Path, base: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AttnbenchError, match="no folder of backends"):
        touched(base, tmp_path / "empty")
