"""The kernel reads and writes only its tensors: strides, offsets beyond 32 bits, poison around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnbench.backend import Backend, Output
from attnbench.judge import judge, make_reference
from attnbench.problem import Case, Inputs, make_inputs, parse_mask

POISON = 1e30


@pytest.fixture
def planned(triton_backend: Backend, device: str) -> Callable[..., Any]:
    """`planned(case, q, k, v, dout=None, tiles=None)`: out, lse and (dq, dk, dv) of exactly these tensors."""
    from attnbench_backends.triton.launch import Plan

    def run(case: Case, q: Any, k: Any, v: Any, dout: Any = None, tiles: Any = None, **more: Any) -> Any:
        plan = Plan(case, q.device, tiles, **more)
        changes = plan.bind(())
        out, lse = plan.forward(q, k, v, changes)
        return out, lse, None if dout is None else plan.backward(q, k, v, changes, out, lse, dout)[:3]

    return run


def _around(x: torch.Tensor, value: float) -> torch.Tensor:
    """The same numbers inside a larger tensor of `value`: two rows and three columns more on every side."""
    big = torch.full([*x.shape[:2], x.shape[2] + 4, x.shape[3] + 6], value, dtype=x.dtype, device=x.device)
    big[:, :, 2:-2, 3:-3] = x
    return big[:, :, 2:-2, 3:-3]


@pytest.mark.parametrize("mask", ["full", "causal", "documents(20, 17)"])
def test_what_lies_around_the_tensors_changes_no_bit(
    planned: Any, a_case: Any, device: str, mask: str
) -> None:
    case = a_case(mask=parse_mask(mask), q_len=37, k_len=37, head_dim=24, direction="fwd_bwd")
    inputs = make_inputs(case, device=device)
    tensors = tuple(inputs.tensors[name] for name in ("q", "k", "v", "dout"))
    clean = planned(case, *(_around(x, 0.0) for x in tensors))
    poisoned = planned(case, *(_around(x, POISON) for x in tensors))
    for one, other in zip(
        (clean[0], clean[1], *clean[2]), (poisoned[0], poisoned[1], *poisoned[2]), strict=True
    ):
        assert torch.equal(one, other)


def test_every_element_of_the_results_is_written(
    planned: Any, a_case: Any, device: str, monkeypatch: Any
) -> None:
    case = a_case(
        mask=parse_mask("documents(5, 0, 11)"), q_len=33, k_len=33, direction="fwd_bwd", q_heads=4, kv_heads=2
    )
    inputs = make_inputs(case, device=device)
    real = torch.empty

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        made = real(*shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    out, lse, gradients = planned(case, inputs.q, inputs.k, inputs.v, inputs.dout)
    for tensor in (out, lse, *gradients):
        assert not tensor.isnan().any()


def test_gradients_of_an_expanded_dout_are_right(planned: Any, a_case: Any, device: str) -> None:
    case = a_case(mask=parse_mask("causal"), q_len=20, k_len=20, direction="fwd_bwd")
    inputs = make_inputs(case, device=device)
    expanded = torch.ones(1, device=device).expand(inputs.q.shape)
    one = planned(case, inputs.q, inputs.k, inputs.v, expanded)
    other = planned(case, inputs.q, inputs.k, inputs.v, expanded.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))


def test_strides_of_any_order_give_the_same_bits(planned: Any, a_case: Any, device: str) -> None:
    case = a_case(mask=parse_mask("causal"), q_len=20, k_len=20, direction="fwd_bwd", batch=2)
    inputs = make_inputs(case, device=device)
    tensors = tuple(inputs.tensors[name] for name in ("q", "k", "v", "dout"))
    plain = planned(case, *tensors)
    for order in ((3, 2, 1, 0), (2, 0, 3, 1)):
        back = [order.index(axis) for axis in range(4)]
        moved = planned(
            case, *(x.permute(order).contiguous().permute(back) for x in tensors if x is not None)
        )
        assert torch.equal(plain[0], moved[0])
        assert all(torch.equal(a, b) for a, b in zip(plain[2], moved[2], strict=True))


@pytest.mark.parametrize("axis", ["batch", "heads", "rows"])
def test_offsets_beyond_32_bits_are_right(planned: Any, a_case: Any, device: str, axis: str) -> None:
    case = a_case(mask=parse_mask("causal"), batch=2, q_heads=2, q_len=34, k_len=34, direction="fwd_bwd")
    inputs = make_inputs(case, device=device)
    far = (1 << 31) + 64
    strides = {"batch": (far, 1024, 16, 1), "heads": (1024, far, 16, 1), "rows": (512, 256, 1 << 26, 1)}[axis]
    size = far + 4096 if axis != "rows" else 34 * (1 << 26)
    try:
        # Virtual memory: only the pages that are touched exist.
        storage = torch.empty(size, dtype=torch.float32, device=device)
    except (RuntimeError, MemoryError):
        pytest.skip(f"{size * 4 >> 30} GiB of address space are not to be had")
    k = storage.as_strided(inputs.k.shape, strides)
    k.copy_(inputs.k)
    plain = planned(case, inputs.q, inputs.k, inputs.v, inputs.dout)
    moved = planned(case, inputs.q, k, inputs.v, inputs.dout)
    assert torch.equal(plain[0], moved[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[2], moved[2], strict=True))


def test_more_heads_than_a_grid_axis_takes_are_on_the_axis_that_takes_them(planned: Any, a_case: Any) -> None:
    from attnbench_backends.triton.ahead_of_time import launches

    case = a_case(batch=65_537, q_heads=2, q_len=20, k_len=20, dtype="bf16", direction="fwd_bwd")
    launched = launches(case, (9, 0))
    assert min(launch.programs for launch in launched) >= 2 * 65_537
    assert all(launch.programs < 1 << 31 for launch in launched)


def test_tiles_fetched_by_descriptors_give_what_pointers_give(planned: Any, a_case: Any, device: str) -> None:
    from attnbench_backends.triton.configurations import Configuration

    case = a_case(
        mask=parse_mask("causal & window(20, 0)"), q_len=50, k_len=41, head_dim=16, direction="fwd_bwd"
    )
    inputs = make_inputs(case, device=device)
    tensors = tuple(inputs.tensors[name] for name in ("q", "k", "v", "dout"))
    started: list[Any] = []

    def start(launch: Any) -> None:
        started.append(launch)
        launch.run()

    runs = []
    for descriptors in (False, True):
        tile = Configuration(16, 32, 4, 1, descriptors=descriptors)
        runs.append(planned(case, *tensors, tiles=lambda kernel, tile=tile: tile, start=start))
    assert hasattr(started[-1].arguments[0], "block_shape")
    for one, other in zip((runs[0][0], *runs[0][2]), (runs[1][0], *runs[1][2]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "tile", [(16, 16), (32, 16), (16, 64), (64, 32)], ids=lambda tile: "x".join(map(str, tile))
)
@pytest.mark.parametrize("together", [True, False])
def test_any_tile_gives_the_right_answer(
    planned: Any, a_case: Any, device: str, tile: tuple[int, int], together: bool
) -> None:
    from attnbench_backends.triton.configurations import Configuration

    from attnbench.backend import Gradients

    case = a_case(
        mask=parse_mask("causal & window(30, 0) | global(2)"), q_len=70, k_len=70, direction="fwd_bwd"
    )
    inputs: Inputs = make_inputs(case, device=device)
    configuration = Configuration(*tile, 4, 1, together=together)
    out, lse, (dq, dk, dv) = planned(
        case, inputs.q, inputs.k, inputs.v, inputs.dout, tiles=lambda kernel: configuration
    )
    verdict = judge(make_reference(inputs), Output(out, lse), Gradients(dq, dk, dv), inputs)
    assert verdict.ok, verdict.reason
