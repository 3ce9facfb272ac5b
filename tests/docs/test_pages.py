"""The documentation is true: its links lead to files, its code blocks run and print what they show."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    return [(title or "", body) for lang, title, body in FENCE.findall(page.read_text()) if lang == language]


def follow(page: Path, folder: Path) -> None:
    """Follow a page in a folder, in its order: write each file that it shows, run each `$` of its consoles.

    The lines shown after a command must be in its output; if none are shown, the command must succeed.
    """
    for language, title, body in FENCE.findall(page.read_text()):
        if title:
            (folder / title).write_text(body)
        if language != "console":
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            line, *shown = part.strip().splitlines()
            done = shell(line, folder)
            output = f"{line}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == 0 or (shown and done.returncode == 1), output
            assert [text for text in shown if squeezed(text) not in squeezed(output)] == [], output


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_to_files(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) + re.findall(r'src="([^"]+)"', prose)
    local = [t for t in targets if not re.match(r"[a-z]+:", t)]
    assert [t for t in local if not (page.parent / t).exists()] == []


def missing_paths(text: str) -> list[str]:
    """The files and folders of the repository that a text names in backticks and that do not exist.

    A name that begins with `my`, or in capitals, stands for the reader's own file.
    """
    named = re.findall(
        r"`((?:attnbench|backends|suites|tests|tools|docs|results|\.ci|\.github)/[\w./-]*)`", text
    )
    own = re.compile(r"/(?:my|[A-Z]+\b)")
    return [path for path in named if not (ROOT / path).exists() and not own.search(path)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    assert missing_paths(page.read_text()) == []


def test_a_path_that_moved_is_seen() -> None:
    text = "`attnbench/judge/battery.py`, `tools/house.py`, `tests/judge/`, `backends/NAME.py`"
    assert missing_paths(text) == ["attnbench/judge/battery.py"]


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
        timeout=900,
    )


def test_the_backend_of_adding_a_backend_is_checked_run_and_tested(tmp_path: Path) -> None:
    follow(ROOT / "docs" / "adding-a-backend.md", tmp_path)
    assert (tmp_path / "compared" / "results.jsonl").read_text().count("\n") == 4
    done = shell(f"{sys.executable} -m pytest -q test_mine.py", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("name", ["tutorial", "writing-a-suite"])
def test_the_commands_of_a_page_do_what_it_shows(name: str, tmp_path: Path) -> None:
    follow(ROOT / "docs" / f"{name}.md", tmp_path)


def test_a_page_that_shows_another_output_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```toml title="a.toml"\nx = 1\n```\n\n```console\n$ cat a.toml\nx  = 1\n```\n')
    follow(page, tmp_path)
    page.write_text(page.read_text().replace("x  = 1", "x = 2"))
    with pytest.raises(AssertionError):
        follow(page, tmp_path)


def test_the_python_of_reading_the_results_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "reading-the-results.md"
    monkeypatch.chdir(ROOT)
    for _, body in blocks(page, "python"):
        exec(compile(body, str(page), "exec"), {})


def printed(page: Path) -> list[tuple[str, str]]:
    """What each Python block of a page prints, beside the text block that follows it."""
    pairs = []
    for code, shown in re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page.read_text(), re.M | re.S
    ):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(code, str(page), "exec"), {})
        pairs.append((output.getvalue(), shown))
    return pairs


def test_the_worked_example_of_the_method_prints_what_it_shows() -> None:
    ((output, shown),) = printed(ROOT / "docs" / "method.md")
    assert output == shown


def test_the_table_of_the_worked_example_is_its_arithmetic() -> None:
    text = (ROOT / "docs" / "method.md").read_text()
    table = re.findall(r"^\| \d \| (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    weights = [math.exp(float(score)) for score, *_ in table]
    values = [value / 256 for value in (1, 2, 4)]
    shares = [w / sum(weights) for w in weights]
    for (_, weight, value, product), share, v in zip(table, shares, values, strict=True):
        assert (weight, value, product) == (f"{share:.4f}", f"{v:.4f}", f"{share * v:.5f}")
    products = [share * v for share, v in zip(shares, values, strict=True)]
    one = 2**-8 / math.sqrt(3)
    of_weights, of_result = one * math.hypot(*products), one * sum(products)
    sigma = math.hypot(of_weights, of_result) + 2**-9 * sum(products)
    figures = (of_weights, of_result, math.hypot(of_weights, of_result), sigma)
    assert [f"{x:.1e}".replace("e-05", "e-5") in text for x in figures] == [True] * 4


def test_the_files_that_gating_a_change_shows_are_true(tmp_path: Path) -> None:
    from attnbench.gate import KINDS
    from attnbench.gate.accepted import read_accepted

    page = ROOT / "docs" / "gating-a-change.md"
    shown = dict(blocks(page, "yaml") + blocks(page, "toml"))
    assert shown["gate.yml"] == (ROOT / "docs" / "examples" / "gate.yml").read_text()
    (tmp_path / "accepted.toml").write_text(shown["accepted-regressions.toml"])
    assert len(read_accepted(tmp_path / "accepted.toml")) == 1
    # Every verdict is explained.
    assert [kind for kind in KINDS if f"`{kind}`" not in page.read_text()] == []


def test_the_package_of_adding_a_backend_is_listed_when_installed(tmp_path: Path) -> None:
    page = ROOT / "docs" / "adding-a-backend.md"
    for language in ("python", "toml"):
        for title, body in blocks(page, language):
            if title:
                (tmp_path / title).write_text(body)
    site = tmp_path / "site"
    command = f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --target {site} {tmp_path}"
    assert shell(command, tmp_path).returncode == 0
    done = shell(f"PYTHONPATH={site} attnbench list --json", tmp_path.parent)
    assert '"mine"' in done.stdout, done.stdout + done.stderr


def commands(page: Path) -> list[str]:
    """Each `attnbench ...` line of a page's consoles and scripts, continued lines joined."""
    shown = [body for language in ("console", "sh", "bash") for _, body in blocks(page, language)]
    lines = "\n".join(shown).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("attnbench ")]


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_program_takes_the_command_lines_on_a_page(page: Path) -> None:
    for line in commands(page):
        parse(shlex.split(line, comments=True)[1:])


def parse(words: list[str]) -> None:
    """Read a command line as the program does, without running it; UsageError if the program rejects it."""
    from attnbench.cli.app import app

    command: Any = typer.main.get_command(app)
    words = list(takewhile(lambda word: word not in ("|", "||", "&&", ";"), words))
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    if "OPTIONS" not in "".join(words):  # the reference's usage lines
        command.make_context("attnbench", words)


@pytest.mark.parametrize("words", ["run quick --bakend naive", "report", "gate --effect many"])
def test_a_command_line_that_the_program_rejects_is_seen(words: str) -> None:
    with pytest.raises(Exception, match=r"No such option|Missing|valid number"):
        parse(words.split())


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed commands repeat this variable, which the backend triton sets on a CPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
