"""Every bundled CPU backend gives what float64 attention gives, and refuses what it cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import attnbench as ab
from attnbench.backend import resolve
from attnbench.backend.sources import backends_in, bundled_folder, sources_of
from attnbench.errors import AttnbenchError, CaseError
from attnbench.judge import judge, make_reference
from attnbench.problem import make_inputs, parse_mask, parse_score

TEXTBOOK = ("chunked_heads", "attention_pooling", "local_blocks")
EAGER = ("naive", "per_head", "mask_multiply", *TEXTBOOK, "sdpa_math", "sdpa_flash", "torch_mha")
CASES: list[dict[str, Any]] = [
    {"mask": "full"},
    {"mask": "causal", "q_len": 24, "k_len": 40},
    {"mask": "causal", "q_len": 40, "k_len": 24},
    {"mask": "causal(top_left)", "q_len": 24, "k_len": 40},
    {"mask": "causal & window(5, 0)", "kv_heads": 2},
    {"mask": "padding(9, 0)", "batch": 2},
    {"mask": "documents(4, 3, 5) & causal", "layout": "qkv_packed"},
    {"mask": "prefix(3)", "kv_heads": 1, "layout": "bshd"},
    {"mask": "global(2) | window(2, 2)", "dtype": "bf16"},
    {"mask": "~dilated(3)", "dtype": "fp16"},
    {"mask": "block_sparse([[1,0],[0,1]], 8)", "v_dim": 16},
    {"mask": "full", "scores": "softcap(2.5)"},
    {"mask": "causal", "scores": "alibi", "scale": 0.5},
    {"mask": "full", "scores": "bias(bhqk)", "batch": 2},
    {"mask": "causal", "scores": "bias(k)", "dtype": "bf16"},
    {"mask": "full", "scores": "relative(t5,8,20,bidirectional)", "scale": 1.0},
    {"mask": "full", "scores": "relative(grid,4,4)"},
    {"mask": "padding(9, 0)", "batch": 2, "scores": "sink"},
]


def case_of(a_case: Any, changes: dict[str, Any], **more: Any) -> ab.Case:
    texts: dict[str, Any] = {"q_heads": 4, "direction": "fwd_bwd"} | changes | more
    scores = (parse_score(texts.pop("scores")),) if "scores" in texts else ()
    return a_case(**texts | {"mask": parse_mask(texts["mask"]), "scores": scores})


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize(
    "changes", CASES, ids=lambda c: "-".join(str(v) for v in c.values()).replace(" ", "")
)
def test_an_eager_backend_is_right_or_refuses(a_case: Any, name: str, changes: dict[str, Any]) -> None:
    case = case_of(a_case, changes)
    backend = resolve(name)
    refusal = backend.refuses(case)
    if refusal is not None:
        pytest.skip(refusal.reason)
    inputs = make_inputs(case, seed=5)
    prepared = backend.prepare(case, inputs)
    assert inputs.dout is not None
    output, gradients = prepared.forward(), prepared.backward(inputs.dout)
    verdict = judge(make_reference(inputs, backend.capabilities.contract), output, gradients, inputs)
    assert verdict.ok, verdict.reason


def imports_between(folder: Path) -> list[str]:
    """What backends read of each other: `one reads two.py: f`. Files whose name starts with _ are shared."""
    return [
        f"{name} reads {part}"
        for name, path in backends_in(folder).items()
        for part in sources_of(path, folder)
        if not part.startswith("_") and re.split(r"[./]", part)[0] != name
    ]


def test_no_backend_imports_another(tmp_path: Path) -> None:
    assert imports_between(bundled_folder()) == [], "share it in a file whose name starts with _"
    (tmp_path / "one.py").write_text("from ._shared import f\nfrom .two import g\n")
    (tmp_path / "two.py").write_text("g = 1\n")
    (tmp_path / "_shared.py").write_text("f = 1\n")
    assert imports_between(tmp_path) == ["one reads two.py: g"]


def test_naive_refuses_nothing(a_case: Any) -> None:
    assert [resolve("naive").refuses(case_of(a_case, changes)) for changes in CASES] == [None] * len(CASES)


def test_flex_is_right_under_a_combined_mask_with_score_changes(a_case: Any) -> None:
    backend = resolve("flex")
    case = case_of(
        a_case,
        {"mask": "causal & window(40, 0)", "q_len": 200, "k_len": 300, "kv_heads": 2, "head_dim": 32},
        direction="fwd",
        scores="softcap(20)",
    )
    refusal = backend.refuses(case)
    if refusal is not None:
        pytest.skip(refusal.reason)
    inputs = make_inputs(case)
    output = backend.prepare(case, inputs).forward()
    verdict = judge(make_reference(inputs, backend.capabilities.contract), output, None, inputs)
    assert verdict.ok, verdict.reason


def test_a_pinned_kernel_says_which_operator_ran(a_case: Any) -> None:
    case = a_case()
    kernels = {n: resolve(n).prepare(case, make_inputs(case)).kernel for n in ("sdpa_math", "sdpa_flash")}
    assert "flash" in kernels["sdpa_flash"]
    assert "flash" not in kernels["sdpa_math"]


def test_a_kernel_other_than_the_pinned_one_is_an_error_and_no_result(
    a_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = resolve("sdpa_math")
    from torch.nn.attention import SDPBackend

    monkeypatch.setattr(backend, "kernel", SDPBackend.FLASH_ATTENTION)
    import sys

    monkeypatch.setattr(
        sys.modules[type(backend).__module__],
        "FAMILY",
        {SDPBackend.FLASH_ATTENTION: ("composed operators",)},
    )
    case = a_case()
    with pytest.raises(
        AttnbenchError, match="pinned to FLASH_ATTENTION, but torch ran _scaled_dot_product_flash"
    ):
        backend.prepare(case, make_inputs(case))


def test_gpu_kernels_refuse_a_cpu_by_name(a_case: Any) -> None:
    for name in ("sdpa_efficient", "sdpa_cudnn"):
        refusal = resolve(name).refuses(a_case(), "cpu")
        assert refusal is not None
        assert refusal.reason == "runs on cuda, not on cpu"


def test_a_sum_over_what_attention_gives_has_the_gradients_of_plain_torch() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 8, dtype=torch.float32, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 4, 9, 9, requires_grad=True)
    mask = ab.Causal()
    out = ab.attention(q, k, v, mask=mask, scores=(ab.Bias(bias),), backend="naive")
    grads = torch.autograd.grad(out.square().sum(), (q, k, v, bias))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / 8**0.5 + bias
    causal = torch.arange(9)[:, None] >= torch.arange(9)
    plain = torch.softmax(scores.masked_fill(~causal, -torch.inf), -1) @ v
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(grads, torch.autograd.grad(plain.square().sum(), (q, k, v, bias)))


def test_tensors_that_are_no_attention_problem_are_named() -> None:
    x = torch.zeros(1, 2, 4, 8)
    with pytest.raises(CaseError, match=r"q is \[B, heads, length, dim\]"):
        ab.attention(x[0], x, x)
    with pytest.raises(CaseError, match="convert one of them"):
        ab.attention(x, x.half(), x)
    with pytest.raises(CaseError, match="do not fit together"):
        ab.attention(x, x[..., :4], x)
    with pytest.raises(CaseError, match="describes a tensor"):
        ab.attention(x, x, x, scores=(ab.Bias("hqk"),))
    with pytest.raises(AttnbenchError, match="sdpa_flash refuses this case: has no softcap"):
        ab.attention(x, x, x, scores=(ab.Softcap(3.0),), backend="sdpa_flash")


def test_mask_multiply_needs_no_gradient_of_clamp_at_its_bound(
    a_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 1 up to torch 2.13 and 0 from 2.14 on; each row's largest score lies there."""
    case = a_case(direction="fwd_bwd")
    inputs = make_inputs(case)
    assert inputs.dout is not None

    def clamp_max(x: torch.Tensor, most: float) -> torch.Tensor:
        return torch.where(x < most, x, most)

    monkeypatch.setattr(torch.Tensor, "clamp_max", clamp_max)
    prepared = resolve("mask_multiply").prepare(case, inputs)
    output = prepared.forward()
    verdict = judge(make_reference(inputs, "dense"), output, prepared.backward(inputs.dout), inputs)
    assert verdict.ok, verdict.reason
