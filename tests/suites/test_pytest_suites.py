"""`pytest suites/` times only what is right, with attnbench's samples in pytest-benchmark's table, JSON and options."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

pytestmark = pytest.mark.benchmarks

ROOT = Path(__file__).resolve().parents[2]
TINY = """
[[cpu.grid]]
group = "tiny"
seq = 16
heads = 2
head_dim = 8
mask = ["full", "causal"]
direction = "fwd_bwd"
"""
PLUG_INS = """
import torch
from attnbench.backend import Backend, Capabilities, resolve

def exact(q, k, v, *, mask, scores, scale):
    b, h, n, _ = q.shape
    allowed = mask.materialize(batch=b, heads=h, q_len=n, k_len=k.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)

def wrong(q, k, v, *, mask, scores, scale):
    return 1.01 * exact(q, k, v, mask=mask, scores=scores, scale=scale)

def refusing(q, k, v, *, mask, scores, scale):
    raise NotImplementedError("takes no case")

class Untimed(Backend):
    capabilities = Capabilities(timed=False, contract="dense")
    def prepare(self, case, inputs):
        return resolve("naive").prepare(case, inputs)

untimed = Untimed()
"""


def run_pytest(folder: Path, *words: str) -> tuple[int, str]:
    """`pytest` on these words in the repository, with its cache and storage in `folder`: exit code, output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *words]
    command += [f"--benchmark-storage=file://{folder}/saved", "--device", "cpu", "--benchmark-max-time=0.02"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def tiny(folder: Path) -> list[str]:
    (folder / "tiny.toml").write_text(TINY)
    (folder / "plug_ins.py").write_text(PLUG_INS)
    return ["suites/", "--suite", str(folder / "tiny.toml"), "--backend"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, Any]]:
    """The tiny suite on naive, on a right, a wrong, a refusing and an untimed plug-in, and on a CUDA-only backend."""
    folder = tmp_path_factory.mktemp("swept")
    names = [f"{folder}/plug_ins.py:{name}" for name in ("exact", "wrong", "refusing", "untimed")]
    words = [*tiny(folder), ",".join(["naive", *names, "sdpa_cudnn"])]
    code, output = run_pytest(folder, *words, f"--benchmark-json={folder}/out.json", "-q")
    return code, output, json.loads((folder / "out.json").read_text())


def named(report: dict[str, Any], backend: str) -> list[dict[str, Any]]:
    return [row for row in report["benchmarks"] if row["extra_info"]["backend"].endswith(backend)]


def test_only_what_is_right_and_has_a_clock_is_timed(swept: tuple[int, str, dict[str, Any]]) -> None:
    code, output, report = swept
    assert code == 1
    # Two masks, two directions each.
    assert len(named(report, "naive")) == len(named(report, ":exact")) == 4
    assert len(report["benchmarks"]) == 8
    assert re.search(r"4 failed, 12 passed, 8 skipped", output)


def test_a_wrong_backend_fails_with_the_verdict_and_how_to_see_it_again(
    swept: tuple[int, str, dict[str, Any]],
) -> None:
    output = swept[1]
    assert re.search(r"wrong is wrong on q16-k16-h2-d8-fp32-causal-fwd_bwd: ", output)
    assert re.search(r"  out: [\d.e+]+ of the budget, worst at \[", output)
    assert re.search(
        r"again: attnbench run \S*tiny\.toml --case q16-\S+-causal-fwd_bwd --backend \S+:wrong", output
    )


def test_what_is_refused_is_skipped_with_the_reason(swept: tuple[int, str, dict[str, Any]]) -> None:
    output = swept[1]
    assert re.search(r"SKIPPED \[4\] .*refusing refused: takes no case", output)
    assert re.search(r"SKIPPED \[4\] .*sdpa_cudnn refused: runs on cuda, not on cpu", output)


def test_what_has_no_clock_is_checked_without_a_warning(swept: tuple[int, str, dict[str, Any]]) -> None:
    assert "not used at all" not in swept[1]


