"""torch's SDPA, pinned to the FLASH kernel: FlashAttention-2 on a GPU, torch's own tiled kernel on a CPU."""

from torch.nn.attention import SDPBackend

from attnbench.backend import Capabilities, KnownDefect
from attnbench.problem import Case

from ._sdpa import SOURCE, Sdpa

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


def _adds_up_many_blocks(case: Case) -> bool:
    return case.needs_backward and case.dtype != "fp32" and case.k_len > 1024


backend.known_defects = {
    "oracle:cancelling_dq": KnownDefect(
        reason="torch's CPU kernel adds dq up over blocks of 512 keys in the inputs' dtype",
        link="https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/cpu/FlashAttentionKernel.cpp",
        versions="==2.13.*",
        shows=_adds_up_many_blocks,
        devices=frozenset({"cpu"}),
    )
}
