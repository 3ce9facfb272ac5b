"""What a function gives for queries that may attend no key: zeros, the mean of V, NaN, or something else."""

from __future__ import annotations

from attnbench.conformance.diagnosis.observation import Observation
from attnbench.judge.rounding import UNITS

WORDS = {"mean_v": "the mean of V", "nan": "NaN"}  # by the capability's value


def given_without_key(observation: Observation) -> str:
    """`mean_v` or `nan` if rows without a key hold that in out; empty for anything else, and if there are none."""
    empty = ~observation.allowed.any(-1)  # [B, H, Q]
    out, v = observation.answer.output.out, observation.inputs.v.double()
    if not bool(empty.any()) or out.shape[:3] != empty.shape:
        return ""
    held = out.detach().double()
    if bool(held[empty].isnan().all()):
        return "nan"
    u, k_len = UNITS[observation.case.dtype], v.shape[2]
    mean, size = (x.repeat_interleave(observation.case.group, 1) for x in (v.mean(2), v.abs().mean(2)))
    near = (held - mean[:, :, None]).abs() <= (4 + k_len**0.5) * u * size[:, :, None]  # [B, H, Q, Dv]
    return "mean_v" if bool(near[empty].all()) else ""
