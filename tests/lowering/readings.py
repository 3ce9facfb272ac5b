"""What each library makes of a request, by its own documentation.

Each reading is written from the library's documentation (named in its docstring), independently of the lowerings: it
reads the request of the library's call, pair by pair, and returns a dense mask bool [B, H, Q, K].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnbench.problem import Case

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
