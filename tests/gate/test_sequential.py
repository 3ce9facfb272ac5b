"""The rule calls a real slow-down slower, noise the same, and too little evidence inconclusive."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.gate.sequential import Outcome, Rule, decide

RULE = Rule(effect=0.05)


def stages(
    slower: float, seed: int, count: int = 3, groups: int = 4, rounds: int = 20, noise: float = 0.04
) -> list[list[np.ndarray]]:
    """Log-ratios with noise of rounds, an effect of each process (1 %) and a share of disturbed rounds."""
    rng = np.random.default_rng(seed)

    def group() -> np.ndarray:
        d = math.log1p(slower) + rng.normal(0, 0.01) + rng.normal(0, noise, rounds)
        return d + (rng.random(rounds) < 0.1) * rng.normal(0, 0.5, rounds)

    return [[group() for _ in range(groups)] for _ in range(count)]


def verdict(samples: list[list[np.ndarray]], rule: Rule = RULE) -> tuple[Outcome, int]:
    """The verdict as the gate takes it: stage by stage, until it is decided."""
    for count in range(1, rule.stages + 1):
        outcome = decide(samples[:count], rule)
        if not outcome.undecided:
            break
    return outcome, count


def test_noise_is_never_called_slower() -> None:
    assert {verdict(stages(0.0, seed))[0].kind for seed in range(150)} <= {"same", "inconclusive"}


def test_most_of_noise_passes_in_the_first_stage() -> None:
    decided = [verdict(stages(0.0, seed, noise=0.02)) for seed in range(40)]
    assert sum(outcome.kind == "same" and count == 1 for outcome, count in decided) >= 30


@pytest.mark.parametrize(("slower", "least"), [(0.06, 0.9), (0.10, 0.99)])
def test_what_is_slower_is_found_in_every_stage(slower: float, least: float) -> None:
    outcomes = [verdict(stages(slower, seed, noise=0.02)) for seed in range(100)]
    assert np.mean([outcome.kind == "slower" for outcome, _ in outcomes]) >= least
    assert all(count == RULE.stages for outcome, count in outcomes if outcome.kind == "slower")


def test_one_stage_never_fails() -> None:
    outcome = decide(stages(0.5, 0, count=1), RULE)
    assert outcome.kind == "inconclusive"
    assert outcome.undecided


def test_one_bad_process_is_no_slow_down() -> None:
    samples = stages(0.0, 3, noise=0.01)
    samples[0][1] += math.log(1.4)
    assert verdict(samples)[0].kind == "same"


def test_a_stage_that_does_not_confirm_clears() -> None:
    samples = [*stages(0.08, 1, count=1, noise=0.01), *stages(0.0, 2, count=2, noise=0.01)]
    assert verdict(samples)[0].kind != "slower"


def test_what_is_faster_is_said_and_needs_no_confirmation() -> None:
    outcome, count = verdict(stages(-0.2, 5, noise=0.02))
    assert (outcome.kind, count) == ("faster", 1)


def test_an_inconclusive_verdict_says_what_it_would_take() -> None:
    outcome, _ = verdict(stages(0.045, 9, noise=0.25))
    assert outcome.kind == "inconclusive"
    assert "groups of fresh processes" in outcome.why or "quieter machine" in outcome.why


def test_the_interval_holds_the_truth() -> None:
    outcomes = [decide(stages(0.03, seed, noise=0.02), RULE) for seed in range(100)]
    inside = [outcome.low <= math.log1p(0.03) <= outcome.high for outcome in outcomes]
    assert np.mean(inside) >= 0.85  # nominally 95 %; twelve groups are few for a bootstrap


def test_groups_of_unlike_length_are_decided_on_too() -> None:
    samples = stages(0.2, 1)
    samples[0][0] = samples[0][0][:5]
    assert verdict(samples)[0].kind == "slower"


def test_one_group_of_processes_decides_nothing() -> None:
    outcome = decide(stages(0.0, 1, count=1, groups=1, noise=0.001), RULE)
    assert (outcome.kind, outcome.undecided) == ("inconclusive", True)


def test_nothing_to_decide_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no round"):
        decide([[]], RULE)
