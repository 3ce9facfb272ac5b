"""torch's SDPA, pinned to the MATH kernel: the composed operators, any mask, any device."""

from torch.nn.attention import SDPBackend

from attnbench.backend import Capabilities

from ._sdpa import SOURCE, Sdpa

backend = Sdpa(
    SDPBackend.MATH,
    Capabilities(
        scores=frozenset({"alibi", "bias", "relative"}), contract="dense", double_backward=True, source=SOURCE
    ),
    dense_mask=frozenset({"cpu", "cuda"}),
)
