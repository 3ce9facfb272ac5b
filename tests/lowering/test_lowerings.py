"""Is what a library is passed the mask that was asked for? Read back by what the library documents, without it.

Each reading below is written from the library's documentation (named in its docstring) and knows nothing of our
lowerings: it takes the request as it is handed to the library's call, pair by pair, and gives a dense mask. Backends
that run on this CPU (naive, per_head, torch_mha, flex, triton, ...) are judged on their answers by the conformance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attnbench_backends import _lowering_flash as flash
from attnbench_backends import _lowering_flashinfer as flashinfer
from attnbench_backends import _lowering_jax as jax
from attnbench_backends import _lowering_xformers as xformers
from attnbench_backends.torch_nested import request as nested_request
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.problem import ALiBi, Case, Causal, Mask, parse_mask

Request = tuple[dict[str, Any], dict[str, Any]]


def flash_band(i: int, j: int, queries: int, keys: int, causal: bool, left: int, right: int) -> bool:
    """flash_attn_interface.py, flash_attn_func: "causal mask is aligned to the bottom right corner"; "Query at
    position i will only attend to keys between [i + seqlen_k - seqlen_q - window_size[0],
    i + seqlen_k - seqlen_q + window_size[1]] inclusive"; "-1 means infinite context window" (None in flash_attn.cute).
    """
    place = i + keys - queries
    if causal and j > place:
        return False
    if left not in (-1, None) and j < place - left:
        return False
    return right in (-1, None) or j <= place + right


def read_flash(case: Case, request: Request) -> np.ndarray:
    """Sequence n is rows cu_seqlens[n] to cu_seqlens[n + 1] of the packed tensors (flash_attn_varlen_func)."""
    task, arrays = request
    left, right = task["window_size"]
    tokens = np.zeros((case.batch * case.q_len, case.batch * case.k_len), bool)
    if "cu_seqlens_q" in arrays:
        q_rows = arrays["q_tokens"][1] if "q_tokens" in arrays else np.arange(case.batch * case.q_len)
        k_rows = arrays["k_tokens"][1] if "k_tokens" in arrays else np.arange(case.batch * case.k_len)
        cu_q, cu_k = arrays["cu_seqlens_q"][1], arrays["cu_seqlens_k"][1]
        assert len(cu_q) == len(cu_k)
        assert (cu_q[-1], cu_k[-1]) == (len(q_rows), len(k_rows))
        assert task["max_seqlens"][0] >= np.diff(cu_q).max(initial=0)
        assert task["max_seqlens"][1] >= np.diff(cu_k).max(initial=0)
        sequences = [
            (q_rows[cu_q[n] : cu_q[n + 1]], k_rows[cu_k[n] : cu_k[n + 1]]) for n in range(len(cu_q) - 1)
        ]
    else:
        sequences = [
            (np.arange(b * case.q_len, (b + 1) * case.q_len), np.arange(b * case.k_len, (b + 1) * case.k_len))
            for b in range(case.batch)
        ]
    for queries, keys in sequences:
        for i, row in enumerate(queries):
            for j, column in enumerate(keys):
                tokens[row, column] = flash_band(i, j, len(queries), len(keys), task["causal"], left, right)
    return of_tokens(case, tokens)


def flash2_window(task: dict[str, Any], longest_k: int) -> tuple[int, int]:
    """csrc/flash_attn/flash_api.cpp of FlashAttention-2: what becomes of a window before a kernel sees it."""
    left, right = task["window_size"]
    if left >= longest_k:
        left = -1
    if right >= longest_k:
        right = -1
    if task["causal"]:
        right = 0
    if left < 0 and right >= 0:
        left = longest_k
    if left >= 0 and right < 0:
        right = longest_k
    return left, right


def read_flash_2(case: Case, request: Request) -> np.ndarray:
    """As documented, and also as its source has it."""
    task, arrays = request
    longest = task["max_seqlens"][1] if "max_seqlens" in task else case.k_len
    window = flash2_window(task, longest)
    documented = read_flash(case, request)
    # A window of (longest, 0) without a left one given is the causal mask.
    as_run = read_flash(case, ({**task, "causal": False, "window_size": window}, arrays))
    np.testing.assert_array_equal(documented, as_run, err_msg=f"documented, against {window} as run")
    return documented


def read_xformers_2(case: Case, request: Request) -> np.ndarray:
    """xFormers' flash operator hands the window of LocalAttentionFromBottomRight to the same source."""
    task, arrays = request
    if "window_right" in task["numbers"]:
        numbers = task["numbers"]
        ends = {"window_size": (numbers["window_left"], numbers["window_right"]), "causal": False}
        return read_flash_2(case, (ends, arrays))
    return read_xformers(case, request)


