"""torch's SDPA, pinned to the cuDNN kernel, GPU only."""

from torch.nn.attention import SDPBackend

from attnbench.backend import Capabilities

from ._sdpa import SOURCE, Sdpa

backend = Sdpa(
    SDPBackend.CUDNN_ATTENTION,
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(8, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(8, 256, 8),
        scores=frozenset({"alibi", "bias", "relative"}),
        empty_rows="undefined",
        source=SOURCE,
    ),
    dense_mask=frozenset({"cuda"}),
)
