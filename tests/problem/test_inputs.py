"""A case's numbers are the same on every run and in every layout, and stored as the case describes."""

from __future__ import annotations

import pytest
import torch

from attnbench.errors import CaseError
from attnbench.problem import Bias, RelativeBias, Sink, Softcap, make_inputs
from attnbench.problem.distributions import DISTRIBUTIONS


def test_the_same_case_and_seed_give_the_same_bits(a_case) -> None:
    case = a_case(dtype="bf16", direction="fwd_bwd", scores=(Bias("bhqk"), Sink()))
    assert make_inputs(case, 3).checksum() == make_inputs(case, 3).checksum()
    assert make_inputs(case, 3).checksum() != make_inputs(case, 4).checksum()


def test_a_tensor_changed_in_place_changes_the_checksum(a_case) -> None:
    for name in ("q", "k", "v", "dout", "bias"):
        inputs = make_inputs(a_case(direction="fwd_bwd", scores=(Bias("k"),)))
        before = inputs.checksum()
        inputs.tensors[name].flatten()[-1:].view(torch.int32).bitwise_xor_(1)
        assert inputs.checksum() != before, name


@pytest.mark.parametrize("layout", ["bhsd", "bshd", "qkv_packed"])
def test_a_layout_changes_strides_and_no_number(a_case, layout: str) -> None:
    changes = {"q_heads": 4, "kv_heads": 2, "v_dim": 4, "batch": 2}
    plain, strided = make_inputs(a_case(**changes)), make_inputs(a_case(**changes, layout=layout))
    for name in ("q", "k", "v"):
        assert torch.equal(plain.tensors[name], strided.tensors[name])
    stride = {"bhsd": 8, "bshd": 4 * 8, "qkv_packed": 4 * 8 + 2 * 8 + 2 * 4}[layout]
    assert strided.q.stride()[2:] == (stride, 1)
    assert strided.fresh().q.stride() == strided.q.stride()
    assert strided.fresh().q.data_ptr() != strided.q.data_ptr()
    if layout == "qkv_packed":
        assert strided.q.untyped_storage().data_ptr() == strided.v.untyped_storage().data_ptr()


def test_score_tensors_have_their_described_shape_and_the_cases_dtype(a_case) -> None:
    case = a_case(
        dtype="bf16", batch=2, scores=(Bias("bk"), RelativeBias("t5(8,20,causal)"), Sink(100.0), Softcap(3.0))
    )
    softcap, bias, relative, sink = make_inputs(case).scores
    assert softcap.tensor is None
    assert bias.tensor is not None
    assert relative.tensor is not None
    assert sink.tensor is not None
    assert (bias.tensor.shape, relative.tensor.shape, sink.tensor.shape) == ((2, 1, 1, 16), (2, 8), (2,))
    assert bias.tensor.dtype == relative.tensor.dtype == sink.tensor.dtype == torch.bfloat16
    assert sink.tensor.tolist() == [100.0, 100.0]


def test_no_backward_no_upstream_gradient(a_case) -> None:
    assert make_inputs(a_case()).dout is None
    assert make_inputs(a_case(direction="fwd_bwd")).tensors["dout"].shape == (1, 2, 16, 8)


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_distribution_is_finite_in_every_dtype(a_case, name: str, dtype: str) -> None:
    inputs = make_inputs(a_case(dtype=dtype, direction="fwd_bwd", q_len=33, k_len=40), distribution=name)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in inputs.tensors.values())


def test_an_unknown_distribution_is_refused_with_the_nearest(a_case) -> None:
    with pytest.raises(CaseError, match="did you mean 'randn'"):
        make_inputs(a_case(), distribution="randm")
