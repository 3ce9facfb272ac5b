"""torch's SDPA, pinned to the EFFICIENT kernel (the memory-efficient attention of xFormers), GPU only."""

from torch.nn.attention import SDPBackend

from attnbench.backend import Capabilities

from ._sdpa import SOURCE, Sdpa

backend = Sdpa(
    SDPBackend.EFFICIENT_ATTENTION,
    Capabilities(
        devices=frozenset({"cuda"}),
        scores=frozenset({"alibi", "bias", "relative"}),
        gqa=False,
        empty_rows="undefined",
        source=SOURCE,
    ),
    dense_mask=frozenset({"cuda"}),
)
