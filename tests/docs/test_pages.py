"""Is what the documentation shows true? Its links lead somewhere and its code blocks run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    return [(title or "", body) for lang, title, body in FENCE.findall(page.read_text()) if lang == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) + re.findall(r'src="([^"]+)"', prose)
    local = [t for t in targets if not re.match(r"[a-z]+:", t)]
    assert [t for t in local if not (page.parent / t).exists()] == []


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
    page = ROOT / "docs" / "adding-a-backend.md"
    for language in ("python", "toml"):
        for title, body in blocks(page, language):
            if title:
                (tmp_path / title).write_text(body)
    for _, body in blocks(page, "console"):
        for line in re.findall(r"^\$ (.+)$", body, re.MULTILINE):
            done = shell(line, tmp_path)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "compared" / "results.jsonl").read_text().count("\n") == 4
    done = shell(f"{sys.executable} -m pytest -q test_mine.py", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]


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
