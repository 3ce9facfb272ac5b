"""torch's SDPA, pinned to the FLASH kernel: FlashAttention-2 on a GPU, torch's own tiled kernel on a CPU."""

from torch.nn.attention import SDPBackend

from attnbench.backend import Capabilities

from ._sdpa import FLASH_ON_CPU_DEFECTS, SOURCE, Sdpa

backend = Sdpa(
    SDPBackend.FLASH_ATTENTION,
    Capabilities(
        architectures=(8, 0),
        head_dims=(1, 256, 1),
        scores=frozenset({"alibi", "bias", "relative"}),
        unequal_v_dim=False,
        source=SOURCE,
    ),
    dense_mask=frozenset({"cpu"}),
)
backend.known_defects = FLASH_ON_CPU_DEFECTS