def test_the_json_holds_our_samples_and_what_they_mean(swept: tuple[int, str, dict[str, Any]]) -> None:
    report = swept[2]
    pairs = {"full": 2 * 16 * 16, "causal": 2 * (16 * 17 // 2)}  # over two heads
    per_pair = {"fwd": 2 * (8 + 8), "bwd": 2 * (3 * 8 + 2 * 8)}
    seen = set()
    for row in report["benchmarks"]:
        info, data = row["extra_info"], row["stats"]["data"]
        mask = row["params"]["case"].split("-")[5]
        seen.add((mask, info["direction"]))
        assert row["params"]["case"] == info["id"]
        assert row["params"]["direction"] == info["direction"]
        assert sum(info["samples_a_round"]) == len(data) == row["stats"]["rounds"] > 0
        assert all(value > 0 for value in data)
        flops = pairs[mask] * per_pair[info["direction"]]
        assert info["tflops"] == pytest.approx(flops / median(data) / 1e12, rel=1e-4)
        assert row["stats"]["median"] == pytest.approx(median(data))
        assert info["peak_bytes"] >= 2 * 16 * 8 * 4  # what it returns is 2 heads x 16 x 8 floats
        assert 0 <= info["error_over_budget"] <= 1
        assert row["options"]["timer"] == info["clock"] == "perf_counter_ns"
        assert row["group"] == f"{info['id']} {info['direction']}"
    assert seen == {(mask, direction) for mask in pairs for direction in per_pair}


def test_the_json_names_the_machine(swept: tuple[int, str, dict[str, Any]]) -> None:
    import torch

    machine = swept[2]["machine_info"]
    assert machine["attnbench"]["libraries"]["torch"] == torch.__version__
    assert machine["attnbench"]["device"] == "cpu"
    # The current clock rate would make two runs on one machine look like two machines.
    assert not [name for name in machine["cpu"] if name.startswith("hz_actual")]


def test_saved_runs_are_compared_and_grouped_by_the_plug_ins_own_options(tmp_path: Path) -> None:
    words = [*tiny(tmp_path), "naive", "-k", "causal"]
    code, output = run_pytest(tmp_path, *words, "--benchmark-autosave")
    assert code == 0, output
    code, output = run_pytest(tmp_path, *words, "--benchmark-compare", "--benchmark-group-by=param:backend")
    assert code == 0, output
    assert "machine_info is different" not in output
    assert "benchmark 'backend=naive': 4 tests" in output  # two directions, now and then
    assert output.count("(NOW)") >= 2
    assert output.count("(0001_") >= 2


def test_disabled_benchmarks_are_still_checked(tmp_path: Path) -> None:
    words = [*tiny(tmp_path), f"naive,{tmp_path}/plug_ins.py:wrong", "-k", "full", "--benchmark-disable"]
    code, output = run_pytest(tmp_path, *words)
    assert code == 1
    assert "2 failed, 2 passed" in output
    assert "Rounds" not in output


def collected(folder: Path, *words: str) -> list[str]:
    code, output = run_pytest(folder, *words, "--collect-only", "-q")
    assert code == 0, output
    return [line for line in output.splitlines() if "::" in line]


def test_quick_is_collected_unless_others_are_named_and_k_selects_by_case_and_backend(tmp_path: Path) -> None:
    by_default = collected(tmp_path, "suites/", "--backend", "naive,flex", "-k", "causal and naive")
    assert by_default
    for name in by_default:
        assert re.match(r"suites/test_quick\.py::test_quick\[.*causal.*-naive-(fwd|bwd)\]", name)
    by_option = collected(tmp_path, "suites/", "--backend", "naive", "--suite", "masks")
    assert {name.split("::")[0] for name in by_option} == {"suites/test_masks.py"}
    by_file = collected(tmp_path, "suites/test_core.py", "--backend", "naive")
    assert {name.split("::")[0] for name in by_file} == {"suites/test_core.py"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "nave"], "no backend called 'nave'; did you mean 'naive'?"),
        (["--suite", "nowhere.toml"], "no file 'nowhere.toml'"),
        (["--suite", "quik"], "no suite called 'quik'; did you mean 'quick'?"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path, words: list[str], says: str) -> None:
    code, output = run_pytest(tmp_path, "suites/", *words)
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert says in output
    assert "Traceback" not in output
