"""`attnbench check` exits 0 if right, 1 if wrong (with a command that repeats it), 3 if too little is checked."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnbench.cli.check import show_command

RIGHT_WITHOUT_MASKS = """
def plain(q, k, v, *, mask, scores, scale):
    if scores or q.shape[1] != k.shape[1] or q.shape[2] != k.shape[2]:
        raise NotImplementedError("full attention with equal heads only")
    return ((q @ k.mT) * scale).softmax(-1) @ v
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A function that ignores its mask: right where everything may be attended, wrong elsewhere."""
    (tmp_path / "mine.py").write_text(RIGHT_WITHOUT_MASKS)
    return f"{tmp_path / 'mine.py'}:plain"


NARROW = """
def slice_of(q, k, v, *, mask, scores, scale):
    if scores or str(mask) != "full" and q.shape[2] > 1:
        raise NotImplementedError("full attention, or one query")
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    k, v = (x.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = (q.float() @ k.mT * scale).masked_fill(~allowed, float("-inf"))
    p = s.softmax(-1).masked_fill(~allowed.any(-1, keepdim=True), 0)
    return (p.to(q.dtype).float() @ v).to(q.dtype)


def limited(q, k, v, *, mask, scores, scale):
    if q.shape[1] != k.shape[1]:
        raise ValueError("equal heads only")
    return slice_of(q, k, v, mask=mask, scores=scores, scale=scale)
"""


@pytest.fixture
def narrow(tmp_path: Path) -> str:
    """A file of two right functions: `slice_of` refuses most masks, `limited` raises for grouped heads."""
    (tmp_path / "narrow.py").write_text(NARROW)
    return str(tmp_path / "narrow.py")


def case(mask: str) -> str:
    fields = {"q_len": 16, "k_len": 16, "q_heads": 2, "head_dim": 8, "dtype": "fp32", "mask": mask}
    return json.dumps(fields)


def test_what_is_right_exits_0(mine: str, attnbench: Any) -> None:
    done = attnbench("check", mine, "--case", case("full"))
    assert done.exit_code == 0, done.output
    assert "1 checks passed, 0 failed" in done.stdout
    assert done.stderr.startswith("checking ")


def test_what_is_wrong_exits_1_and_the_printed_command_shows_it_again(mine: str, attnbench: Any) -> None:
    done = attnbench("check", mine, "--case", case("causal"))
    assert done.exit_code == 1
    again = next(line for line in done.stdout.splitlines() if "attnbench check" in line)
    words = shlex.split(again[again.index("attnbench check") :])
    assert attnbench(*words[1:]).exit_code == 1


def test_a_picture_is_offered_of_wrong_values_and_not_of_how_they_came_about(
    mine: str, attnbench: Any
) -> None:
    shown = attnbench("check", mine, "--case", case("causal")).stdout
    assert re.search(
        r"^  show   .*attnbench show", shown, re.MULTILINE
    )  # variables of other tests come first
    done = attnbench("check", mine, "--case", case("causal"), "--only", "protocol")
    assert "protocol: the first call is wrong" in done.stdout
    assert "attnbench show" not in done.stdout


def test_json_has_the_failure_with_its_case_and_place(mine: str, attnbench: Any) -> None:
    done = attnbench("check", mine, "--case", case("causal"), "--json")
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert report["failures"][0]["case"]["mask"] == "causal"
    assert len(report["failures"][0]["worst"]) == 4


def test_what_refuses_everything_is_not_called_right(mine: str, attnbench: Any) -> None:
    fields = json.loads(case("full")) | {"q_heads": 4, "kv_heads": 2}
    done = attnbench("check", mine, "--case", json.dumps(fields))
    assert done.exit_code == 3
    assert "too little checked" in done.stdout
    assert "full attention with equal heads only" in done.stdout


SMALL = ("--dtype", "bf16", "--direction", "fwd", "--only", "oracle", "--level", "smoke")


def test_a_condition_keeps_the_check_to_a_slice(narrow: str, attnbench: Any) -> None:
    done = attnbench(
        "check", f"{narrow}:slice_of", "--where", "q_len == 1 and k_len <= 130", *SMALL, "--json"
    )
    report = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert (report["verdict"], report["shortfall"]) == ("right", [])
    assert report["outcomes"]
    assert all("-q1-" in o["case_id"] or o["case_id"].startswith("q1-") for o in report["outcomes"])


def test_a_condition_that_makes_no_sense_exits_2_with_its_column(mine: str, attnbench: Any) -> None:
    for where in ("q_lne == 1", "__import__('os')", "mask < 3"):
        done = attnbench("check", mine, "--where", where, *SMALL)
        assert done.exit_code == 2, done.output
        assert "condition" in done.stderr
    assert attnbench("check", mine, "--where", "q_len == 1", "--case", case("full")).exit_code == 2


def test_a_suspected_limit_exits_0_or_1_if_strict(narrow: str, attnbench: Any) -> None:
    arguments = (
        "check",
        f"{narrow}:limited",
        "--where",
        "k_len <= 130 and q_len <= 130",
        "--mask",
        "full",
        *SMALL,
    )
    done = attnbench(*arguments)
    assert done.exit_code == 0, done.output
    assert "right but for 1 suspected limit" in done.stdout
    assert attnbench(*arguments, "--strict").exit_code == 1
    assert json.loads(attnbench(*arguments, "--json").stdout)["limits"][0]["factor"] == "heads"
    right = (*arguments[:1], f"{narrow}:slice_of", *arguments[2:], "--where", "q_len == 1 and k_len <= 130")
    assert attnbench(*right, "--strict").exit_code == 0


def test_a_check_that_stands_on_too_little_exits_3_and_says_what_it_lacks(
    narrow: str, attnbench: Any
) -> None:
    one = "q_len == 1 and k_len == 17 and batch == 1 and q_heads == 1 and head_dim == 64 and v_dim == 64"
    one += " and mask == 'full' and layout == 'bhsd' and scale == None"
    done = attnbench("check", f"{narrow}:slice_of", "--dtype", "bf16", "--direction", "fwd", "--where", one)
    assert done.exit_code == 3, done.output
    assert "too little checked" in done.stdout
    assert "fewer than 20" in done.stdout


@pytest.mark.parametrize("mask", ["dilated", "global", "global,dilated"])
def test_a_kind_of_mask_that_the_battery_only_combines_is_checked_alone(mask: str, attnbench: Any) -> None:
    done = attnbench("check", "naive", "--mask", mask, *SMALL, "--json")
    assert done.exit_code == 0, done.output
    ids = [o["case_id"] for o in json.loads(done.stdout)["outcomes"] if o["status"] == "ok"]
    assert all(any(kind in one for one in ids) for kind in mask.split(","))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--level", "hardest"),
        ("--case", "{not json"),
        ("--case", "[1]"),
        ("--case", '{"q_len": 1}'),
        ("--dtype", "fp8"),
        ("--direction", "sideways"),
        ("--contract", "loose"),
        ("--only", "speed"),
    ],
    ids=" ".join,
)
def test_a_request_that_makes_no_sense_exits_2(mine: str, attnbench: Any, arguments: tuple[str, ...]) -> None:
    done = attnbench("check", mine, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.splitlines()[-1].startswith("attnbench: ")


def test_a_backend_that_is_not_installed_exits_3(attnbench: Any) -> None:
    listed = json.loads(attnbench("list", "--json").stdout)
    missing = [one["name"] for one in listed if not one["available"]]
    if not missing:
        pytest.skip("every backend is installed here")
    done = attnbench("check", missing[0])
    assert done.exit_code == 3
    assert missing[0] in done.stderr


def test_a_page_of_the_self_test_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, attnbench: Any
) -> None:
    done = attnbench("selftest", "--write", tmp_path)
    assert done.exit_code == 2, done.output
    assert "is a folder" in done.stderr


def test_the_picture_of_a_command_keeps_its_variables() -> None:
    check = """TRITON_INTERPRET=1 attnbench check /a/m.py:llama --case '{"q_len": 1}' --seed 0"""
    shown = (
        """TRITON_INTERPRET=1 attnbench show '{"q_len": 1}' --backend /a/m.py:llama --seed 0 --out pictures"""
    )
    assert show_command(check) == shown


def test_a_name_that_is_an_emoji_or_markup_is_printed_as_it_is(tmp_path: Path, attnbench: Any) -> None:
    for name in ("llama", "cat"):
        (tmp_path / "[red]x.py").write_text(RIGHT_WITHOUT_MASKS.replace("plain", name))
        done = attnbench("check", f"{tmp_path}/[red]x.py:{name}", "--case", case("full"))
        assert f"[red]x.py:{name}: right" in done.stdout
        assert f"[red]x.py:{name}" in done.stderr


def test_nothing_is_imported_for_a_name_or_a_file_that_is_not_there() -> None:
    for words in (
        ("check", "nope.py:f"),
        ("check", "nave"),
        ("show", "{}", "--backend", "nave"),
        ("profile", "{}", "--backend", "nave"),
    ):
        program = f"import sys; sys.argv[1:] = {list(words)!r}\nfrom attnbench.cli import main\ntry: main()\n"
        program += "except SystemExit as end: assert end.code == 2 and 'torch' not in sys.modules, end.code"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_v_shows_every_failure(mine: str, attnbench: Any) -> None:
    arguments = ("check", mine, *SMALL, "--mask", "causal")
    assert "  of     " not in attnbench(*arguments).stdout
    shown = attnbench(*arguments, "-v").stdout
    failed = len(json.loads(attnbench(*arguments, "--json").stdout)["failures"])
    assert shown.count("  of     ") == failed > 0
