"""The calls compute the case: backends on stand-ins of the libraries that compute what is documented.

The stand-ins have the libraries' names, argument names and documented meanings, and compute plainly on the CPU. The
answers are judged like any backend's. This tests layouts, packing, heads, gradients, scale and LSE; the kernels
themselves need a GPU.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attnbench.backend import Backend, environments, resolve
from attnbench.judge import judge, make_reference
from attnbench.problem import ALiBi, Bias, Case, RelativeBias, Sink, Softcap, make_inputs, parse_mask

STAND_INS = Path(__file__).with_name("libraries")
PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "flash_attn": {"flash_attn_2.py": ("flash_attn/__init__.py", "flash_attn/flash_attn_interface.py")},
    "flash_attn_3": {"flash_attn_3.py": ("flash_attn_interface.py",)},
    "flash_attn_4": {"flash_attn_4.py": ("flash_attn/cute/__init__.py",)},
    "flashinfer": {"flashinfer_prefill.py": ("flashinfer/__init__.py", "flashinfer/prefill.py")},
    "xformers": {"xformers_fmha.py": ("xformers/ops/fmha/__init__.py",)},
}
XFORMERS = ("xformers_cutlass", "xformers_flash2", "xformers_flash3")
FLASH = ("flash_attn", "flash_attn_3", "flash_attn_4")


def place_of(name: str) -> str:
    return "xformers" if name in XFORMERS else name


def forget_libraries() -> None:
    tops = ("flash_attn", "flash_attn_interface", "xformers", "flashinfer", "exact_attention")
    for module in [m for m in sys.modules if m.split(".")[0] in tops or m.startswith("attnbench_call_")]:
        del sys.modules[module]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """`stand_in("flash_attn")` makes the library importable here; its folder."""
    monkeypatch.setenv(
        environments.OVERRIDES, ""
    )  # set, not deleted: restored after the test, whatever it sets
    forget_libraries()

    def install(name: str) -> Path:
        shutil.copy(STAND_INS / "exact_attention.py", tmp_path)
        for source, targets in PLACES[name].items():
            for target in targets:
                (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(STAND_INS / source, tmp_path / target)
        for folder in (f for f in tmp_path.rglob("*") if f.is_dir()):
            (folder / "__init__.py").touch()
        if name == "xformers":
            (tmp_path / "xformers/ops/__init__.py").write_text("from xformers.ops import fmha\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    yield install
    forget_libraries()


def problem(**changes: Any) -> Case:
    small: dict[str, Any] = {
        "q_len": 24,
        "k_len": 24,
        "q_heads": 4,
        "head_dim": 8,
        "dtype": "fp32",
        "direction": "fwd_bwd",
    }
    return Case(**(small | changes))


def verdict_of(backend: Backend, case: Case) -> Any:
    inputs = make_inputs(case, seed=3)
    prepared = backend.prepare(case, inputs)
    output = prepared.forward()
    gradients = prepared.backward(inputs.dout) if inputs.dout is not None else None
    # Stand-ins run in float32 inside: the flash contract.
    return judge(make_reference(inputs, "flash", 0), output, gradients, inputs)


MASKS = (
    "full",
    "causal",
    "causal & window(5, 0)",
    "documents(7, 9, 8)",
    "documents([7, 17], [20, 4]) & causal",
)
PROBLEMS = [
    *(problem(mask=parse_mask(mask), batch=2) for mask in MASKS),
    problem(mask=parse_mask("window(4, 3)"), k_len=32),
    problem(mask=parse_mask("padding(24, 11)"), batch=2),
    problem(mask=parse_mask("causal"), q_len=9, k_len=32, batch=2, layout="bshd"),
    problem(mask=parse_mask("causal"), dtype="bf16"),
    problem(scale=0.5),
]


@pytest.mark.parametrize("name", [*FLASH, *XFORMERS])
@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: case.id)
def test_the_call_computes_the_case(stand_in: Any, name: str, case: Case) -> None:
    stand_in(place_of(name))
    backend = resolve(name)
    if name == "xformers_cutlass" and "window" in str(case.mask):
        case = problem(mask=case.mask, k_len=case.k_len, batch=case.batch)
    verdict = verdict_of(backend, case)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize(
    "mask", ["full", "documents(7, 9, 8)", "documents([7, 17], [20, 4])", "padding(24, 11)"]
)
@pytest.mark.parametrize(
    "changes", [{}, {"layout": "bshd", "scale": 0.5}, {"dtype": "bf16", "head_dim": 16, "v_dim": 8}]
)
def test_nested_tensors_are_right_on_this_machine(mask: str, changes: dict[str, Any]) -> None:
    case = problem(mask=parse_mask(mask), batch=2, **changes)
    backend = resolve("torch_nested")
    assert backend.refuses(case) is None
    inputs = make_inputs(case, seed=3)
    prepared = backend.prepare(case, inputs)
    assert inputs.dout is not None
    output, gradients = prepared.forward(), prepared.backward(inputs.dout)
    verdict = judge(make_reference(inputs, "dense", 0), output, gradients, inputs)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("mask", ["causal", "window(3, 3)", "documents(10, 14) & causal"])
def test_nested_tensors_take_no_band(mask: str) -> None:
    refusal = resolve("torch_nested").refuses(problem(mask=parse_mask(mask)))
    assert refusal is not None


FORWARD = [
    *PROBLEMS,
    problem(mask=parse_mask("prefix(5) & padding(24, 11)"), batch=2),
    problem(mask=parse_mask("window(4, 2)"), k_len=32, batch=2, scores=(Softcap(5.0),)),
    problem(mask=parse_mask("documents(7, 17) & causal"), q_heads=6, kv_heads=2),
]


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.id)
def test_flashinfer_is_called_as_it_documents(stand_in: Any, case: Case) -> None:
    stand_in("flashinfer")
    verdict = verdict_of(resolve("flashinfer"), replace(case, direction="fwd", head_dim=64, v_dim=64))
    assert verdict.ok, verdict.reason


def test_flashinfers_interleaved_heads_are_found(stand_in: Any) -> None:
    file = stand_in("flashinfer") / "exact_attention.py"
    text = file.read_text()
    file.write_text(text.replace("x.repeat_interleave(group, dim=1)", "x.repeat(1, group, 1)"))
    case = problem(kv_heads=2, direction="fwd", head_dim=64, mask=parse_mask("causal"))
    assert not verdict_of(resolve("flashinfer"), case).ok


def test_flashinfer_refuses_head_dims_heads_masks_and_directions_that_it_has_not(stand_in: Any) -> None:
    stand_in("flashinfer")
    backend = resolve("flashinfer")
    half = {"head_dim": 64, "dtype": "bf16", "direction": "fwd"}
    assert backend.refuses(problem(**half), "cuda") is None
    for changes, words in (
        ({"head_dim": 192}, "takes head dims 64, 128, 256, not 192"),
        ({"direction": "fwd_bwd"}, "has no backward"),
        ({"mask": parse_mask("block_sparse([[[1]], [[0]], [[1]], [[1]]], 24)")}, "the same for all heads"),
    ):
        refusal = backend.refuses(problem(**(half | changes)), "cuda")
        assert refusal is not None
        assert words in refusal.reason or "gives undefined" in refusal.reason


GROUPED = [
    problem(kv_heads=2, batch=2, direction="fwd", mask=parse_mask("causal")),
    problem(kv_heads=1, batch=2, direction="fwd", mask=parse_mask("documents(10, 14)")),
    problem(q_heads=6, kv_heads=2, direction="fwd", mask=parse_mask("padding(9)")),
]


@pytest.mark.parametrize("name", [*FLASH, *XFORMERS])
@pytest.mark.parametrize("case", GROUPED, ids=lambda case: case.id)
def test_query_heads_read_the_key_head_of_their_group(stand_in: Any, name: str, case: Case) -> None:
    stand_in(place_of(name))
    verdict = verdict_of(resolve(name), case)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("name", [*FLASH, *XFORMERS])
def test_interleaved_heads_are_found(stand_in: Any, name: str) -> None:
    """Planted: query head h reads key head h % Hkv, not h // group."""
    folder = stand_in(place_of(name))
    file = folder / ("xformers/ops/fmha/__init__.py" if name in XFORMERS else "exact_attention.py")
    text = file.read_text()
    if name in XFORMERS:
        broken = text.replace(
            "x.flatten(2, 3) if x.ndim == 5 else x for x in (query, key, value)",
            "x.flatten(2, 3) if x.ndim == 5 else x for x in (query, key.transpose(2, 3), value.transpose(2, 3))",
        )
    else:
        broken = text.replace("x.repeat_interleave(group, dim=1)", "x.repeat(1, group, 1)")
    assert broken != text
    file.write_text(broken)
    assert not verdict_of(resolve(name), GROUPED[0]).ok


