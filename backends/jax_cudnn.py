"""cuDNN through JAX: jax.nn.dot_product_attention(implementation="cudnn"), GPU only."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import ForeignBackend
from ._lowering_jax import SOURCE, lowered_cudnn, task_of

REQUIRES = {"jax": "attnbench env create jax --cuda", "jax_cuda13_plugin": "attnbench env create jax --cuda"}
ENVIRONMENT = "jax"
CUDA_BUILD = True

backend = ForeignBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(8, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(8, 128, 8),
        scores=frozenset({"alibi", "bias", "relative"}),
        unequal_v_dim=False,
        empty_rows="undefined",
        source=SOURCE,
    ),
    ENVIRONMENT,
    "_program_jax.py",
    lambda case: task_of(case, lowered_cudnn(case), "jax", "cudnn"),
    ("jax", "ml_dtypes", "jax_cuda13_plugin"),
    ("jax",),
)
