"""The rules of tools/house.py hold for attnbench/, and each rule sees a planted fault."""

from __future__ import annotations

from pathlib import Path

import pytest

import attnbench
from tools import house

ROOT = Path(__file__).resolve().parents[2]
HOUSE = house.sources()


def files(texts: dict[str, str]) -> list[house.Source]:
    """A house of files: name without its ending -> text."""
    return [house.Source(f"{name}.py", text) for name, text in texts.items()]


def test_a_room_imports_only_from_lower_layers() -> None:
    assert house.upward_imports(HOUSE) == []


def test_every_room_has_a_layer() -> None:
    assert {source.room for source in HOUSE} - {"__init__"} == set(house.LAYER)


@pytest.mark.parametrize(
    ("room", "text", "upward"),
    [
        ("problem", "from attnbench.backend import Backend", True),
        ("judge", "def f():\n    import attnbench.measure.clocks", True),
        ("judge", "from ..gate import verdict", True),
        ("gate", "import attnbench", True),
        ("gate", "from attnbench import report", True),
        ("gate", "from attnbench.nowhere import x", True),
        ("cli", "from attnbench import __version__", False),
        ("cli", "from attnbench.report import frame", False),
        ("judge", "from . import oracle", False),
        ("problem", "if TYPE_CHECKING:\n    from attnbench.backend import Backend", False),
    ],
)
def test_an_upward_import_is_seen(room: str, text: str, upward: bool) -> None:
    planted = house.upward_imports([house.Source(f"{room}/planted.py", text)])
    assert bool(planted) == upward


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    assert house.circles(HOUSE) == []


def test_a_circle_is_seen() -> None:
    circle = files(
        {
            "judge/oracle": "from attnbench.judge import scores",
            "judge/scores": "from . import sampling",
            "judge/sampling": "from attnbench.judge.oracle import solve",
        }
    )
    assert house.circles(circle) == [
        "a circle of imports: attnbench.judge.oracle -> attnbench.judge.scores -> attnbench.judge.sampling"
        " -> attnbench.judge.oracle"
    ]
    late = {
        "judge/oracle": "from attnbench.judge import scores",
        "judge/scores": "def f():\n    from . import oracle",
    }
    assert house.circles(files(late)) == []


def test_no_public_class_name_is_defined_twice() -> None:
    assert house.repeated_classes(HOUSE) == []


def test_a_repeated_class_is_seen() -> None:
    first = "class Row: ...\nclass _Private: ..."
    nested = "if x:\n    class Row: ...\nclass _Private: ..."
    twice = house.repeated_classes(files({"judge/a": first, "gate/b": nested}))
    assert twice == ["class Row is defined in gate/b.py and judge/a.py"]
    assert house.repeated_classes(files({"judge/a": first, "gate/b": "def f():\n    class Row: ..."})) == []


def test_a_file_name_recurs_only_with_a_word_on_the_difference() -> None:
    assert house.repeated_files(HOUSE) == []


def test_a_recurring_file_name_and_a_stale_word_are_seen() -> None:
    twice = files({"judge/verdict": "", "gate/verdict": "", "judge/__init__": "", "gate/__init__": ""})
    words = {"verdict.py": {"judge": "of an answer", "gate": "of a change"}}
    assert house.repeated_files(twice, words) == []
    assert "rename it" in house.repeated_files(twice, {})[0]
    assert "layer/" in house.repeated_files([*twice, *files({"layer/verdict": ""})], words)[0]
    assert "no longer recurs" in house.repeated_files(twice[:1], words)[0]


def test_no_room_is_larger_than_its_share() -> None:
    assert house.large_rooms(HOUSE) == []


def test_a_large_room_is_seen() -> None:
    rooms = {f"room{i}/file": "x\n" * 10 for i in range(10)}
    assert house.large_rooms(files(rooms)) == []
    assert house.large_rooms(files(rooms | {"judge/a": "x\n" * 30}))[0].startswith("judge is 23.1%")


def test_no_public_name_is_a_submodule() -> None:
    assert house.shadowed_names(HOUSE, attnbench.__all__) == []


def test_a_shadowed_name_is_seen() -> None:
    wrong = house.shadowed_names(files({"check/plan": "", "run": ""}), ["check", "run", "load"])
    assert [message.split()[3] for message in wrong] == ["check", "run"]


def test_the_program_prints_the_table_and_exits_1_on_a_violation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = {"judge/a": "import attnbench.gate\n", "errors": "\n\n\n"}
    monkeypatch.setattr(house, "sources", lambda: files(planted))
    assert house.main() == 1
    output = capsys.readouterr().out
    assert "judge                3      1       1   25.0%" in output
    assert "judge/a.py imports attnbench.gate: gate is not below judge" in output


def test_the_harness_knows_no_backend_by_name() -> None:
    bundled = {p.stem for p in (ROOT / "backends").glob("[a-z]*.py")} - {"naive", "triton", "flex"}
    for source in HOUSE:
        # Examples in help texts and docstrings may name a backend; code may not import one.
        assert "attnbench_backends." not in source.text, source.path
        assert not any(f"import {name}" in source.text for name in bundled), source.path
