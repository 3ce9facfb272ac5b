"""The tensors of a case, deterministic in (case, seed, distribution).

Numbers are drawn on the CPU in float32, rounded to the case's dtype and then moved, so that every device and every
backend gets the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnbench.errors import CaseError, did_you_mean
from attnbench.problem.case import Case
from attnbench.problem.distributions import DISTRIBUTIONS
from attnbench.problem.scores import Score, Sink

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a case's dtype name."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


@dataclass(frozen=True)
class Inputs:
    """The tensors of one case: q [B, H, Q, D], k [B, Hkv, K, D], v [B, Hkv, K, Dv], dout [B, H, Q, Dv].

    All are logically [B, H, S, D] in every memory layout. `dout` is None if the case has no backward. `scores` are
    the case's score changes with their tensors bound.
    """

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor | None
    scores: tuple[Score, ...]
    seed: int = 0
    distribution: str = "randn"

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: q, k, v, dout, and those of score changes by their kind."""
        named = {"q": self.q, "k": self.k, "v": self.v}
        if self.dout is not None:
            named["dout"] = self.dout
        return named | {s.kind: s.tensor for s in self.scores if s.tensor is not None}

    def checksum(self) -> str:
        """A hash of every bit of every tensor, to detect an input changed in place."""
        import torch

        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def fresh(self) -> Inputs:
        """The same numbers and strides in fresh storage."""
        scores = tuple(s if s.tensor is None else s.bound(s.tensor.clone()) for s in self.scores)
        q, k, v = _as_layout(self.q, self.k, self.v, self.case.layout)
        dout = None if self.dout is None else self.dout.clone()
        return replace(self, q=q, k=k, v=v, dout=dout, scores=scores)


def _as_layout(q: Tensor, k: Tensor, v: Tensor, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    if layout == "bhsd":
        return (
            q.clone(memory_format=torch.contiguous_format),
            k.clone(memory_format=torch.contiguous_format),
            v.clone(memory_format=torch.contiguous_format),
        )
    if layout == "bshd":
        q, k, v = (
            x.transpose(1, 2).clone(memory_format=torch.contiguous_format) for x in (q, k, v)
        )  # [B, S, H, D]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H, S, D]
    # One buffer [B, S, H * D + Hkv * D + Hkv * Dv], as a fused QKV projection writes it.
    flat = [x.transpose(1, 2).flatten(2) for x in (q, k, v)]
    packed = torch.cat(flat, dim=2)
    parts = packed.split([x.shape[2] for x in flat], dim=2)
    shaped = [p.unflatten(2, (x.shape[1], x.shape[3])) for p, x in zip(parts, (q, k, v), strict=True)]
    return shaped[0].transpose(1, 2), shaped[1].transpose(1, 2), shaped[2].transpose(1, 2)


def _generator(case: Case, seed: int, name: str) -> torch.Generator:
    import torch

    # The layout is not part of the draw: strided and contiguous inputs hold the same numbers.
    contiguous = replace(case, layout="bhsd").id
    digest = hashlib.sha256(f"{contiguous}|{seed}|{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def make_inputs(case: Case, seed: int = 0, device: str = "cpu", distribution: str = "randn") -> Inputs:
    """Draw the tensors of a case; raises CaseError for a distribution that does not exist."""
    if distribution not in DISTRIBUTIONS:
        near = did_you_mean(str(distribution), sorted(DISTRIBUTIONS))
        raise CaseError(f"no distribution called {distribution!r}{near}")
    dtype = torch_dtype(case.dtype)
    drawn = DISTRIBUTIONS[distribution](case, lambda name: _generator(case, seed, name))
    q, k, v, dout = (x.to(dtype).to(device) for x in drawn)
    q, k, v = _as_layout(q, k, v, case.layout)
    scores = [_bind(score, case, seed, dtype, device) for score in case.scores]
    return Inputs(case, q, k, v, dout if case.needs_backward else None, tuple(scores), seed, distribution)


def blank_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Tensors of a case that hold zeros and cost no draw, to learn whether a backend takes the case."""
    import torch

    zero = torch.zeros((), dtype=torch_dtype(case.dtype), device=device)
    shapes = (
        (case.batch, case.q_heads, case.q_len, case.head_dim),
        (case.batch, case.kv_heads, case.k_len, case.head_dim),
        (case.batch, case.kv_heads, case.k_len, case.v_dim),
    )
    q, k, v = (zero.expand(shape) for shape in shapes)
    q, k, v = _as_layout(q, k, v, case.layout)
    dout = zero.expand(*q.shape[:3], case.v_dim).contiguous() if case.needs_backward else None
    scores = tuple(_bind(score, case, 0, q.dtype, device) for score in case.scores)
    return Inputs(case, q, k, v, dout, scores, -1, "zeros")


def _bind(score: Score, case: Case, seed: int, dtype: torch.dtype, device: str) -> Score:
    import torch

    shape = score.tensor_shape(case.extent)
    if shape is None:
        return score
    if score.tensor is not None:
        return score.bound(score.tensor.to(device=device, dtype=dtype))
    if isinstance(score, Sink) and score.value is not None:
        return score.bound(torch.full(shape, score.value, dtype=dtype, device=device))
    drawn = torch.randn(shape, generator=_generator(case, seed, score.kind)) * getattr(score, "std", 1.0)
    return score.bound(drawn.to(dtype).to(device))


def bound_scores(scores: Sequence[Score], case: Case) -> tuple[Score, ...]:
    """The score changes bound in the case's dtype; one without a tensor is drawn from seed 0."""
    return tuple(_bind(score, case, 0, torch_dtype(case.dtype), "cpu") for score in scores)
