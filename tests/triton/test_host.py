"""A call reads nothing from the device and copies nothing to it, so a CUDA graph can hold it.

On meta tensors, which have no values: reading one raises, and a copy between devices is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.backend import Backend
from attnbench.problem import ALiBi, Bias, Case, RelativeBias, Score, Sink, Softcap, make_inputs, parse_mask

META = torch.device("meta")
# Long enough that every kernel has its own tile size and walk.
CALLS: list[dict[str, Any]] = [
    {"mask": "causal", "kv_heads": 2},
    {"mask": "documents([5, 0, 251], [250, 1])", "batch": 2},
    {"mask": "block_sparse([[1, 0], [1, 1]], 128)"},
    {"mask": "causal", "q_len": 1, "k_len": 4096, "q_heads": 2, "scores": (Sink(),)},
    {"scores": (Softcap(3.0), ALiBi(), Bias("bk"), RelativeBias("t5(8, 20, bidirectional)"), Sink())},
    {"scores": (RelativeBias("grid(16, 16)"), Bias("hqk"))},
]


class Crossings(TorchDispatchMode):
    """Records the operations that have an operand or result on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        if any(leaf.device.type == "cpu" for leaf in leaves if isinstance(leaf, torch.Tensor)):
            self.operations.append(str(function))
        return result


@pytest.fixture
def call(triton_backend: Backend) -> Callable[..., list[str]]:
    """`call(built=True, **changes)`: what crosses between the host and the device in a forward and a backward."""
    from attnbench_backends.triton.configurations import chosen
    from attnbench_backends.triton.launch import Plan
    from attnbench_backends.triton.score_gradients import score_gradients

    def run(
        built: bool = True, start: Callable[[Any], None] = lambda launch: None, **changes: Any
    ) -> list[str]:
        small: dict[str, Any] = {"q_len": 256, "k_len": 256, "q_heads": 4, "head_dim": 64, "dtype": "bf16"}
        fields = small | {"direction": "fwd_bwd", "mask": "full"} | changes
        case = Case(**fields | {"mask": parse_mask(fields["mask"])})

        def empty(heads: int, length: int) -> torch.Tensor:
            return torch.empty(case.batch, heads, length, case.head_dim, dtype=torch.bfloat16, device=META)

        q, k, v = empty(case.q_heads, case.q_len), *(empty(case.kv_heads, case.k_len) for _ in "kv")
        plan = Plan(case, META, lambda kernel: chosen(kernel, case, (9, 0)), start)
        if built:
            plan.build()
        scores = tuple(_on_meta(score, case) for score in case.scores)
        with Crossings() as crossings:
            bound = plan.bind(scores)
            out, lse = plan.forward(q, k, v, bound)
            *_, delta = plan.backward(q, k, v, bound, out, lse, out)
            score_gradients(plan, q, k, v, bound, lse, delta, out)
        return crossings.operations

    return run


def _on_meta(score: Score, case: Case) -> Score:
    shape = score.tensor_shape(case.extent)
    return score if shape is None else score.bound(torch.empty(shape, dtype=torch.bfloat16, device=META))


@pytest.mark.parametrize("changes", CALLS, ids=str)
def test_a_call_reads_nothing_from_the_device_and_copies_nothing_to_it(
    call: Any, changes: dict[str, Any]
) -> None:
    assert call(**changes) == []


def test_what_is_not_built_in_advance_is_seen_to_be_copied(call: Any) -> None:
    assert any("copy" in name for name in call(built=False, mask="causal"))


def test_a_value_that_is_read_is_seen(call: Any) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        call(start=lambda launch: next(x for x in launch.arguments if torch.is_tensor(x)).sum().item())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("changes", CALLS, ids=str)
def test_a_cuda_graph_holds_a_call_and_gives_the_same_bits(
    triton_backend: Backend, changes: dict[str, Any]
) -> None:
    small: dict[str, Any] = {"q_len": 256, "k_len": 256, "q_heads": 4, "head_dim": 64, "dtype": "bf16"}
    fields = small | {"direction": "fwd_bwd", "mask": "full"} | changes
    inputs = make_inputs(Case(**fields | {"mask": parse_mask(fields["mask"])}), device="cuda")
    prepared = triton_backend.prepare(inputs.case, inputs)
    assert inputs.dout is not None
    wanted = (prepared.forward().out, prepared.backward(inputs.dout))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = prepared.forward()
        gradients = prepared.backward(inputs.dout)
    for tensor in (output.out, gradients.dq, gradients.dk, gradients.dv):
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output.out, wanted[0])
    for name in ("dq", "dk", "dv"):
        assert torch.equal(getattr(gradients, name), getattr(wanted[1], name))
