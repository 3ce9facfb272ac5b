"""The fingerprint of a machine, its key, and its roofs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from attnbench.measure import (
    commit_label,
    fingerprint,
    fingerprint_key,
    git_state,
    measure_roofs,
    physical_cpus,
)


def test_a_fingerprint_is_json_and_names_machine_and_libraries() -> None:
    environment = fingerprint()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["machine"]
    assert environment["libraries"]["torch"]
    assert environment["cpu"]["cores_used"] == len(physical_cpus()) >= 1


def test_the_key_follows_libraries_and_machine_and_not_the_commit() -> None:
    environment = fingerprint()
    key = fingerprint_key(environment)
    assert fingerprint_key({**environment, "git": {"commit": "0" * 40, "dirty": True}}) == key
    assert fingerprint_key({**environment, "libraries": {**environment["libraries"], "torch": "0.1"}}) != key
    assert fingerprint_key({**environment, "gpu": {"name": "another"}}) != key


def test_a_changed_file_makes_the_commit_dirty(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert commit_label(git_state(tmp_path)) == ""
    git("init", "-q")
    (tmp_path / "kernel.py").write_text("1")
    git("add", "kernel.py")
    git("commit", "-qm", "first")
    clean = commit_label(git_state(tmp_path))
    assert len(clean) == 12
    (tmp_path / "kernel.py").write_text("2")
    assert commit_label(git_state(tmp_path)) == f"{clean}+dirty"


def test_the_roofs_of_this_machine_are_plausible() -> None:
    roofs = measure_roofs("cpu")
    # Between a pocket calculator and the largest host: wrong units would be off by a thousand.
    assert 1e8 < roofs["matmul_flops_per_s"]["fp32"] < 1e14
    assert 1e8 < roofs["copy_bytes_per_s"] < 2e12
    assert 1e7 < roofs["exps_per_s"] < 1e13
