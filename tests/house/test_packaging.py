"""The wheel holds every folder of code and every file that is read at run time."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_AS = {"attnbench": "attnbench", "backends": "attnbench_backends", "suites": "attnbench_suites"}


def setuptools_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_folder_is_installed() -> None:
    folders = set()
    for top, installed in INSTALLED_AS.items():
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts[1:]
            folders.add(".".join((installed, *parts)))
    assert folders == set(setuptools_table()["packages"])


def test_every_file_without_code_is_package_data() -> None:
    patterns = setuptools_table()["package-data"]
    for top, installed in INSTALLED_AS.items():
        for path in (ROOT / top).rglob("*"):
            if (
                path.is_file()
                and path.suffix not in (".py", ".pyc", ".md")
                and "__pycache__" not in path.parts
            ):
                inside = path.relative_to(ROOT / top)
                assert any(inside.match(pattern) for pattern in patterns.get(installed, [])), path


def test_the_constraints_hold_what_the_development_set_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {text.split(">")[0].split("=")[0].split("[")[0] for text in named} - {"attnbench"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert names <= pinned
