"""The device that a request means: `auto` is cuda if there is one, else cpu; and the one that this process works on."""

from __future__ import annotations

import re

from attnbench.errors import AttnbenchError


def resolve_device(device: str) -> str:
    """`auto` is cuda if there is one, else cpu; any other device must exist here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cuda" and device != kind and not index.isdigit()):
        raise AttnbenchError(f"no device {device!r}; take auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise AttnbenchError(
            f"no CUDA device for --device {device}; `attnbench doctor` says why, device cpu runs here"
        )
    if index and kind == "cuda" and int(index) >= torch.cuda.device_count():
        have = ", ".join(f"cuda:{n}" for n in range(torch.cuda.device_count()))
        raise AttnbenchError(f"no device {device!r} on this machine, which has {have}")
    return device


def work_on(device: str) -> str:
    """Resolve a device and make it the current one of this process; returns its name.

    Events, streams and the launches of Triton and other libraries go to the current device, not to that of the tensors.
    """
    device = resolve_device(device)
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)
    return device


_LOST = re.compile(
    r"illegal memory access|illegal instruction|illegal address|misaligned address|unspecified launch failure"
    r"|device-side assert|invalid program counter|uncorrectable",
    re.IGNORECASE,
)


def is_context_lost(error: BaseException) -> bool:
    """Whether no later call of this process on the GPU can succeed."""
    return bool(_LOST.search(str(error)))


def cuda_index(device: str) -> int:
    """The number of a CUDA device; of `cuda`, the current one. Some functions of torch take no name without one."""
    import torch

    return int(device.partition(":")[2] or torch.cuda.current_device())