def of_tokens(case: Case, tokens: np.ndarray) -> np.ndarray:
    """[B * Q, B * K] as [B, H, Q, K]; nothing may attend another batch row."""
    blocks = tokens.reshape(case.batch, case.q_len, case.batch, case.k_len)
    for b in range(case.batch):
        assert not np.delete(blocks[b], b, axis=1).any(), "a query attends keys of another batch row"
    own = np.stack([blocks[b, :, b] for b in range(case.batch)])[:, None]
    return np.broadcast_to(own, (case.batch, case.q_heads, case.q_len, case.k_len))


def xformers_pair(name: str, i: int, j: int, queries: int, keys: int, numbers: dict[str, Any]) -> bool:
    """fmha/attn_bias.py, class by class. FromBottomRight: "the last query can attend to the last key";
    LocalAttentionFromBottomRight: "q - window_left <= k + s <= q + window_right with s = num_queries - num_keys";
    causal local ones forbid a distance "greater than or equal to X + window_size".
    """
    from_end = "FromBottomRight" in name or "WithOffset" in name or "Padded" in name
    place = i + keys - queries if from_end else i
    if "window" in numbers:
        return place - numbers["window"] < j <= place
    if "window_left" in numbers:
        return place - numbers["window_left"] <= j <= place + numbers["window_right"]
    causal = "Causal" in name or "LowerTriangular" in name
    return j <= place if causal else True


def read_xformers(case: Case, request: Request) -> np.ndarray:
    """Block n of a BlockDiagonal mask: q_lengths[n] queries and k_lengths[n] keys, one after another; in a Padded one
    the keys of block n start at n * kv_padding.
    """
    task, arrays = request
    name, numbers = task["bias"], task["numbers"]
    shape = (case.batch, case.q_heads, case.q_len, case.k_len)
    if name in ("", "Tensor"):
        # A dense bias is -inf where the mask array is False, and applies to every pair of the tensor.
        return np.broadcast_to(arrays["mask"][1], shape) if "mask" in arrays else np.ones(shape, bool)
    if "q_lengths" not in numbers:
        table = [
            [xformers_pair(name, i, j, case.q_len, case.k_len, numbers) for j in range(case.k_len)]
            for i in range(case.q_len)
        ]
        return np.broadcast_to(np.array(table), shape)
    q_rows = arrays["q_tokens"][1] if "q_tokens" in arrays else np.arange(case.batch * case.q_len)
    k_rows = arrays["k_tokens"][1] if "k_tokens" in arrays else np.arange(case.batch * case.k_len)
    tokens = np.zeros((case.batch * case.q_len, case.batch * case.k_len), bool)
    q_start = k_start = 0
    for n, (queries, keys) in enumerate(zip(numbers["q_lengths"], numbers["k_lengths"], strict=True)):
        first = n * numbers["kv_padding"] if "Padded" in name else k_start
        for i in range(queries):
            for j in range(keys):
                pair = xformers_pair(name, i, j, queries, keys, numbers)
                tokens[q_rows[q_start + i], k_rows[first + j]] = pair
        q_start, k_start = q_start + queries, k_start + keys
    return of_tokens(case, tokens)


