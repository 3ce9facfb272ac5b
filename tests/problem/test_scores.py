"""Each score change computes what its paper defines, and its text reads back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import ScoreError
from attnbench.problem import ALiBi, Bias, Extent, RelativeBias, Sink, Softcap, alibi_slopes, parse_score

scores = st.one_of(
    st.floats(0.01, 1e4).map(Softcap),
    st.none().map(lambda _: ALiBi()),
    st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=5).map(lambda s: ALiBi(tuple(s))),
    st.tuples(st.sampled_from(["", "h", "hqk", "bhqk", "k", "bq"]), st.sampled_from([1.0, 0.02, 3.5])).map(
        lambda a: Bias(*a)
    ),
    st.sampled_from([RelativeBias("t5(32,128,causal)"), RelativeBias("t5(8, 20, bidirectional)", 0.1)]),
    st.sampled_from([RelativeBias("grid(7,7)"), RelativeBias("grid(2,3)", 0.02)]),
    st.sampled_from([Sink(), Sink(100.0), Sink(-0.5)]),
)


@given(scores)
def test_a_text_reads_back_as_an_equal_change(score) -> None:
    assert parse_score(str(score)) == score


@pytest.mark.parametrize(
    "text",
    [
        "softcap",
        "softcap(0)",
        "softcap(-3)",
        "bias(kq)",
        "bias(x)",
        "relative(t6,3,4,causal)",
        "relative(grid,0,4)",
    ]
    + ["relative(t5,32,128,sideways)", "relative(t5,2,1,bidirectional)", "cap(3)"],
)
def test_a_bad_text_is_refused(text: str) -> None:
    with pytest.raises(ScoreError):
        parse_score(text)


def test_slopes_are_the_papers_for_powers_of_two() -> None:
    # "For models with 8 heads, the slopes are 1/2, 1/4, ..., 1/256" (arXiv 2108.12409, section 3).
    assert alibi_slopes(8) == tuple(2.0**-e for e in range(1, 9))
    assert alibi_slopes(16) == pytest.approx([2.0 ** (-e / 2) for e in range(1, 17)])


def test_slopes_for_other_head_counts_interleave_the_next_power_of_two() -> None:
    # 6 heads: those of 4, then every other of those of 8 (the paper's code; mlx#3071 had it wrong).
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)


def t5_bucket(distance: int, buckets: int, most: int, bidirectional: bool) -> int:
    """The rule for one number: arXiv 1910.10683, section 2.1, and its code."""
    bucket = 0
    if bidirectional:
        buckets //= 2
        bucket = buckets if distance > 0 else 0
        behind = abs(distance)
    else:
        behind = max(-distance, 0)
    exact = buckets // 2
    if behind < exact:
        return bucket + behind
    return bucket + min(
        buckets - 1, exact + int(math.log(behind / exact) / math.log(most / exact) * (buckets - exact))
    )


@pytest.mark.parametrize(("rule", "arguments"), [("causal", False), ("bidirectional", True)])
@pytest.mark.parametrize(("q_len", "k_len"), [(40, 40), (3, 300), (1, 150)])
def test_t5_buckets_are_the_papers(rule: str, arguments: bool, q_len: int, k_len: int) -> None:
    index = RelativeBias(f"t5(32,128,{rule})").index(Extent(1, 1, q_len, k_len))
    for i in range(q_len):
        for j in range(k_len):
            assert index[i, j] == t5_bucket(j - (i + k_len - q_len), 32, 128, arguments), (i, j)


def test_a_grid_reads_the_offset_of_two_patches() -> None:
    height, width = 2, 3
    bias = RelativeBias(f"grid({height},{width})")
    index = bias.index(Extent(1, 1, 6, 6))
    assert bias.entries == 3 * 5
    seen: dict[tuple[int, int], int] = {}
    for i in range(6):
        for j in range(6):
            offset = (i // width - j // width, i % width - j % width)
            assert seen.setdefault(offset, int(index[i, j])) == index[i, j]
    assert sorted(seen.values()) == list(range(15))
    with pytest.raises(ScoreError, match="covers 6 tokens"):
        bias.check(Extent(1, 1, 6, 7))


def test_a_tensor_can_replace_its_description() -> None:
    bias = Bias(torch.zeros(1, 4, 8, 8))
    assert (bias.dims, bias.tensor.shape) == ("hqk", (1, 4, 8, 8))  # type: ignore[union-attr]
    bias.check(Extent(2, 4, 8, 8))
    with pytest.raises(ScoreError, match="does not broadcast"):
        bias.check(Extent(2, 3, 8, 8))
    with pytest.raises(ScoreError, match="four dimensions"):
        Bias(torch.zeros(8, 8))
    with pytest.raises(ScoreError, match="one per query head"):
        Sink(torch.zeros(3)).check(Extent(1, 4, 8, 8))
