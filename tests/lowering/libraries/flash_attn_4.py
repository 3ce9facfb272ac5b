# mypy: ignore-errors
"""flash_attn.cute's two functions, with its argument names: None is unlimited, and there is a learnable sink."""

from exact_attention import dense, packed


def _window(window_size):
    assert all(side is None or side >= 0 for side in window_size), "a negative side is not unlimited here"
    return window_size


def flash_attn_func(
    q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
    learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, return_lse=False,
):  # fmt: skip
    out, lse = dense(q, k, v, softmax_scale, causal, _window(window_size), softcap, sink=learnable_sink)
    return out, lse if return_lse else None


def flash_attn_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None,
    seqused_q=None, seqused_k=None, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, return_lse=False,
):  # fmt: skip
    out, lse = packed(
        q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, _window(window_size), softcap, sink=learnable_sink
    )  # fmt: skip
    return out, lse if return_lse else None
