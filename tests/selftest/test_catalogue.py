"""The catalogue of mutants is large enough, and each mutant is wrong exactly on the cases its record names."""

from __future__ import annotations

import functools

import pytest
import torch

from attnbench.conformance.protocol import clocks_watched
from attnbench.errors import AttnbenchError
from attnbench.faults.causes import CAUSES
from attnbench.selftest.counts import DTYPE_ORDER
from attnbench.selftest.criteria import TrialAnswer, answer_of
from attnbench.selftest.kills import catalogue, kill_mutants
from attnbench.selftest.mutants import MUTANTS, TiledBackend, Tiling
from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.trials import TRIALS

BY_NAME = {trial.name: trial for trial in TRIALS}
# Right on every single call that a trial makes: the protocol, or a property of several calls, shows them.
ONLY_BY_SEVERAL_CALLS = {
    "ALiBi slopes cached by shape",
    "bias cached by shape",
    "LSE of grouped decoding by key head",
    "cached by q alone",
    "features past 256 not read",
    "float32 read as half precision",
    "pair index in float32",
    "the last odd feature not read",
    "cached by the first elements",
    "cached by the mean and norm",
    "cached by the sum",
    "lengths cached by shape",
    "lengths of 0 taken for none",
    "no dv unless k asks",
    "no gradient of scores unless q asks",
    "scale 0 taken for none",
    "scale clipped",
    "sign of the scale lost",
    "sink cached by shape",
    "sink of 0 taken for none",
    "slopes of 0 taken for none",
    "softcap cached by shape",
    "unlimited side taken for -1",
    "window cached by shape",
    "window side 0 taken for none",
    "cached by data_ptr",
    "different after two calls",
    "fallback to another kernel",
    "gradients of the first dO",
    "monkey-patched timer",
    "q scaled in place",
    "scale cached by shape",
    "the last answer overwritten",
}


BY_PROPERTY = {m.name for m in MUTANTS.values() if m.found_by}


@pytest.mark.parametrize("name", sorted(BY_PROPERTY))
def test_the_property_of_a_mutant_finds_it_and_no_trial_does(name: str) -> None:
    planted = MUTANTS[name]
    tally = kill_mutants("fp32", TRIALS[:2], mutants=[planted])
    assert tally.killers["fp32"] == {name: [f"property: {planted.found_by}"]}, tally.reasons


@pytest.mark.parametrize("dtype", DTYPE_ORDER)
def test_each_dtype_has_the_whole_catalogue(dtype: str) -> None:
    assert len(catalogue(dtype)) >= 122


def test_every_cause_is_that_of_some_mutant() -> None:
    assert {m.cause for m in MUTANTS.values()} == CAUSES


def test_every_mutant_has_its_source_or_description() -> None:
    assert [m.name for m in MUTANTS.values() if len(m.origin) < 5] == []


def test_a_name_is_taken_once_and_a_cause_is_a_known_one() -> None:
    with pytest.raises(AttnbenchError, match="taken"):
        mutant("no scale", "scale")
    with pytest.raises(AttnbenchError, match="no cause 'scael'"):
        mutant("another", "scael")
    assert "another" not in MUTANTS


def differs(answer: TrialAnswer, right: TrialAnswer) -> bool:
    """Whether any bit of any tensor differs, or an error was raised."""
    if answer.output is None or right.output is None:
        return True
    mine, theirs = answer.tensors(), right.tensors()
    lse = answer.output.lse, right.output.lse
    assert lse[0] is not None
    assert lse[1] is not None
    mine, theirs = mine | {"lse": lse[0]}, theirs | {"lse": lse[1]}
    return any(mine[name].dtype != x.dtype or not torch.equal(mine[name], x) for name, x in theirs.items())


@functools.cache
def right_answer(trial: str, dtype: str, tiling: Tiling) -> TrialAnswer:
    return answer_of(TiledBackend("right", tiling=tiling), BY_NAME[trial].inputs(dtype, seed=5))


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - ONLY_BY_SEVERAL_CALLS - BY_PROPERTY))
def test_a_mutant_computes_something_else_and_only_where_it_may(name: str) -> None:
    planted = MUTANTS[name]
    if "cpu" not in planted.devices:
        pytest.skip("needs tensors of more than 2^31 elements")
    dtype = "fp32" if planted.dtypes == {"fp32"} else "fp16" if "bf16" not in planted.dtypes else "bf16"
    shown: list[str] = []
    for trial in TRIALS:
        case = trial.case(dtype)
        can_show = planted.can_show(case)
        is_small = case.q_len * case.k_len * case.q_heads <= 1 << 14
        if trial.is_longest or (shown if can_show else not is_small):
            continue
        with clocks_watched():
            # Inputs of its own: a mutant may change them in place.
            is_shown = differs(
                answer_of(planted.backend(), trial.inputs(dtype, seed=5)),
                right_answer(trial.name, dtype, planted.tiling),
            )
        if is_shown:
            assert can_show, f"{trial.name} shows it, against its record"
            shown.append(trial.name)
    assert shown


@pytest.mark.parametrize("name", sorted(ONLY_BY_SEVERAL_CALLS))
def test_a_mutant_of_several_calls_is_killed_by_the_protocol_or_a_property(name: str) -> None:
    tally = kill_mutants("bf16", (), mutants=[MUTANTS[name]])
    killers = tally.killers["bf16"][name]
    assert killers
    assert killers[0].startswith(("protocol", "property"))
