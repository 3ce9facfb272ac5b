# mypy: ignore-errors
"""flashinfer.BatchPrefillWithRaggedKVCacheWrapper with its argument names and their documented meaning."""

import torch
from exact_attention import attend, band


class BatchPrefillWithRaggedKVCacheWrapper:
    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, backend="auto"):
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "NHD"

    def plan(
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo=None, custom_mask=None,
        packed_custom_mask=None, causal=False, pos_encoding_mode="NONE", use_fp16_qk_reduction=False, window_left=-1,
        logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, q_data_type="float16",
    ):  # fmt: skip
        self.ends = qo_indptr.tolist(), kv_indptr.tolist()
        self.heads = num_qo_heads, num_kv_heads
        self.dims = head_dim_qk, head_dim_vo or head_dim_qk
        self.mask, self.causal, self.left = custom_mask, causal, window_left
        self.cap, self.scale, self.dtype = logits_soft_cap or 0.0, sm_scale, q_data_type

    def run(self, q, k, v, return_lse=False):
        assert (q.shape[1], k.shape[1]) == self.heads
        assert (q.shape[2], v.shape[2]) == self.dims
        assert q.dtype == self.dtype
        outs, bits = [], 0
        for n in range(len(self.ends[0]) - 1):
            own_q, own_k = (slice(ends[n], ends[n + 1]) for ends in self.ends)
            queries, keys = own_q.stop - own_q.start, own_k.stop - own_k.start
            # window_left holds beside a custom mask; causal does not.
            allowed = band(queries, keys, self.causal and self.mask is None, self.left, None)
            if self.mask is not None:
                allowed = allowed & self.mask[bits : bits + queries * keys].reshape(queries, keys)
                bits += queries * keys
            outs.append(attend(q[own_q], k[own_k], v[own_k], allowed, self.scale, self.cap)[0])
        return torch.cat(outs)
