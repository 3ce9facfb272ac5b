"""Versions that do not work together are told as a sentence, by the doctor and as a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attnbench.backend import resolve
from attnbench.backend.conflicts import interpreter_conflict
from attnbench.cli import symptoms
from attnbench.problem import Case

WORDS = "only 0-dimensional arrays can be converted"


@pytest.mark.parametrize(
    ("triton", "numpy", "breaks"),
    [
        ("3.6.0", "2.4.0", True),
        ("3.6.0", "2.3.5", False),
        ("3.7.1", "2.4.6", False),
        ("3.9.0", "2.5.0", False),
    ],
)
def test_the_interpreter_of_an_old_triton_breaks_with_a_new_numpy(
    triton: str, numpy: str, breaks: bool
) -> None:
    assert (WORDS in interpreter_conflict(triton, numpy)) == breaks


def test_the_triton_backend_refuses_where_its_interpreter_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    backend, case = resolve("triton"), Case(q_len=16, k_len=16, q_heads=1, head_dim=16, dtype="fp32")
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    monkeypatch.setattr(np, "__version__", "2.3.5")
    assert backend.refuses(case, "cpu") is None
    monkeypatch.setattr(np, "__version__", "2.4.0")
    refusal = backend.refuses(case, "cpu")
    assert refusal is not None
    assert WORDS in refusal.reason
    assert 'pip install "numpy<2.4"' in refusal.reason


def test_the_doctor_names_the_conflict_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, Any] = {"triton": "3.6.0", "numpy": "2.4.1"}
    monkeypatch.setattr(symptoms, "version", installed.__getitem__)
    symptom = symptoms._triton()
    assert (symptom.state, WORDS in symptom.found) == ("warning", True)
    assert symptom.do.startswith('pip install "numpy<2.4"')
    installed["numpy"] = "2.3.5"
    assert symptoms._triton().state == "fine"