@pytest.mark.parametrize(
    ("name", "deterministic"), [("flash_attn", False), ("flash_attn_deterministic", True)]
)
@pytest.mark.parametrize("mask", ["causal", "documents(10, 14)"])
def test_only_the_deterministic_backend_asks_for_the_slower_backward(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch, name: str, deterministic: bool, mask: str
) -> None:
    stand_in("flash_attn")
    import flash_attn  # type: ignore[import-not-found]

    flags: list[bool] = []
    for function in ("flash_attn_func", "flash_attn_varlen_func"):
        whole = getattr(flash_attn, function)

        def noted(*tensors: Any, whole: Any = whole, **options: Any) -> Any:
            flags.append(options.get("deterministic", False))
            return whole(*tensors, **options)

        monkeypatch.setattr(flash_attn, function, noted)
    backend = resolve(name)
    verdict = verdict_of(backend, problem(mask=parse_mask(mask)))
    assert verdict.ok, verdict.reason
    assert set(flags) == {deterministic}
    assert ("bitwise_repeatable_backward" in backend.capabilities.claims) is deterministic


@pytest.mark.parametrize("name", FLASH)
def test_grouped_heads_have_gradients(stand_in: Any, name: str) -> None:
    stand_in(name)
    verdict = verdict_of(resolve(name), problem(kv_heads=2, batch=2, mask=parse_mask("causal")))
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("name", XFORMERS)
def test_grouped_backward_is_refused_by_xformers(stand_in: Any, name: str) -> None:
    stand_in("xformers")
    refusal = resolve(name).refuses(problem(kv_heads=2, head_dim=64, dtype="bf16"), "cuda")
    assert refusal is not None
    assert "grouped" in refusal.reason


