"""torch's SDPA, pinned to the FLASH kernel: FlashAttention-2 on a GPU, torch's own tiled kernel on a CPU."""

from collections.abc import Callable

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


KERNEL = "https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/cpu/FlashAttentionKernel.cpp"


def _many_keys(case: Case) -> bool:
    return case.needs_backward and case.dtype != "fp32" and case.k_len > 1024


def _many_queries(case: Case) -> bool:
    return case.needs_backward and case.dtype != "fp32" and case.q_len > 32


def _in_the_dtype(tensors: set[str], blocks: str, shows: Callable[[Case], bool]) -> KnownDefect:
    return KnownDefect(
        reason=f"torch's CPU kernel adds {' and '.join(sorted(tensors))} up over {blocks} in the inputs' dtype",
        link=KERNEL,
        versions="==2.13.*",
        shows=shows,
        devices=frozenset({"cpu"}),
        tensors=frozenset(tensors),
    )


backend.known_defects = {
    "oracle:cancelling_dq": _in_the_dtype({"dq"}, "blocks of 512 keys", _many_keys),
    "oracle:sign_flipped_dout": _in_the_dtype({"dk", "dv"}, "blocks of queries", _many_queries),
}
