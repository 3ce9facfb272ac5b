"""torch's MultiheadAttention, parameter for parameter, on any backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.errors import LayerError
from attnbench.layer.attend import AttentionFunction, attend_with, backend_name
from attnbench.layer.cache import KVCache
from attnbench.layer.mask_argument import as_mask
from attnbench.layer.weights import attention_weights
from attnbench.problem import Full, Mask

TORCH_ARGUMENTS = {
    "key_padding_mask": "pass mask=~key_padding_mask (here True means may attend)",
    "attn_mask": "pass mask=~attn_mask[None, None] (here True means may attend), or a mask of the algebra",
    "is_causal": "pass mask=ab.Causal('top_left'), which is torch's, or ab.Causal()",
}


class MultiheadAttention(nn.Module):
    """Multi-head attention whose products, softmax and gradients are a backend's.

    The state_dict is torch.nn.MultiheadAttention's (in_proj_weight, in_proj_bias, out_proj.weight,
    out_proj.bias), and loads both ways; the same seed gives the same initial parameters. With `kv_heads` below
    `num_heads` the projections have torch's separate names: q_proj_weight [E, E], k_proj_weight and
    v_proj_weight [kv_heads * head_dim, E], with one in_proj_bias over q, k and v.

    Unlike torch's: batch first by default; masks are of the algebra, or bool tensors in which True means
    *may attend*; a query without any key gets 0 from attention (torch's gives NaN).

    backend     a name, `path/to/file.py:function`, or a function fn(q, k, v, *, mask, scores, scale)
    dropout     on the attention weights, in training mode only, drawn from torch's generator. Backends that
                cannot drop weights refuse the call. It takes [B, H, Q, K] of memory on any backend.
    """

    in_proj_bias: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = True,
        backend: str | AttentionFunction = "naive",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if kv_heads is None else kv_heads
        _check_sizes(embed_dim, num_heads, kv_heads, dropout)
        self.embed_dim, self.num_heads, self.kv_heads = embed_dim, num_heads, kv_heads
        self.head_dim = embed_dim // num_heads
        self.dropout, self.batch_first = float(dropout), batch_first
        attend_with(backend)  # an unknown or unavailable backend fails here, not in the first step
        self.backend = backend
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        kv_dim = kv_heads * self.head_dim
        if kv_heads == num_heads:
            self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **new))
        else:
            self.q_proj_weight = nn.Parameter(torch.empty(embed_dim, embed_dim, **new))
            self.k_proj_weight = nn.Parameter(torch.empty(kv_dim, embed_dim, **new))
            self.v_proj_weight = nn.Parameter(torch.empty(kv_dim, embed_dim, **new))
        if bias:
            self.in_proj_bias = nn.Parameter(torch.empty(embed_dim + 2 * kv_dim, **new))
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for the projections in, zero biases: torch's draws in torch's order."""
        for weight in self._projections():
            nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def extra_repr(self) -> str:
        grouped = f", kv_heads={self.kv_heads}" if self.kv_heads != self.num_heads else ""
        return f"{self.embed_dim}, {self.num_heads}{grouped}, backend={backend_name(self.backend)!r}"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Mask | Tensor = Full(),
        need_weights: bool = False,
        average_attn_weights: bool = True,
        cache: KVCache | None = None,
        **torch_arguments: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, weights or None), as torch returns them.

        query [B, Q, E], key and value [B, K, E] ([Q, B, E] and [K, B, E] with batch_first=False). `mask`: see
        `mask_argument.as_mask`; with a cache its keys count from the first one cached. `need_weights` computes the
        weights apart from the backend (plainly, in [B, H, Q, K] of memory): [B, Q, K] averaged over heads, or
        [B, H, Q, K]; the output stays the backend's. `cache` appends this call's keys and values, and attention is
        over all it holds. Raises LayerError, and AttnbenchError if the backend refuses.
        """
        if torch_arguments:
            name = next(iter(torch_arguments))
            hint = TORCH_ARGUMENTS.get(name, "it takes mask, need_weights, average_attn_weights, cache")
            raise LayerError(f"forward has no {name}: {hint}")
        self._check_inputs(query, key, value)
        q, k, v = self._project(query, key, value)  # [B, H, Q, D], [B, Hkv, K, D] twice
        if cache is not None:
            k, v = cache.append(k, v)
        read_mask = as_mask(mask, q.shape[0], self.num_heads, q.shape[2], k.shape[2])
        keep = self._keep(q, k) if self.training and self.dropout else None
        out = attend_with(self.backend)(q, k, v, mask=read_mask, keep=keep)  # [B, H, Q, D]
        merged = out.transpose(1, 2).flatten(2)  # [B, Q, E]
        projected = self.out_proj(merged if self.batch_first else merged.transpose(0, 1))
        if not need_weights:
            return projected, None
        weights = attention_weights(q, k, read_mask)
        weights = weights if keep is None else weights * keep
        return projected, weights.mean(dim=1) if average_attn_weights else weights

    def _projections(self) -> tuple[Tensor, ...]:
        if self.kv_heads == self.num_heads:
            return (self.in_proj_weight,)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kv_dim = self.kv_heads * self.head_dim
        sizes = (self.embed_dim, kv_dim, kv_dim)
        if self.kv_heads == self.num_heads:
            if query is key and key is value:
                parts = F.linear(query, self.in_proj_weight, self.in_proj_bias).split(sizes, dim=-1)
                return self._heads(parts[0]), self._heads(parts[1]), self._heads(parts[2])
            weights = self.in_proj_weight.split(sizes)
        else:
            weights = self._projections()
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        q, k, v = (
            self._heads(F.linear(x, w, b))
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        """[B, S, heads * D] (or [S, B, heads * D]) to [B, heads, S, D], a view."""
        split = x.unflatten(-1, (-1, self.head_dim))
        return split.transpose(1, 2) if self.batch_first else split.permute(1, 2, 0, 3)

    def _keep(self, q: Tensor, k: Tensor) -> Tensor:
        """The factor of each weight: 0 with probability `dropout`, else 1 / (1 - dropout): [B, H, Q, K]."""
        shape = (*q.shape[:3], k.shape[2])
        keep = torch.empty(shape, device=q.device, dtype=q.dtype).bernoulli_(1 - self.dropout)
        return keep.div_(1 - self.dropout)

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        order = "[batch, length, embed_dim]" if self.batch_first else "[length, batch, embed_dim]"
        batch, length = (0, 1) if self.batch_first else (1, 0)
        weight = self.out_proj.weight
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.ndim != 3:
                raise LayerError(
                    f"{name} is {order}, not of shape {list(x.shape)}; pass a batch of 1 for one text"
                )
            if x.shape[2] != self.embed_dim:
                raise LayerError(
                    f"{name} has {x.shape[2]} features, but embed_dim is {self.embed_dim}; the layer projects "
                    "query, key and value from the same width: project it beforehand"
                )
            if x.shape[batch] != query.shape[batch]:
                raise LayerError(
                    f"{name} has batch {x.shape[batch]}, but query has {query.shape[batch]} ({order}; "
                    f"batch_first is {self.batch_first})"
                )
            if x.device != weight.device or (
                x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type)
            ):
                raise LayerError(
                    f"{name} is {x.dtype} on {x.device}, but the parameters are {weight.dtype} on {weight.device}; "
                    "move or convert one of them"
                )
        if key.shape[length] != value.shape[length]:
            raise LayerError(
                f"key has {key.shape[length]} tokens, but value has {value.shape[length]}; each key needs its value"
            )
        if 0 in (query.shape[length], key.shape[length], query.shape[batch]):
            raise LayerError(f"query, key and value need at least one token and one batch row ({order})")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # torch's state has these with add_bias_kv=True; this layer has no such parameters.
        for name in ("bias_k", "bias_v"):
            if prefix + name in state_dict:
                raise LayerError(
                    f"the state has {prefix}{name}: a layer made with add_bias_kv=True cannot be loaded"
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]


def _check_sizes(embed_dim: int, num_heads: int, kv_heads: int, dropout: float) -> None:
    for name, value in (("embed_dim", embed_dim), ("num_heads", num_heads), ("kv_heads", kv_heads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LayerError(f"{name} is a whole number of at least 1, not {value!r}")
    if embed_dim % num_heads:
        near = embed_dim - embed_dim % num_heads
        raise LayerError(
            f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}: every head takes embed_dim / num_heads "
            f"features; take embed_dim {near or num_heads} or {near + num_heads}, or another number of heads"
        )
    if num_heads % kv_heads:
        divisors = ", ".join(str(n) for n in range(1, num_heads + 1) if num_heads % n == 0)
        raise LayerError(
            f"kv_heads {kv_heads} does not divide num_heads {num_heads}: each key head serves a whole group of "
            f"query heads; take one of {divisors}"
        )
    if not 0.0 <= dropout < 1.0:
        raise LayerError(f"dropout is a share of weights, at least 0 and below 1, not {dropout!r}")