def read_jax(case: Case, request: Request) -> np.ndarray:
    """jax.nn.dot_product_attention: `mask` True "should take part"; `is_causal` a lower triangle of [T, S] from its
    first corner; "if local_window_size == (3, 2) ... token c can attend to [3, 4, 5, c, 7, 8]";
    key_value_seq_lengths keeps the first keys. All of them together.
    """
    task, arrays = request
    seen = np.zeros((case.batch, case.q_heads, case.q_len, case.k_len), bool)
    matrix = np.broadcast_to(arrays["mask"][1], seen.shape) if "mask" in arrays else None
    for b, h, i, j in np.ndindex(seen.shape):
        allowed = matrix is None or bool(matrix[b, h, i, j])
        if task["is_causal"]:
            allowed = allowed and j <= i
        if task["local_window_size"] is not None:
            left, right = task["local_window_size"]
            assert min(left, right) >= 0
            allowed = allowed and i - left <= j <= i + right
        if "key_lengths" in arrays:
            allowed = allowed and j < arrays["key_lengths"][1][b]
        seen[b, h, i, j] = allowed
    return seen


def read_flashinfer(case: Case, request: Request) -> np.ndarray:
    """BatchPrefillWithRaggedKVCacheWrapper.plan: sequence n is rows indptr[n] to indptr[n + 1]; "causal: whether to
    apply causal mask ... ignored if mask is provided"; "window_left: the left (inclusive) window size", -1 unlimited;
    "custom_mask: the flattened boolean mask tensor, shape sum(q_len[i] * k_len[i])", False masked out. In its source
    (attention/variants.cuh) query i of a sequence stands at i + kv_len - qo_len.
    """
    task, arrays = request
    q_rows = arrays["q_tokens"][1] if "q_tokens" in arrays else np.arange(case.batch * case.q_len)
    k_rows = arrays["k_tokens"][1] if "k_tokens" in arrays else np.arange(case.batch * case.k_len)
    cu_q, cu_k = arrays["cu_seqlens_q"][1], arrays["cu_seqlens_k"][1]
    assert (len(cu_q), cu_q[-1], cu_k[-1]) == (len(cu_k), len(q_rows), len(k_rows))
    tokens = np.zeros((case.batch * case.q_len, case.batch * case.k_len), bool)
    bit = 0
    for n in range(len(cu_q) - 1):
        queries, keys = q_rows[cu_q[n] : cu_q[n + 1]], k_rows[cu_k[n] : cu_k[n + 1]]
        for i, row in enumerate(queries):
            for j, column in enumerate(keys):
                place = i + len(keys) - len(queries)
                allowed = task["window_left"] == -1 or j >= place - task["window_left"]
                if "custom_mask" in arrays:
                    allowed = allowed and bool(arrays["custom_mask"][1][bit])
                    bit += 1
                elif task["causal"]:
                    allowed = allowed and j <= place
                tokens[row, column] = allowed
    assert "custom_mask" not in arrays or bit == len(arrays["custom_mask"][1])
    return of_tokens(case, tokens)


Lower = Callable[[Case], Request]
Read = Callable[[Case, Request], np.ndarray]

