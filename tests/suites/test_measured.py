"""The pytest suites judge by the reference worker: one right answer per case and contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attnbench_suites.measured import Measurements

from attnbench.backend.interface import CONTRACTS
from attnbench.sweep.case_run import TimingSettings
from attnbench.sweep.suite import Planned

PLUG_IN = """
import torch
from attnbench.backend import Capabilities, FunctionBackend

def right(q, k, v, *, mask, scores, scale):
    return ((q @ k.transpose(-1, -2)) * scale).softmax(-1) @ v

"""


@pytest.fixture
def plug_ins(tmp_path: Path) -> dict[str, str]:
    """A right backend under each contract."""
    path = tmp_path / "plug_ins.py"
    backends = [
        f"{name} = FunctionBackend(right, '{name}', Capabilities(contract='{name}'))" for name in CONTRACTS
    ]
    path.write_text(PLUG_IN + "\n".join(backends) + "\n")
    return {name: f"{path}:{name}" for name in CONTRACTS}


def test_backends_of_every_contract_share_one_reference_per_contract(
    tmp_path: Path, plug_ins: dict[str, str], a_case: Any
) -> None:
    folder = tmp_path / "references"
    measurements = Measurements("cpu", folder)
    plan, settings = Planned(a_case()), TimingSettings(rounds=1, block_ms=1.0)
    kept: dict[Path, int] = {}
    for _ in range(2):
        for contract, backend in plug_ins.items():
            result = measurements.of(plan, backend, settings)
            assert (result.status, result.contract) == ("ok", contract), result.reason
        kept = kept or {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(kept) == len(CONTRACTS)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")} == kept
    measurements.of(Planned(a_case(q_len=8)), plug_ins["flash"], settings)
    assert len(list(folder.glob("*.npz"))) == 1  # those of the case before are removed
    measurements.close()


def test_a_result_of_the_suites_is_what_a_sweep_would_store(
    tmp_path: Path, plug_ins: dict[str, str], a_case: Any
) -> None:
    measurements = Measurements("cpu", tmp_path / "references", seed=2)
    case = a_case(direction="fwd_bwd")
    result = measurements.of(Planned(case, group="tiny"), plug_ins["dense"], TimingSettings(rounds=1))
    measurements.close()
    assert (result.status, result.contract, result.group, result.seed) == ("ok", "dense", "tiny", 2)
    assert set(result.samples_ms) == set(result.least_bytes) == {"fwd", "bwd"}
    assert result.pairs == case.pairs


def test_a_reference_that_cannot_be_computed_is_an_error_with_its_reason(
    tmp_path: Path, plug_ins: dict[str, str], a_case: Any
) -> None:
    (tmp_path / "no_folder").write_text("a file")
    measurements = Measurements("cpu", tmp_path / "no_folder")
    result = measurements.of(Planned(a_case()), plug_ins["flash"], TimingSettings(rounds=1))
    measurements.close()
    assert result.status == "error"
    assert result.reason.startswith("nothing to judge by: the float64 reference failed")
