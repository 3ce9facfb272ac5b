"""The device that a request means: `auto` is cuda if there is one, else cpu."""

from __future__ import annotations

from attnbench.errors import AttnbenchError


def resolve_device(device: str) -> str:
    """`auto` is cuda if there is one, else cpu; any other device must exist here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise AttnbenchError(f"no device {device!r}; take auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise AttnbenchError(
            f"no CUDA device for --device {device}; `attnbench doctor` says why, device cpu runs here"
        )
    if kind == "cuda" and ":" in device and not device.split(":")[1].isdigit():
        raise AttnbenchError(f"no device {device!r}; take auto, cpu, cuda or cuda:N")
    return device
