"""The pictures of `attnbench show` show a wrong kernel at the place of its error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from attnbench.conformance.one_case import inspect_case
from attnbench.errors import AttnbenchError
from attnbench.problem import BlockSparse, Case, Causal, Padding, Softcap
from attnbench.report.charts.one_case import draw_pictures, error_image, pooled


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's backend sets this variable on a CPU, and printed commands repeat it."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


PLANTED = '''
import torch


def tail(q, k, v, *, mask, scores, scale):
    """Head 1 leaves out the keys of the last, partial tile of 64 for the queries of that tile."""
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2]).expand(*q.shape[:3], k.shape[2]).clone()
    start = k.shape[2] // 64 * 64
    allowed[:, min(1, q.shape[1] - 1), start:, start:] = False
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, -torch.inf)
    return torch.softmax(s, -1) @ v


def breaks(q, k, v, *, mask, scores, scale):
    raise IndexError("index 9 is out of bounds")


def diagonal(q, k, v, *, mask, scores, scale):
    """The diagonal is left out of every row that has another key."""
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2]).clone()
    rows = torch.arange(1, q.shape[2])
    allowed[..., rows, rows] = False
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, -torch.inf)
    return torch.softmax(s, -1) @ v
'''


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[str], str]:
    path = tmp_path / "planted.py"
    path.write_text(PLANTED)
    return lambda name: f"{path}:{name}"


def case(**changes: object) -> Case:
    given = {"q_len": 200, "k_len": 200, "q_heads": 3, "head_dim": 16, "dtype": "fp32", "mask": Causal()}
    return Case(**(given | changes))  # type: ignore[arg-type]


def test_a_tail_tile_bug_is_red_in_the_tail_of_its_head_and_blue_everywhere_else(
    planted: Callable[[str], str],
) -> None:
    seen = inspect_case(case(direction="fwd_bwd"), planted("tail"))
    assert not seen.verdict.ok
    out = next(e for e in seen.errors if e.name == "out")
    image = error_image(out)  # above 0 is wrong
    wrong = image > 0
    assert wrong[1, 192:].all()
    assert not wrong[1, :192].any()
    assert not wrong[[0, 2]].any()
    dk = next(e for e in seen.errors if e.name == "dk")
    assert (error_image(dk)[1] > 0).any()
    assert not (error_image(dk)[[0, 2]] > 0).any()
    assert 1 in seen.heads


def test_a_missing_diagonal_is_red_in_every_row(planted: Callable[[str], str]) -> None:
    seen = inspect_case(case(), planted("diagonal"))
    image = error_image(seen.errors[0])
    assert (image[:, 1:] > 0).mean() > 0.9  # a key of hardly any weight may be missed unseen
    assert not (image[:, 0] > 0).any()


def test_a_right_backend_is_blue_everywhere() -> None:
    seen = inspect_case(case(direction="fwd_bwd", scores=(Softcap(5.0),)), "naive")
    assert seen.verdict.ok
    assert [e.name for e in seen.errors] == ["out", "dq", "dk", "dv"]
    assert all((error_image(e) <= 0).all() for e in seen.errors)


def test_the_mask_the_weights_and_the_tiles_are_those_of_the_case() -> None:
    sparse = BlockSparse([[[1, 0], [0, 1]], [[1, 1], [0, 1]], [[1, 0], [1, 1]]], 100)
    seen = inspect_case(case(mask=sparse), "naive", heads=(0, 2), block=100)
    assert seen.heads == (0, 2)
    assert seen.mask.shape == (3, 200, 200)
    assert seen.weights.shape == (2, 200, 200)
    assert np.allclose(seen.weights.sum(-1), 1.0)
    assert not seen.weights[0][~seen.mask[0]].any()
    assert seen.blocks.tolist() == [[[2, 0], [0, 2]], [[2, 2], [0, 2]], [[2, 0], [2, 2]]]


def test_the_batch_row_with_the_largest_error_is_drawn(planted: Callable[[str], str]) -> None:
    # Row 0 has 192 real keys: there the tail is no key at all.
    seen = inspect_case(case(batch=2, mask=Padding([192, 200])), planted("tail"))
    assert seen.batch_row == 1


def test_pooling_keeps_a_single_odd_element() -> None:
    image = np.zeros((3000, 2500))
    image[2999, 1] = 7.0
    small = pooled(image, 1000)
    assert small.shape == (1000, 834)
    assert small[-1, 0] == 7.0
    holes = np.full((1, 4), np.nan)
    holes[0, 1] = 2.0
    assert pooled(holes, 2)[0].tolist()[0] == 2.0  # judged beside not judged is judged


def test_every_picture_is_written(tmp_path: Path, planted: Callable[[str], str]) -> None:
    paths = list(draw_pictures(inspect_case(case(), planted("tail")), tmp_path / "pictures"))
    assert [path.name for path in paths] == ["mask.png", "weights.png", "blocks.png", "errors.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_what_cannot_be_drawn_says_so(planted: Callable[[str], str]) -> None:
    with pytest.raises(AttnbenchError, match="too large to draw"):
        inspect_case(case(q_len=1 << 14, k_len=1 << 14), "naive")
    with pytest.raises(AttnbenchError, match="heads 0 to 2"):
        inspect_case(case(), "naive", heads=(3,))
    with pytest.raises(AttnbenchError, match="gives nothing to draw: IndexError: index 9"):
        inspect_case(case(), planted("breaks"))
    with pytest.raises(AttnbenchError, match="torch_mha refuses this case: has no softcap"):
        inspect_case(case(scores=(Softcap(5.0),)), "torch_mha")


def test_a_failed_check_offers_the_command_and_it_draws(
    tmp_path: Path, planted: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    from attnbench.cli.app import app

    monkeypatch.chdir(tmp_path)
    words = ["check", planted("tail"), "--case", json.dumps(case().to_json()), "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    line = next(x for x in done.stdout.splitlines() if x.startswith("  show "))
    command = shlex.split(line.removeprefix("  show "))
    assert command[:2] == ["attnbench", "show"]
    shown = CliRunner().invoke(app, [*command[1:], "--device", "cpu"])
    assert shown.exit_code == 1, shown.output
    assert "wrong: " in shown.stdout
    assert (tmp_path / "pictures" / "errors.png").exists()
