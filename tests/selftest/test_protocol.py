"""The protocol finds a backend that computes the right numbers and cheats the harness."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch

from attnbench.conformance.protocol import clocks_watched, memory_poisoned, protocol_faults, same_bits
from attnbench.selftest.criteria import Setting
from attnbench.selftest.mutants import MUTANTS
from attnbench.selftest.mutants.right import RIGHT
from attnbench.selftest.trials import TRIALS

PLAIN = next(trial for trial in TRIALS if trial.name == "plain")


@pytest.fixture(scope="module")
def settings() -> tuple[Setting, Setting]:
    return Setting(PLAIN, "fp32", 0), Setting(PLAIN, "fp32", 1)


def faults_of(backend: object, settings: tuple[Setting, Setting]) -> list[str]:
    first, second = settings
    contract = backend.capabilities.contract  # type: ignore[attr-defined]
    references = first.reference(contract), second.reference(contract)
    return protocol_faults(backend, first.inputs, second.inputs, *references)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cached by data_ptr", "new numbers in the same storage give a wrong answer"),
        ("cached by the first elements", "an answer is kept by a part of the content"),
        ("cached by the sum", "an answer is kept by a part of the content"),
        ("cached by the mean and norm", "an answer is kept by a part of the content"),
        ("cached by q alone", "two rows of k: an answer is kept by a part of the content"),
        ("q scaled in place", "the inputs are changed in place"),
        ("work not waited for", "the first call is wrong"),
        ("different after two calls", "wrong answer when it is repeated"),
        ("fallback to another kernel", "but names its kernel"),
        ("output of another dtype", "the first call is wrong"),
        ("monkey-patched timer", "replaces the clock: time.perf_counter_ns"),
        ("the last answer overwritten", "a later call changes the answer of an earlier one"),
        ("gradients of the first dO", "new numbers in the same storage give a wrong answer"),
        ("lost update", "the first call is wrong"),
    ],
)
def test_a_cheat_is_named(name: str, sentence: str, settings: tuple[Setting, Setting]) -> None:
    clock = time.perf_counter_ns
    faults = faults_of(MUTANTS[name].backend(), settings)
    assert any(sentence in fault for fault in faults), faults
    assert time.perf_counter_ns is clock


@pytest.mark.parametrize("right", RIGHT, ids=lambda right: right.name.replace(" ", "-"))
def test_a_right_implementation_keeps_to_the_protocol(
    right: object, settings: tuple[Setting, Setting]
) -> None:
    assert faults_of(right.make(), settings) == []  # type: ignore[attr-defined]


def test_unwritten_memory_is_nan_inside_and_left_alone_outside() -> None:
    with memory_poisoned():
        assert torch.empty(3, 5, dtype=torch.bfloat16).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_clock_is_put_back_after_an_error() -> None:
    clock = time.time

    def patch_and_fail() -> None:
        time.time = lambda: 0.0  # type: ignore[assignment]
        raise RuntimeError("a backend fails")

    with contextlib.suppress(RuntimeError), clocks_watched() as replaced:
        patch_and_fail()
    assert time.time is clock
    assert replaced == ["time"]


def test_bits_tell_minus_zero_from_zero_and_know_nan() -> None:
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2).double())
