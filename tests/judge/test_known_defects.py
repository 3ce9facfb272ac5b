"""Are the defects that bundled backends declare really there, where they are declared?"""

from __future__ import annotations

import pytest

from attnbench.backend import resolve
from attnbench.judge.subject import Subject
from attnbench.problem import Case

# Case and distribution on which each declared defect of sdpa_flash is seen (docs/findings.md).
SEEN = {
    "oracle:cancelling_dq": (
        Case(q_len=64, k_len=2049, q_heads=1, head_dim=64, dtype="bf16", direction="fwd_bwd"),
        "dq",
    ),
    "oracle:sign_flipped_dout": (
        Case(q_len=2049, k_len=64, q_heads=1, head_dim=64, dtype="bf16", direction="fwd_bwd"),
        "dk",
    ),
}


def test_every_declared_defect_of_the_cpu_kernel_is_looked_for() -> None:
    assert set(resolve("sdpa_flash").known_defects) == set(SEEN)


@pytest.mark.parametrize("key", SEEN)
def test_a_declared_defect_is_there_and_in_nothing_else(key: str) -> None:
    backend = resolve("sdpa_flash")
    defect, (case, tensor) = backend.known_defects[key], SEEN[key]
    if not defect.is_in(backend.version()):
        pytest.skip(f"declared for {defect.versions}, and this is {backend.version()}")
    assert defect.shows(case)
    subject = Subject(backend, dtype=case.dtype)
    verdict = subject.verdict(subject.inputs(case, key.partition(":")[2]))
    assert verdict.errors[tensor]["over_budget"] > 3
    assert verdict.errors["out"]["over_budget"] < 1
