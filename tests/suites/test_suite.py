"""A suite has exactly the cases of its file, and an error names its place in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.errors import SuiteError
from attnbench.problem import Causal, Full, SlidingWindow
from attnbench.sweep.suite import Suite, list_suites, load_suite, suite_from_options

DEVICES = ("cpu", "cuda")


def suite_of(folder: Path, text: str) -> Suite:
    (folder / "mine.toml").write_text(text)
    return load_suite(folder / "mine.toml")


def test_a_grid_is_the_product_of_its_lists_with_every_size_as_given(tmp_path: Path) -> None:
    suite = suite_of(
        tmp_path,
        'description = "d"\n[[grid]]\nseq = [7, 9]\nheads = ["4", "32:8"]\nhead_dim = ["192:128"]\n'
        'mask = ["causal & window(3, 0)"]\nscore = ["none", "softcap(50) + alibi"]\ndirection = ["fwd", "fwd_bwd"]\n',
    )
    cases = [plan.case for plan in suite.cases("cpu")]
    assert len(cases) == 2 * 2 * 2 * 2
    assert {(c.q_len, c.k_len) for c in cases} == {(7, 7), (9, 9)}
    assert {(c.q_heads, c.kv_heads, c.head_dim, c.v_dim) for c in cases} == {
        (4, 4, 192, 128),
        (32, 8, 192, 128),
    }
    assert {c.mask for c in cases} == {Causal() & SlidingWindow(3, 0)}
    assert {len(c.scores) for c in cases} == {0, 2}
    assert {c.dtype for c in cases} == {"fp32"}
    assert {plan.case.dtype for plan in suite.cases("cuda:1")} == {"bf16"}


def test_a_device_without_a_grid_is_refused_with_those_that_have_one(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, "[[gpu.grid]]\nseq = 8\nheads = 2\nhead_dim = 8\n")
    assert len(suite.cases("cuda")) == 1
    with pytest.raises(SuiteError, match="suite mine has no grid for cpu, only for cuda"):
        suite.cases("cpu")


def test_equal_cases_of_two_grids_are_one(tmp_path: Path) -> None:
    grid = "[[grid]]\nseq = [8, 16]\nheads = 2\nhead_dim = 8\n"
    assert len(suite_of(tmp_path, grid + grid.replace("16", "24")).cases("cpu")) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[grid\n", "mine.toml: not TOML"),
        ("[[gird]]\nseq = 8\n", r"no table 'gird'; did you mean 'grid'\?"),
        ("[grid]\nseq = 8\n", r"grid is written \[\[grid\]\]"),
        ("[[grid]]\nseqs = 8\nheads = 2\nhead_dim = 8\n", r"grid 1: no key 'seqs'; did you mean 'seq'\?"),
        ("[[grid]]\nheads = 2\nhead_dim = 8\n", "grid 1: give seq, or q_len and k_len"),
        ("[[grid]]\nseq = 8\nq_len = 8\nheads = 2\nhead_dim = 8\n", "give seq, or q_len and k_len"),
        ("[[grid]]\nq_len = 8\nheads = 2\nhead_dim = 8\n", "give both q_len and k_len"),
        ("[[grid]]\nseq = 8\nhead_dim = 8\n", "heads is missing"),
        ("[[grid]]\nseq = []\nheads = 2\nhead_dim = 8\n", "seq is an empty list"),
        ('[[grid]]\nseq = 8\nheads = "2:2:2"\nhead_dim = 8\n', "heads is a number or two numbers"),
        ('[[grid]]\nseq = 8\nheads = "8:0"\nhead_dim = 8\n', "heads is a number or two .* each at least 1"),
        ("[[grid]]\nseq = 8\nheads = 2\nhead_dim = 8\nscore = 5\n", "grid 1: score is a text such as"),
        ("[[grid]]\nseq = 8\nheads = 2\nhead_dim = 8\nmask = 5\n", "grid 1: .*with mask = 5"),
        ("[[grid]]\nseq = 8.5\nheads = 2\nhead_dim = 8\n", "grid 1: q_len is a whole number"),
        ("[[cpu.grids]]\nseq = 8\n", r"cpu holds nothing but its grids, each written \[\[cpu\.grid\]\]"),
        ('cpu = "all"\n', "cpu holds nothing but its grids"),
        ('[[grid]]\nseq = 8\nheads = 2\nhead_dim = 8\nmask = "causl"\n', "unknown mask 'causl' at column 1"),
        ('[[grid]]\nseq = 8\nheads = 2\nhead_dim = 8\ndtype = "float"\n', "dtype is one of fp32"),
        ('[[grid]]\nseq = 8\nheads = 2\nhead_dim = 8\nscore = "cap(3)"\n', "cannot read the score change"),
        ('[[grid]]\nseq = 8\nheads = 2\nhead_dim = 8\nmask = "documents(9)"\n', "grid 1: .*documents"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SuiteError, match=says):
        suite_of(tmp_path, text).cases("cpu")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SuiteError, match=r"mine\.toml cannot be read"):
        load_suite(tmp_path / "mine.toml")


def test_an_unknown_suite_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(
        SuiteError, match=r"no suite called 'quik'; did you mean 'quick'\?; there are core, gate, masks"
    ):
        load_suite("quik")
    with pytest.raises(SuiteError, match=r"no file 'nowhere\.toml'"):
        load_suite("nowhere.toml")


@pytest.mark.parametrize("name", list_suites())
@pytest.mark.parametrize("device", DEVICES)
def test_a_bundled_suite_has_cases_with_ids_of_their_own_for_every_device(name: str, device: str) -> None:
    plans = load_suite(name).cases(device)
    assert plans
    assert len({plan.case.id for plan in plans}) == len(plans)
    assert all(len(plan.case.id) <= 200 for plan in plans)


@pytest.mark.parametrize("device", DEVICES)
def test_quick_is_the_first_look_that_the_readme_promises(device: str) -> None:
    cases = [plan.case for plan in load_suite("quick").cases(device)]
    assert len(cases) >= 12
    assert {case.direction for case in cases} == {"fwd", "fwd_bwd"}
    assert len({case.mask for case in cases}) >= 4
    plain = [
        c
        for c in cases
        if c.mask in (Full(), Causal()) and not c.scores and c.group == 1 and c.q_len == c.k_len
    ]
    assert len(plain) >= 8


def test_the_command_line_is_a_grid_with_the_devices_defaults() -> None:
    (plan,) = suite_from_options(seq=[64], device="cuda").cases("cuda")
    assert (plan.case.batch, plan.case.dtype, plan.case.direction) == (1, "bf16", "fwd")
    two = suite_from_options(q_lens=[1], k_lens=[64, 128], heads=["32:8"], device="cpu").cases("cpu")
    assert [(p.case.q_len, p.case.k_len, p.case.dtype) for p in two] == [(1, 64, "fp32"), (1, 128, "fp32")]
    (scaled,) = suite_from_options(seq=[64], scales=[0.5], layouts=["bshd"]).cases("cpu")
    assert (scaled.case.scale, scaled.case.layout) == (0.5, "bshd")
    with pytest.raises(SuiteError, match="the command line: give both"):
        suite_from_options(q_lens=[1]).cases("cpu")