BACKENDS: dict[str, tuple[Lower, Read]] = {
    "flash_attn": (lambda c: flash.task_of(c, flash.lowered(c, second=True), "flash_attn"), read_flash_2),
    "flash_attn_3": (lambda c: flash.task_of(c, flash.lowered(c), "flash_attn_3"), read_flash),
    "flash_attn_4": (
        lambda c: flash.task_of(c, flash.lowered(c, unlimited=None), "flash_attn_4"),
        read_flash,
    ),
    "torch_varlen": (lambda c: flash.task_of(c, flash.lowered_varlen(c), "torch_varlen"), read_flash_2),
    "torch_nested": (nested_request, read_flash),
    "xformers_cutlass": (
        lambda c: xformers.task_of(c, xformers.lowered(c, "cutlass"), "cutlass"),
        read_xformers,
    ),
    "xformers_flash2": (
        lambda c: xformers.task_of(c, xformers.lowered(c, "flash"), "flash"),
        read_xformers_2,
    ),
    "xformers_flash3": (
        lambda c: xformers.task_of(c, xformers.lowered(c, "flash3"), "flash3"),
        read_xformers,
    ),
    "jax_xla": (lambda c: jax.task_of(c, jax.lowered_xla(c), "jax", "xla"), read_jax),
    "jax_cudnn": (lambda c: jax.task_of(c, jax.lowered_cudnn(c), "jax", "cudnn"), read_jax),
    "flax_mha": (lambda c: jax.task_of(c, jax.lowered_flax(c), "flax", "xla"), read_jax),
    "flashinfer": (flashinfer.lowered, read_flashinfer),
}
NESTED = frozenset({"torch_nested"})  # whole sequences only
ALL = frozenset(BACKENDS) - NESTED
FLASH = frozenset({"flash_attn", "flash_attn_3", "flash_attn_4", "torch_varlen"})
FLASH_2 = frozenset({"flash_attn", "torch_varlen", "xformers_flash2"})
XFORMERS = frozenset({"xformers_cutlass", "xformers_flash2", "xformers_flash3"})
MATRIX = frozenset(
    {"jax_xla", "flax_mha", "xformers_cutlass", "jax_cudnn", "flashinfer"}
)  # forward; jax_cudnn has no backward of one

# (mask, q_len, k_len, batch) -> who takes it forward, by hand.
CASES: dict[tuple[str, int, int, int], frozenset[str]] = {
    ("full", 8, 8, 2): ALL | NESTED,
    ("causal", 8, 8, 1): ALL,
    ("causal", 5, 8, 1): ALL,
    ("causal", 8, 5, 1): ALL,
    ("causal(top_left)", 5, 8, 1): MATRIX,
    ("causal(top_left)", 8, 5, 1): ALL,
    ("causal(top_left)", 20, 8, 1): ALL - FLASH_2,
    ("window(2, inf)", 20, 8, 1): ALL - FLASH_2,
    ("window(2, 30)", 20, 8, 1): ALL - FLASH_2,
    ("window(3, 2)", 8, 8, 1): ALL - {"jax_cudnn"},
    ("window(3, 2)", 5, 8, 1): ALL,
    ("window(2, inf)", 8, 8, 1): ALL - {"jax_cudnn"},
    ("causal & window(3, 0)", 8, 8, 1): ALL,
    ("causal & window(3, 5)", 5, 8, 1): ALL,
    ("padding(5, 8, 2)", 8, 8, 3): ALL | NESTED,
    ("causal & padding(8, 8)", 8, 8, 2): ALL,
    ("causal & padding(5, 8)", 8, 8, 2): MATRIX,
    ("causal & padding(6, 6)", 4, 8, 2): ALL - {"xformers_flash2"},
    ("padding(5, 8, left)", 8, 8, 2): MATRIX,
    ("documents(3, 2, 3)", 8, 8, 2): ALL | NESTED,
    ("documents([3, 5], [6, 2])", 8, 8, 2): ALL | NESTED,
    ("documents(3, 2)", 8, 8, 2): ALL | NESTED,
    ("documents(3, 2, 3) & causal", 8, 8, 1): ALL,
    ("documents(4, 4) & causal & window(2, 0)", 8, 8, 1): ALL,
    ("documents(3, 5) & padding(7, 8)", 8, 8, 2): ALL | NESTED,
    ("prefix(3)", 8, 8, 1): MATRIX,
    ("global(2) | window(1, 1)", 8, 8, 1): MATRIX,
    ("block_sparse([[1, 0], [1, 1]], 4)", 8, 8, 1): MATRIX,
    ("dilated(2) & causal", 8, 8, 1): MATRIX,
    ("~causal", 8, 8, 1): MATRIX,
}


