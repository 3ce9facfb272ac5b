"""CONTRIBUTING names every room in its order, files that exist, and the targets that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

from tools.house import LAYER

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def rows(text: str) -> list[tuple[str, str]]:
    """The two cells of each row of the tables, headings and rulers aside."""
    cells = re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE)
    return [row for row in cells if row[0] not in ("room", "...")]


def links(cell: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", cell)


def test_the_table_has_every_room_in_the_order_of_the_layers() -> None:
    table, _, _ = PAGE.partition("## Where would I")
    rooms = [name.strip("`/").removesuffix(".py") for row in rows(table) for name in row[0].split(", ")]
    assert sorted(rooms) == sorted(LAYER)
    assert [LAYER[room] for room in rooms] == sorted(LAYER.values())


def test_where_would_i_answers_ten_questions_with_files_that_exist() -> None:
    section = PAGE.split("## Where would I ...?")[1].split("\n## ")[0]
    answers = dict(rows(section))
    assert len(answers) == 10
    assert [question for question, answer in answers.items() if not links(answer)] == []
    assert [
        link for answer in answers.values() for link in links(answer) if not (ROOT / link).is_file()
    ] == []


def test_ci_runs_the_targets_that_the_page_names() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    targets = " ".join(re.findall(r"^make (.+)$", run, re.MULTILINE)).split()
    named = re.search(r"CI runs `make ([a-z ]+)`", PAGE)
    assert named is not None
    assert named.group(1).split() == targets
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
