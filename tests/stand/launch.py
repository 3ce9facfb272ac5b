"""Launches the compiled kernels of cases by Triton's own launch path, on the driver of libcuda.c: `launch.py NAME...`.

Prints one JSON line per case: its name, and why it failed or "". A name is a specimen's of backends/triton, or
`misaligned`, whose keys lie at an address that TMA does not take.
"""

import ctypes
import json
import os
import sys
from dataclasses import replace
from typing import Any

os.environ["ATTNBENCH_TRITON"] = "compile"
os.environ.pop("TRITON_INTERPRET", None)
ctypes.CDLL(os.path.join(os.environ["TRITON_LIBCUDA_PATH"], "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
from attnbench_backends.triton.ahead_of_time import Specimen, specimens  # noqa: E402
from attnbench_backends.triton.launch import Plan  # noqa: E402
from attnbench_backends.triton.score_gradients import score_gradients  # noqa: E402
from triton.backends.nvidia import driver as nvidia  # noqa: E402
from triton.runtime import driver  # noqa: E402

from attnbench.problem import make_inputs  # noqa: E402


class Stub(nvidia.CudaDriver):  # type: ignore[misc]
    """Triton's driver without torch.cuda: one device of compute capability 9.0."""

    def __init__(self) -> None:
        super().__init__()
        answers: dict[str, Any] = {
            "get_current_device": lambda: 0,
            "get_device_capability": lambda device=0: (9, 0),
            "get_current_stream": lambda device=0: 0,
            "set_current_device": lambda device: None,
        }
        for name, answer in answers.items():
            setattr(self, name, answer)


def small(specimen: Specimen) -> Specimen:
    """The same kernels for fewer tokens: the driver's rules ask for strides and sizes, not for work."""
    case = specimen.case
    lengths = {"k_len": 2048} if case.q_len == 1 else {"q_len": 512, "k_len": 512}
    if "documents" in str(case.mask):
        lengths = {}
    return replace(specimen, case=replace(case, batch=1, **lengths))


def launch(specimen: Specimen, misaligned: bool = False) -> None:
    """A forward and a backward of the specimen; whatever the launch path raises passes."""
    case = specimen.case
    inputs = make_inputs(case)
    q, k, v = inputs.q, inputs.k, inputs.v
    if misaligned:  # the same shape one element behind an aligned address
        k = torch.empty(k.numel() + 1, dtype=k.dtype)[1:].view(k.shape)
    plan = Plan(case, torch.device("cpu"), specimen.tiles((9, 0)), processors=132)
    changes = plan.bind(inputs.scores)
    out, lse = plan.forward(q, k, v, changes)
    if inputs.dout is not None:
        *_, delta = plan.backward(q, k, v, changes, out, lse, inputs.dout)
        score_gradients(plan, q, k, v, changes, lse, delta, inputs.dout)


def main(names: list[str]) -> None:
    driver.set_active(Stub())
    known = specimens()
    for name in names:
        try:
            launch(small(known.get(name, known["bf16-d128-causal"])), misaligned=name == "misaligned")
            failed = ""
        except Exception as error:  # noqa: BLE001 - the test is told whatever it raises
            failed = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps({"name": name, "failed": failed}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