@pytest.mark.parametrize("case", PROBLEMS + GROUPED, ids=lambda case: case.id)
def test_torchs_varlen_is_called_as_it_documents(
    stand_in: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.nn.attention.varlen: "(-1, -1) for full attention, (-1, 0) for causal", or (left, right)."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    stand_in("flash_attn")
    from exact_attention import packed  # type: ignore[import-not-found]

    def varlen_attn(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        return_aux: Any = None, scale: Any = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert max_q >= cu_seq_q.diff().max()
        return packed(query, key, value, cu_seq_q, cu_seq_k, scale, False, window_size)[0]

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    verdict = verdict_of(resolve("torch_varlen"), case)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("name", FLASH)
def test_tokens_of_no_document_and_rows_without_a_key_give_zero(stand_in: Any, name: str) -> None:
    stand_in(name)
    for text, batch in (("documents(7, 9)", 2), ("padding(0, 5)", 2), ("causal", 1)):
        case = problem(mask=parse_mask(text), batch=batch, k_len=24 if batch == 2 else 8)
        verdict = verdict_of(resolve(name), case)
        assert verdict.ok, f"{text}: {verdict.reason}"


@pytest.mark.parametrize(
    ("name", "score"),
    [("flash_attn", ALiBi()), *((name, Softcap(5.0)) for name in FLASH), ("flash_attn_4", Sink())]
    + [
        ("xformers_cutlass", s)
        for s in (ALiBi(), Bias("hqk"), Bias("bhqk"), RelativeBias("t5(8,16,bidirectional)"))
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_score_changes_and_their_gradients(stand_in: Any, name: str, score: Any, mask: str) -> None:
    stand_in(place_of(name))
    verdict = verdict_of(resolve(name), problem(mask=parse_mask(mask), scores=(score,), batch=2))
    assert verdict.ok, verdict.reason


def test_the_lse_is_the_natural_logarithm_of_the_sum(stand_in: Any) -> None:
    stand_in("flash_attn")
    for mask in ("causal", "documents(10, 6)"):
        case = problem(mask=parse_mask(mask), batch=2)
        inputs = make_inputs(case)
        lse = resolve("flash_attn").prepare(case, inputs).forward().lse
        assert lse is not None
        allowed = case.mask.materialize(2, 4, 24, 24)
        scores = (inputs.q @ inputs.k.transpose(-1, -2) * case.softmax_scale).masked_fill(
            ~allowed, -torch.inf
        )
        torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_new_numbers_in_the_same_storage_are_seen_by_a_packed_call(stand_in: Any) -> None:
    stand_in("flash_attn")
    case = problem(mask=parse_mask("documents(10, 6)"), batch=2)
    inputs = make_inputs(case)
    prepared = resolve("flash_attn").prepare(case, inputs)
    before = prepared.forward().out.clone()
    inputs.v.mul_(2.0)
    torch.testing.assert_close(prepared.forward().out, before * 2)


@pytest.mark.parametrize("name", ["flash_attn", "flash_attn_4", "xformers_flash2"])
def test_the_same_library_answers_from_another_interpreter(
    stand_in: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stand_in(place_of(name))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    environments.use_python(f"{place_of(name)}={sys.executable}")
    case = problem(mask=parse_mask("documents(10, 6, 8) & causal"), batch=2, dtype="bf16")
    backend = resolve(name)
    try:
        verdict = verdict_of(backend, case)
        assert verdict.ok, verdict.reason
        inputs = make_inputs(case)
        prepared = backend.prepare(case, inputs)
        samples, last, *_ = prepared.call("bwd", inputs.dout).timed(3, 1)  # type: ignore[attr-defined]
        assert len(samples) == 3
        torch.testing.assert_close(last.dv, prepared.backward(inputs.dout).dv, rtol=0, atol=0)  # type: ignore[arg-type]
    finally:
        monkeypatch.delenv(environments.OVERRIDES)
        for process in backend._processes.values():  # type: ignore[attr-defined]
            process.stop()
        backend._processes.clear()  # type: ignore[attr-defined]
