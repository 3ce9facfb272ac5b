# mypy: ignore-errors
"""What the libraries' documentation says, computed plainly: the core of their stand-ins without a GPU."""

import torch


def attend(q, k, v, allowed, scale, softcap=0.0, bias=None, sink=None):
    """q [Q, H, D], k and v [K, Hkv, D], allowed [Q, K] or [H, Q, K]: out [Q, H, D] and lse [H, Q] (+inf: no key)."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1).float() for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~allowed, -torch.inf)
    with_sink = (
        scores
        if sink is None
        else torch.cat([scores, sink.float()[:, None, None].expand(-1, q.shape[0], 1)], -1)
    )
    lse = torch.logsumexp(with_sink, -1)
    finite = torch.where(lse == -torch.inf, torch.zeros_like(lse), lse)
    out = torch.einsum("hqk,khd->qhd", torch.exp(scores - finite[..., None]), values)
    return out.to(q.dtype), torch.where(lse == -torch.inf, torch.inf, lse)


def band(queries, keys, causal, left, right):
    """Bottom-right aligned; None or -1 is unlimited."""
    place = torch.arange(queries)[:, None] + keys - queries
    j = torch.arange(keys)[None, :]
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        allowed &= j <= place
    if left not in (None, -1):
        allowed &= j >= place - left
    if right not in (None, -1):
        allowed &= j <= place + right
    return allowed


def alibi(slopes, queries, keys):
    place = torch.arange(queries)[:, None] + keys - queries
    return -slopes[:, None, None] * (place - torch.arange(keys)[None, :]).abs()


def dense(q, k, v, scale, causal, window, softcap=0.0, slopes=None, sink=None):
    """[B, S, H, D]: out and lse [B, H, Q]."""
    rows = []
    for b in range(q.shape[0]):
        queries, keys = q.shape[1], k.shape[1]
        bias = None if slopes is None else alibi(slopes, queries, keys)
        rows.append(
            attend(q[b], k[b], v[b], band(queries, keys, causal, *window), scale, softcap, bias, sink)
        )
    return torch.stack([o for o, _ in rows]), torch.stack([lse for _, lse in rows])


def packed(q, k, v, cu_q, cu_k, scale, causal, window, softcap=0.0, slopes=None, sink=None):
    """[T, H, D]: out and lse [H, T]."""
    outs, lses = [], []
    for n in range(len(cu_q) - 1):
        own_q = slice(int(cu_q[n]), int(cu_q[n + 1]))
        own_k = slice(int(cu_k[n]), int(cu_k[n + 1]))
        queries, keys = own_q.stop - own_q.start, own_k.stop - own_k.start
        bias = None if slopes is None else alibi(slopes, queries, keys)
        allowed = band(queries, keys, causal, *window)
        out, lse = attend(q[own_q], k[own_k], v[own_k], allowed, scale, softcap, bias, sink)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, dim=1)
