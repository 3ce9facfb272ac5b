"""A stored reference is found for the same numbers only; what is damaged or does not fit is made anew."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from attnbench.cli.app import app
from attnbench.judge import Reference, reference_files
from attnbench.judge.reference_files import cached, reference_of
from attnbench.problem import Case, Inputs, make_inputs

INPUTS = make_inputs(Case(q_len=9, k_len=17, q_heads=2, head_dim=8, dtype="fp32", direction="fwd_bwd"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Inputs]:
    """The inputs whose references were computed."""
    inputs_made = []
    original = reference_files.make_reference

    def counted(inputs: Inputs, contract: str = "flash", seed: int = 0) -> Reference:
        inputs_made.append(inputs)
        return original(inputs, contract, seed)

    monkeypatch.setattr(reference_files, "make_reference", counted)
    return inputs_made


def same(a: Reference, b: Reference) -> bool:
    ours, theirs = a.to_arrays(), b.to_arrays()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.usefixtures("folder")
def test_the_second_reference_of_the_same_numbers_is_the_stored_one(made: list[Inputs]) -> None:
    first, second = reference_of(INPUTS), reference_of(INPUTS.fresh())
    assert len(made) == 1
    assert same(first, second)


@pytest.mark.usefixtures("folder")
def test_another_number_contract_seed_or_case_has_a_reference_of_its_own(made: list[Inputs]) -> None:
    one_more = INPUTS.v.clone()
    one_more[0, 0, 0, 0] += 1
    reference_of(INPUTS)
    reference_of(replace(INPUTS, v=one_more))
    reference_of(INPUTS, "dense")
    reference_of(INPUTS, "flash", 1)
    reference_of(replace(INPUTS, case=replace(INPUTS.case, scale=0.5)))
    assert len(made) == 5


def test_a_judge_with_other_code_computes_its_own(
    folder: Path, made: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference_of(INPUTS)
    monkeypatch.setattr(reference_files, "_code", lambda: "another judge")
    reference_of(INPUTS)
    assert len(made) == len(cached(folder)) == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", None])
def test_a_damaged_file_is_made_anew(folder: Path, made: list[Inputs], content: bytes | None) -> None:
    first = reference_of(INPUTS)
    (path,) = cached(folder)
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    assert same(reference_of(INPUTS), first)
    assert same(reference_of(INPUTS), first)
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_costs_the_cache_only(
    tmp_path: Path, made: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "file" / "folder"))
    assert same(reference_of(INPUTS), reference_of(INPUTS))
    assert len(made) == 2


def test_the_least_recently_used_references_go_when_the_folder_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("new", "used", "old")):
        path = folder / f"{name}.npz"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    monkeypatch.setattr(reference_files, "LARGEST_CACHE", 250)
    reference_files._trim(folder)
    assert [path.stem for path in cached(folder)] == ["used", "new"]


def test_the_command_says_what_is_stored_and_removes_it(folder: Path) -> None:
    reference_of(INPUTS)
    run = CliRunner().invoke
    assert "1 reference, " in run(app, ["cache"]).output
    assert "removed" in run(app, ["cache", "--clear"]).output
    assert cached(folder) == []


def test_an_empty_folder_name_stores_nothing(made: list[Inputs], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBENCH_CACHE", "")
    reference_of(INPUTS)
    reference_of(INPUTS)
    assert len(made) == 2
    assert "no references are stored" in CliRunner().invoke(app, ["cache"]).output