def problem(mask: str | Mask, q_len: int, k_len: int, batch: int, **changes: Any) -> Case:
    whole = parse_mask(mask) if isinstance(mask, str) else mask
    small: dict[str, Any] = {"q_heads": 2, "head_dim": 8, "dtype": "bf16"}
    return Case(**(small | {"q_len": q_len, "k_len": k_len, "batch": batch, "mask": whole} | changes))


def wanted(case: Case) -> np.ndarray:
    whole = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len).numpy()
    return np.broadcast_to(whole, (case.batch, case.q_heads, case.q_len, case.k_len))


def taken(name: str) -> Iterator[tuple[Case, Request]]:
    for (mask, q_len, k_len, batch), takers in CASES.items():
        if name in takers:
            case = problem(mask, q_len, k_len, batch)
            yield case, BACKENDS[name][0](case)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("asked", CASES, ids=str)
def test_what_the_library_is_passed_is_the_mask(name: str, asked: tuple[str, int, int, int]) -> None:
    lower, read = BACKENDS[name]
    case = problem(*asked)
    if name not in CASES[asked]:
        with pytest.raises(NotImplementedError):
            lower(case)
        return
    np.testing.assert_array_equal(read(case, lower(case)), wanted(case))


@pytest.mark.parametrize("name", BACKENDS)
def test_the_backward_is_passed_the_same_mask_or_refused(name: str) -> None:
    lower, read = BACKENDS[name]
    took = 0
    for asked in CASES:
        case = problem(*asked, direction="fwd_bwd")
        try:
            request = lower(case)
        except NotImplementedError:
            continue
        took += 1
        np.testing.assert_array_equal(read(case, request), wanted(case))
    assert took >= (5 if name in NESTED else 6)


def leaves(batch: int, q_len: int, k_len: int) -> st.SearchStrategy[str]:
    few = st.integers(0, 9)
    lengths = st.lists(st.integers(0, k_len), min_size=batch, max_size=batch)
    found = [
        st.sampled_from(["full", "causal", "causal(top_left)", "dilated(2)"]),
        st.builds("window({}, {})".format, few, st.one_of(few, st.just("inf"))),
        st.builds("window(inf, {})".format, few),
        lengths.map(lambda n: f"padding({', '.join(map(str, n))})"),
        st.builds("prefix({})".format, few),
    ]
    if q_len == k_len:
        cuts = st.lists(st.integers(0, q_len), max_size=3).map(sorted)
        found.append(
            cuts.map(lambda c: f"documents({', '.join(map(str, np.diff([0, *c]) if c else [q_len]))})")
        )
    return st.one_of(found)


@st.composite
def problems(draw: st.DrawFn) -> Case:
    batch, q_len = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    k_len = draw(st.one_of(st.just(q_len), st.integers(1, 9)))
    leaf = leaves(batch, q_len, k_len)
    text = draw(leaf)
    for _ in range(draw(st.integers(0, 2))):
        # "and" most often: what is not a conjunction is dense for every library.
        text = (
            f"{text} {draw(st.sampled_from('&&&|'))} {draw(st.sampled_from(['', '', '', '~']))}{draw(leaf)}"
        )
    direction = draw(st.sampled_from(["fwd", "fwd_bwd"]))
    return problem(text, q_len, k_len, batch, direction=direction)


@pytest.mark.parametrize("name", BACKENDS)
@settings(deadline=None, max_examples=150)
@given(case=problems())
def test_any_mask_of_the_algebra_is_passed_as_it_is_or_refused(name: str, case: Case) -> None:
    lower, read = BACKENDS[name]
    try:
        request = lower(case)
    except NotImplementedError:
        return
    np.testing.assert_array_equal(read(case, request), wanted(case), err_msg=f"{case.mask}: {request}")


# Planted errors: each changes a request where it can, and gives None where there is nothing to change.


def _with_arrays(request: Request, **arrays: Any) -> Request:
    return request[0], request[1] | arrays


def _plus(values: tuple[Any, ...], place: int, by: int) -> tuple[Any, ...]:
    return tuple(v + by if n == place and v not in (-1, None) else v for n, v in enumerate(values))


