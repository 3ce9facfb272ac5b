"""What a backend takes on a device is what it says when it is asked."""

from __future__ import annotations

from attnbench.backend import Backend, Capabilities, Prepared, Refusal
from attnbench.backend.taken import taken
from attnbench.problem import MASK_KINDS, Case, Inputs


class OnOneDeviceOnly(Backend):
    """Its backward and its masks differ between devices, which no capability can say."""

    capabilities = Capabilities(dtypes=frozenset({"fp16", "bf16"}), head_dims=(96, 128, 32))

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        if device == "cpu" and case.needs_backward:
            return Refusal("no backward there")
        if device == "cuda" and not case.mask.kinds <= {"causal"}:
            return Refusal("causal alone")
        return super().refuses(case, device)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        raise NotImplementedError


def test_what_is_refused_on_one_device_is_taken_on_the_other() -> None:
    backend = OnOneDeviceOnly()
    cpu, cuda = taken(backend, "cpu"), taken(backend, "cuda")
    assert cpu is not None
    assert cuda is not None
    assert cpu.dtypes == cuda.dtypes == ("bf16", "fp16")
    assert (cpu.backward, cuda.backward) == (False, True)
    assert set(cpu.masks) == MASK_KINDS
    assert cuda.masks == ("causal",)
    assert cpu.gqa


def test_a_backend_for_a_gpu_takes_nothing_on_a_cpu() -> None:
    backend = OnOneDeviceOnly()
    backend.capabilities = Capabilities(devices=frozenset({"cuda"}))
    assert taken(backend, "cpu") is None
