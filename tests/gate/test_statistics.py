"""The ratio is robust, and its interval covers the truth as often as it claims."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.gate.statistics import FEWEST, geometric_mean, ratio_of_medians


def draw(rng: np.random.Generator, centre_ms: float, count: int) -> list[list[float]]:
    return [[float(ms)] for ms in centre_ms * np.exp(rng.normal(0, 0.05, count))]


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(200):
        ratio = ratio_of_medians(draw(rng, 1.0, 20), draw(rng, 1.3, 20), seed=seed)
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 1.3 <= ratio.high
    # 190 are expected of 200; below 180 has a chance of less than 1 in 1,000 at 95 %.
    assert held >= 180


def test_one_disturbed_round_does_not_move_the_ratio() -> None:
    calm = [[1.0, 1.01]] * 9
    ratio = ratio_of_medians([*calm, [1.0]], [*calm, [50.0, 60.0]])
    assert ratio is not None
    assert ratio.point == pytest.approx(1.0)


def test_calls_of_one_round_do_not_count_as_independent() -> None:
    # Between rounds 10 % apart, within a round nothing: many calls a round must not narrow the interval.
    base = [[1.0], [1.1]] * 5
    few = ratio_of_medians(base, base)
    many = ratio_of_medians([one * 50 for one in base], [one * 50 for one in base])
    assert few is not None
    assert many is not None
    assert (few.low, few.high) == (many.low, many.high)


def test_too_few_samples_give_no_interval() -> None:
    ratio = ratio_of_medians([[1.0] * (FEWEST - 1)], [[2.0] * (FEWEST - 1)])
    assert ratio is not None
    assert (ratio.point, ratio.low, ratio.high, ratio.apart) == (2.0, None, None, True)


@pytest.mark.parametrize(
    ("base", "head"), [([], [[1.0]]), ([[1.0]], []), ([[]], [[1.0]]), ([[0.0]], [[1.0]])]
)
def test_no_samples_give_no_ratio(base: list[list[float]], head: list[list[float]]) -> None:
    assert ratio_of_medians(base, head) is None


def test_a_doubling_and_a_halving_cancel_in_the_geometric_mean() -> None:
    mean = geometric_mean([2.0, 0.5])
    assert mean.mean == pytest.approx(1.0)
    assert mean.count == 2
