"""An environment is whole or missing: locks, states, a crash half-way, and interpreters that the user names."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from attnbench.backend import entries, environments, locks, resolve
from attnbench.errors import BackendUnavailable, EnvironmentUnavailable


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of environments, made from the locks `tmp_path/locks/NAME.txt`."""
    monkeypatch.setenv("ATTNBENCH_ENVS", str(tmp_path / "envs"))
    monkeypatch.delenv(environments.OVERRIDES, raising=False)
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(locks, "locks_folder", lambda: tmp_path / "locks")
    return tmp_path


def test_every_shipped_lock_pins_every_version_and_names_what_must_import() -> None:
    shipped = locks.locks()
    assert {"jax", "xformers", "flash_attn", "flash_attn_3", "flash_attn_4"} <= set(shipped)
    for lock in shipped.values():
        assert lock.modules, lock.name
        assert lock.steps or lock.by_hand, lock.name
        for step in lock.steps:
            for line in step.requirements:
                assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?==[\w.]+", line), f"{lock.name}: {line}"


def test_every_environment_that_a_backend_names_has_a_lock() -> None:
    named = {entry.environment for entry in entries() if entry.environment}
    assert named <= set(locks.locks())


def test_a_lock_says_steps_options_and_what_is_for_cuda(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("# modules: a, b.c\na==1\n# cuda\ng==2\n# step: --no-deps\nz==3\n")
    lock = locks.read_lock(file)
    assert lock.modules == ("a", "b.c")
    assert [(s.requirements, s.options, s.cuda) for s in lock.steps] == [
        (("a==1",), (), False),
        (("g==2",), (), True),
        (("z==3",), ("--no-deps",), False),
    ]
    before = lock.digest
    file.write_text(file.read_text().replace("a==1", "a==2"))
    assert locks.read_lock(file).digest != before


def test_one_that_failed_half_way_is_unfinished_and_is_made_anew(places: Path) -> None:
    lock = places / "locks" / "tiny.txt"
    lock.write_text("# modules: no_such_module\n")
    assert environments.find("tiny").state == "missing"
    with pytest.raises(EnvironmentUnavailable, match="no_such_module"):
        environments.create("tiny")
    half = environments.find("tiny")
    assert (half.state, half.usable) == ("unfinished", False)
    assert half.size_bytes > 0

    lock.write_text("# modules: json\n")
    messages: list[str] = []
    made = environments.create("tiny", say=messages.append)
    assert any("unfinished" in line for line in messages)
    assert (made.state, made.usable) == ("ready", True)
    assert made.python is not None
    assert made.python.is_file()
    assert made.python_version == sys.version.split()[0]

    kept = made.python.stat().st_mtime_ns
    assert environments.create("tiny").python == made.python
    assert made.python.lstat().st_mtime_ns == kept or made.python.stat().st_mtime_ns == kept

    lock.write_text("# modules: json, re\n")
    assert environments.find("tiny").state == "outdated"
    (made.folder / environments.MARK).write_text("{")  # type: ignore[operator]
    assert environments.find("tiny").state == "unfinished"
    assert environments.remove("tiny")
    assert environments.find("tiny").state == "missing"
    assert not environments.remove("tiny")


def test_an_error_of_pip_is_shown_in_its_words(places: Path) -> None:
    (places / "locks" / "never.txt").write_text(
        "# modules: json\n# step: --no-index\nno-such-distribution==1\n"
    )
    with pytest.raises(EnvironmentUnavailable, match="no-such-distribution"):
        environments.create("never")
    assert environments.find("never").state == "unfinished"


def test_what_must_be_built_by_hand_says_how(places: Path) -> None:
    (places / "locks" / "hard.txt").write_text("# modules: hard\n# by hand: build it\n")
    assert environments.find("hard").state == "by hand"
    with pytest.raises(EnvironmentUnavailable, match=r"build it, then attnbench run --python hard="):
        environments.create("hard")


def test_an_unknown_environment_gets_the_nearest() -> None:
    with pytest.raises(EnvironmentUnavailable, match="did you mean 'xformers'"):
        environments.create("xformer")


def test_an_interpreter_that_the_user_names_comes_first_and_is_inherited_by_workers(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environments.OVERRIDES, "")
    (places / "locks" / "tiny.txt").write_text("# modules: json\n")
    environments.use_python(f"tiny={sys.executable}")
    environments.use_python(f"other={sys.executable}")
    named = environments.find("tiny")
    assert (named.state, named.python, named.usable) == ("given", Path(sys.executable), True)
    assert environments.made("tiny").state == "missing"
    assert {e.name: e.state for e in environments.every()} == {"tiny": "given", "other": "given"}
    for wrong in ("tiny", "tiny=", "=x", "tiny=/no/such/python"):
        with pytest.raises(EnvironmentUnavailable):
            environments.use_python(wrong)


@pytest.mark.parametrize(
    "name", ["jax_xla", "flax_mha", "jax_cudnn", "flash_attn", "flash_attn_3", "flash_attn_4"]
)
def test_a_backend_without_its_environment_says_what_would_make_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNBENCH_ENVS", str(tmp_path))
    monkeypatch.delenv(environments.OVERRIDES, raising=False)
    (entry,) = [entry for entry in entries() if entry.name == name]
    if entry.available:
        pytest.skip(f"{name}'s library is installed here")
    assert "attnbench env create" in entry.install or "--python" in entry.install
    with pytest.raises(BackendUnavailable, match="to have it"):
        resolve(name)


def test_a_backend_is_available_where_its_environment_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNBENCH_ENVS", str(tmp_path))
    monkeypatch.delenv(environments.OVERRIDES, raising=False)
    python = tmp_path / "jax" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    mark = {"lock": locks.lock_of("jax").digest, "python": "3.11", "cuda": False, "packages": {"jax": "9.9"}}
    (tmp_path / "jax" / environments.MARK).write_text(json.dumps(mark))
    listed = {entry.name: entry for entry in entries()}
    assert listed["jax_xla"].available
    # Its version is read from the mark: listing starts no process.
    assert resolve("jax_xla").version() == "jax 9.9"
    assert not listed["jax_cudnn"].available
    assert listed["jax_cudnn"].install == "attnbench env create jax --cuda"


def test_the_command_lists_makes_and_refuses(places: Path) -> None:
    from typer.testing import CliRunner

    from attnbench.cli.app import app

    (places / "locks" / "hard.txt").write_text("# modules: hard\n# by hand: build it\n")
    (places / "locks" / "tiny.txt").write_text("# modules: json\n")
    run = CliRunner().invoke
    listed = run(app, ["env", "list", "--json"])
    assert listed.exit_code == 0
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert (rows["tiny"]["state"], rows["tiny"]["create"]) == ("missing", "attnbench env create tiny")
    assert rows["tiny"]["size_bytes"] == 0
    assert rows["hard"]["state"] == "by hand"
    assert run(app, ["env", "create", "hard"]).exit_code == 2
    assert run(app, ["env", "create", "tinny"]).exit_code == 2
    assert "tiny" in run(app, ["env", "list"]).stdout
    wrong = run(
        app, ["run", "--mask", "full", "--seq", "8", "--backend", "naive", "--python", "tiny=/no/such"]
    )
    assert wrong.exit_code == 2