def longer_window(case: Case, request: Request, lower: Lower, by: int = 1) -> Request | None:
    task = request[0]
    if task.get("window_left", -1) > 0:
        return {**task, "window_left": task["window_left"] + by}, request[1]
    for name in ("window_size", "local_window_size"):
        if task.get(name) and any(v not in (-1, None, 0) for v in task[name]):
            return {**task, name: _plus(task[name], 0, by)}, request[1]
    numbers = task.get("numbers", {})
    key = next((k for k in ("window", "window_left") if k in numbers and numbers[k] > 1), None)
    return None if key is None else ({**task, "numbers": numbers | {key: numbers[key] + by}}, request[1])


def shorter_window(case: Case, request: Request, lower: Lower) -> Request | None:
    return longer_window(case, request, lower, -1)


def swapped_alignment(case: Case, request: Request, lower: Lower) -> Request | None:
    if case.mask not in (Causal(), Causal("top_left")) or case.q_len == case.k_len:
        return None
    other = Causal("top_left") if case.mask == Causal() else Causal()
    try:
        return lower(replace(case, mask=other))
    except NotImplementedError:
        return None


def shifted_cu_seqlens(case: Case, request: Request, lower: Lower) -> Request | None:
    task, arrays = request
    if "cu_seqlens_k" not in arrays or len(arrays["cu_seqlens_k"][1]) < 3:
        return None
    dtype, values = arrays["cu_seqlens_k"]
    moved = values.copy()
    moved[1:-1] = np.minimum(moved[1:-1] + 1, moved[-1])
    if "numbers" in task:
        numbers = task["numbers"]
        lengths = tuple(int(n) for n in np.diff(moved))
        task = task | {"numbers": numbers | {"k_lengths": lengths}}
    else:
        task = task | {"max_seqlens": (case.q_len, case.k_len)}
    return task, arrays | {"cu_seqlens_k": (dtype, moved)}


def inverted(case: Case, request: Request, lower: Lower) -> Request | None:
    if "custom_mask" in request[1]:
        return _with_arrays(request, custom_mask=("bool", ~request[1]["custom_mask"][1]))
    if "mask" not in request[1]:
        return None
    return _with_arrays(request, mask=("bool", ~request[1]["mask"][1]))


def causal_dropped(case: Case, request: Request, lower: Lower) -> Request | None:
    task, arrays = request
    for name in ("causal", "is_causal"):
        if task.get(name):
            return {**task, name: False}, arrays
    if task.get("bias") == "LowerTriangularMask":
        return {**task, "bias": "", "numbers": {}}, arrays
    return None


def lengths_of_row_0(case: Case, request: Request, lower: Lower) -> Request | None:
    if "key_lengths" not in request[1] or case.batch == 1:
        return None
    dtype, lengths = request[1]["key_lengths"]
    return _with_arrays(request, key_lengths=(dtype, np.full_like(lengths, lengths[0])))


def transposed(case: Case, request: Request, lower: Lower) -> Request | None:
    if "custom_mask" in request[1]:
        square = request[1]["custom_mask"][1].reshape(case.batch, case.q_len, case.k_len)
        return _with_arrays(request, custom_mask=("bool", square.swapaxes(1, 2).reshape(-1)))
    if "mask" not in request[1] or case.q_len != case.k_len:
        return None
    return _with_arrays(request, mask=("bool", request[1]["mask"][1].swapaxes(-1, -2)))


