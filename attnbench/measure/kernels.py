"""The kernels that ran on the GPU, matched by name to the family that the backend declares.

A family is a set of attention kernels of one origin. Kernels of no family (copies, fills, reductions, casts) prove
nothing and may run beside any of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

# Patterns for mangled or demangled names, the most specific first: a name belongs to the first that matches.
FAMILIES: dict[str, re.Pattern[str]] = {
    "cudnn": re.compile(r"cudnn.*(sdpa|fmha|flash|mha)", re.IGNORECASE),
    "flash4": re.compile(r"flash_attncute|FlashAttention(Forward|Backward)\w*Sm\d"),
    "flash3": re.compile(r"FlashAttn(Fwd|Bwd)|flash::enable_sm(80_to_89|90)"),
    "flash2": re.compile(r"flash_fwd_(splitkv_)?(combine_)?kernel|flash_bwd_\w*kernel"),
    "cutlass": re.compile(r"fmha_cutlass|PyTorchMemEffAttention|AttentionKernel|AttentionBackwardKernel"),
    "flex": re.compile(r"triton_tem\w*flex|flex_attention"),
    "flashinfer": re.compile(r"flashinfer::|BatchPrefillWith|SinglePrefillWith|BatchDecodeWith"),
}
MOST_SHOWN = 3
NAME_CHARACTERS = 80


def gpu_kernels(call: Callable[[], Any]) -> list[str]:
    """The names of all GPU kernels of one call, sorted; none if the profiler saw none (another may hold the GPU)."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    # The host's calls, such as cudaDeviceSynchronize, are events too.
    return sorted({event.key for event in profiler.key_averages() if event.device_type != DeviceType.CPU})


def family_of(kernel: str) -> str:
    """The family of a kernel's name; empty if it is no attention kernel."""
    return next((name for name, pattern in FAMILIES.items() if pattern.search(kernel)), "")


def family_mismatch(kernels: Sequence[str], family: str) -> str:
    """Why these kernels are not of the backend's family; empty if they are, or none was seen: that proves nothing."""
    if not kernels:
        return ""
    families = {kernel: family_of(kernel) for kernel in kernels}
    others = [f"{short(kernel)} ({name})" for kernel, name in families.items() if name not in ("", family)]
    if others:
        return f"pinned to {family}, but these ran: {', '.join(others[:MOST_SHOWN])}"
    if family not in families.values():
        ran = ", ".join(short(kernel) for kernel in kernels[:MOST_SHOWN])
        return f"no kernel of {family} ran, but {ran}"
    return ""


def attention_kernels(kernels: Sequence[str]) -> list[str]:
    """The attention kernels among them, names cut short, each once; the first few of all if none is of a family."""
    own = dict.fromkeys(short(kernel) for kernel in kernels if family_of(kernel))
    return list(own or dict.fromkeys(short(kernel) for kernel in kernels))[: None if own else MOST_SHOWN]


def short(kernel: str) -> str:
    """A kernel's name without its arguments and template parameters."""
    name = re.sub(r"^(void|static)\s+", "", kernel).split("(")[0]
    while "<" in name and (inner := re.sub(r"<[^<>]*>", "", name)) != name:
        name = inner
    name = name.split("<")[0] or kernel
    return name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 3] + "..."
