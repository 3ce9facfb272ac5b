"""A plain function declares what it promises, in a text, in a dict beside it, or through `as_backend`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import attnbench as ab
from attnbench.backend.declaration import declaration_text, parse_declaration
from attnbench.backend.registry import resolve
from attnbench.conformance.plan import plan_of

TEXT = "contract=dense,empty_rows=mean_v,gqa=no,lengths=equal,backward=no"
MEANT = {
    "contract": "dense",
    "empty_rows": "mean_v",
    "gqa": False,
    "unequal_lengths": False,
    "backward": False,
}


def zeros(q: Any, k: Any, v: Any, *, mask: Any, scores: Any, scale: float) -> Any:
    return q * 0


def test_a_text_a_dict_and_arguments_declare_the_same() -> None:
    assert parse_declaration(TEXT) == MEANT
    assert parse_declaration({"lengths": "equal", "gqa": False}) == {"unequal_lengths": False, "gqa": False}
    backend = ab.as_backend(
        zeros, contract="dense", empty_rows="mean_v", gqa=False, lengths="equal", backward=False
    )
    assert {name: getattr(backend.capabilities, name) for name in MEANT} == MEANT
    assert backend.name == "zeros"
    assert backend.refuses(ab.Case(q_len=4, k_len=8, q_heads=1, head_dim=4, dtype="fp32")) is not None


def test_sets_are_joined_by_plus_and_none_is_empty() -> None:
    declared = parse_declaration("masks=causal+full, scores=none, dtypes=bf16")
    assert declared == {
        "masks": frozenset({"causal", "full"}),
        "scores": frozenset(),
        "dtypes": frozenset({"bf16"}),
    }
    assert parse_declaration(declaration_text(declared)) == declared
    assert parse_declaration({"masks": ["causal", "full"]}) == {"masks": frozenset({"causal", "full"})}


def test_a_declaration_as_text_is_complete() -> None:
    assert declaration_text(parse_declaration(TEXT)) == (
        "contract=dense,empty_rows=mean_v,backward=no,gqa=no,lengths=equal"
    )


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("contrat=dense", "did you mean 'contract'"),
        ("contract=dens", "did you mean 'dense'"),
        ("contract", "write word=value"),
        ("gqa=no,gqa=yes", "declared twice"),
        ("gqa=perhaps", "gqa takes yes, no"),
        ("masks=causal+windw", "did you mean 'window'"),
        ({"contract": True}, "contract takes flash"),
        ({"masks": 3}, "not 3"),
        (7, "a text word=value"),
    ],
)
def test_a_bad_word_is_named_with_what_is_taken(declared: Any, words: str) -> None:
    with pytest.raises(ab.AttnbenchError, match=words):
        parse_declaration(declared)


def test_a_dict_beside_a_function_is_read_and_a_request_is_stronger(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        'DECLARES = {"contract": "dense", "lengths": "equal"}\n'
        "def attention(q, k, v, *, mask, scores, scale):\n    return v\n"
    )
    backend = resolve(f"{file}:attention")
    assert backend.capabilities.contract == "dense"
    assert not backend.capabilities.unequal_lengths
    plan = plan_of(f"{file}:attention", declare="lengths=any")
    assert plan.backend.capabilities.unequal_lengths
    assert plan.contract == "dense"
    assert not plan.finds_contract
    assert plan.declare == "lengths=any"


def test_a_backend_is_not_declared_by_words() -> None:
    with pytest.raises(ab.AttnbenchError, match="naive is a backend"):
        plan_of("naive", declare="gqa=no")


def test_a_contract_is_looked_for_if_none_is_declared_or_asked_for() -> None:
    assert plan_of(zeros).finds_contract
    assert plan_of(zeros, declare="gqa=no").finds_contract
    assert not plan_of(zeros, declare="contract=flash").finds_contract
    assert not plan_of(zeros, contract="flash").finds_contract
    assert not plan_of("naive").finds_contract
