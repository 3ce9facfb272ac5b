"""jax.nn.dot_product_attention compiled by XLA, in its own environment."""

from __future__ import annotations

from attnbench.backend import Capabilities, Refusal
from attnbench.problem import Case

from ._library import ForeignBackend
from ._lowering_jax import SOURCE, lowered_xla, task_of

REQUIRES = {"jax": "attnbench env create jax", "ml_dtypes": "attnbench env create jax"}
ENVIRONMENT = "jax"


class JaxXla(ForeignBackend):
    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        if case.dtype == "fp16" and device == "cpu":
            return Refusal("has no fp16 on a CPU: it needs XLA's F16_F16_F32, which only GPUs have")
        return super().refuses(case, device)


backend = JaxXla(
    Capabilities(
        scores=frozenset({"alibi", "bias", "relative"}),
        unequal_v_dim=False,
        contract="dense",  # P and its gradient pass through the inputs' dtype
        empty_rows="mean_v",  # masked scores are a large finite negative
        source=SOURCE,
    ),
    ENVIRONMENT,
    "_program_jax.py",
    lambda case: task_of(case, lowered_xla(case), "jax", "xla"),
    ("jax", "ml_dtypes"),
    ("jax",),
)
