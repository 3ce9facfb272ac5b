"""flax's MultiHeadDotProductAttention: a whole layer with identity projections, compiled by XLA.

Layer level, like `torch_mha`: its time includes four products of [B * S, H * D] by [H * D, H * D].
"""

from __future__ import annotations

from attnbench.backend import Capabilities, Refusal
from attnbench.problem import Case

from ._library import ForeignBackend
from ._lowering_jax import lowered_flax, task_of

REQUIRES = {
    "jax": "attnbench env create jax",
    "flax": "attnbench env create jax",
    "ml_dtypes": "attnbench env create jax",
}
ENVIRONMENT = "jax"


class FlaxMha(ForeignBackend):
    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        if case.scale is not None and case.scale != case.head_dim**-0.5:
            return Refusal("takes no scale but 1 / sqrt(head_dim)")
        return super().refuses(case, device)


backend = FlaxMha(
    Capabilities(
        scores=frozenset(),
        gqa=False,
        unequal_v_dim=False,
        contract="dense",
        empty_rows="mean_v",
        layer_level=True,
        source="https://flax-linen.readthedocs.io/en/latest/api_reference/flax.linen/layers.html",
    ),
    ENVIRONMENT,
    "_program_jax.py",
    lambda case: task_of(case, lowered_flax(case), "flax", "xla"),
    ("jax", "flax", "ml_dtypes"),
    ("flax", "jax"),
)