PLANTED: dict[Callable[[Case, Request, Lower], Request | None], frozenset[str]] = {
    longer_window: ALL - {"flax_mha"},
    shorter_window: ALL - {"flax_mha"},
    swapped_alignment: ALL,
    shifted_cu_seqlens: FLASH | XFORMERS | NESTED | {"flashinfer"},
    inverted: MATRIX,
    transposed: MATRIX,
    causal_dropped: ALL - {"flax_mha"},
    lengths_of_row_0: frozenset({"jax_xla", "jax_cudnn"}),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_error_is_found(name: str, plant: Any) -> None:
    lower, read = BACKENDS[name]
    changed, found = 0, 0
    for case, request in taken(name):
        wrong = plant(case, request, lower)
        if wrong is None:
            continue
        changed += 1
        try:
            found += not np.array_equal(read(case, wrong), wanted(case))
        except AssertionError:
            found += 1  # the request does not even hold together
    if name not in PLANTED[plant]:
        assert changed == 0, "it can be planted here: name the backend above"
        return
    assert changed > 0, "there is no mask that this could be planted in"
    assert found > 0


def test_alibi_is_refused_where_the_library_would_count_from_another_key() -> None:
    lower = BACKENDS["flash_attn"][0]
    assert "alibi_slopes" in lower(problem("causal", 5, 8, 1, scores=(ALiBi(),)))[1]
    assert "alibi_slopes" in lower(problem("documents(3, 5)", 8, 8, 1, scores=(ALiBi(),)))[1]
    with pytest.raises(NotImplementedError, match="ALiBi"):
        lower(problem("padding(5, 8)", 8, 8, 2, scores=(ALiBi(),)))


def test_no_class_is_chosen_that_the_operator_does_not_take() -> None:
    for operator, (forward, both) in xformers.OPERATORS.items():
        for asked in CASES:
            for direction, takes in (("fwd", forward), ("fwd_bwd", both)):
                try:
                    call = xformers.lowered(problem(*asked, direction=direction), operator)
                except NotImplementedError:
                    continue
                assert call.bias in takes


def test_xformers_own_classes_say_the_same() -> None:
    """The library's own CPU code materialises its biases: where it is installed, it is the independent reading."""
    pytest.importorskip("xformers.ops", reason="xformers is not installed here")
    import torch
    from attnbench_backends._call_xformers import bias_of

    compared = 0
    for name in sorted(XFORMERS):
        for case, (task, arrays) in taken(name):
            if task["bias"] in ("", "Tensor"):
                continue
            bias = bias_of(task["bias"], task["numbers"], torch.device("cpu"))
            if "q_lengths" not in task["numbers"]:
                dense = bias.materialize((case.q_len, case.k_len))
                np.testing.assert_array_equal(
                    np.broadcast_to(dense.exp() > 0.5, wanted(case).shape), wanted(case)
                )
            else:
                q_rows = arrays["q_tokens"][1] if "q_tokens" in arrays else np.arange(case.batch * case.q_len)
                k_rows = arrays["k_tokens"][1] if "k_tokens" in arrays else np.arange(case.batch * case.k_len)
                dense = bias.materialize((len(q_rows), len(k_rows))).exp().numpy() > 0.5
                tokens = np.zeros((case.batch * case.q_len, case.batch * case.k_len), bool)
                tokens[np.ix_(q_rows, k_rows)] = dense
                np.testing.assert_array_equal(of_tokens(case, tokens), wanted(case))
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["sdpa_math", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn"])
def test_sdpas_flags_mean_the_mask(name: str, device: str) -> None:
    """scaled_dot_product_attention: is_causal is `torch.ones(L, S).tril(diagonal=0)`; causal_lower_right aligns it at
    the last key (torch.nn.attention.bias); what has no flag goes in as the dense mask itself.
    """
    from attnbench.backend import resolve

    backend: Any = resolve(name)
    forms = set()
    for asked in CASES:
        case = problem(*asked)
        form = backend._causal_form(case, device)
        forms.add(form)
        triangle = np.tril(np.ones((case.q_len, case.k_len), bool), k=0)
        at_the_end = np.tril(np.ones((case.q_len, case.k_len), bool), k=case.k_len - case.q_len)
        read = {"full": np.ones_like(triangle), "is_causal": triangle, "lower_right": at_the_end}
        if form is not None:
            np.testing.assert_array_equal(np.broadcast_to(read[form], wanted(case).shape), wanted(case))
    assert {"full", "is_causal", None} <= forms
