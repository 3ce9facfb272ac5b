"""The interface of a backend: what it declares, refuses, prepares and returns."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from attnbench.backend.defects import KnownDefect
from attnbench.errors import AttnbenchError
from attnbench.problem import MASK_KINDS, Case, Inputs
from attnbench.problem.condition import Condition

if TYPE_CHECKING:
    from torch import Tensor

Contract = Literal["flash", "flash_splits", "dense"]
CONTRACTS: tuple[Contract, ...] = get_args(Contract)
Claim = Literal[
    "bitwise_repeatable_forward",  # each call gives the same out
    "bitwise_repeatable_backward",  # each call gives the same dq, dk and dv
    "batch_invariant",  # a batch row alone gives the out that it gives in any batch
    "length_invariant",  # a causal prefill of n tokens gives the first n rows of a longer one
    "decode_equals_prefill",  # queries against a cache give the rows of a causal prefill
]
CLAIMS: tuple[Claim, ...] = get_args(Claim)
REPEATABLE: frozenset[Claim] = frozenset({"bitwise_repeatable_forward", "bitwise_repeatable_backward"})
SCORE_KINDS = frozenset(("softcap", "alibi", "bias", "relative", "sink"))


@dataclass(frozen=True)
class Refusal:
    """Why a backend does not compute a case. A refused case is never patched, nor run by another kernel."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend takes. Anything else is refused with the reason, before anything runs.

    masks           kinds of the leaves of a mask expression
    combinations    whether it takes masks joined by `&`, `|`, `~` as well as single ones
    architectures   CUDA compute capabilities (major, minor) from which it runs; None: any
    head_dims       smallest, largest and the step between head dims
    contract        one of CONTRACTS. "flash": fp32 scores and statistics, only P, dS and outputs rounded;
                    "flash_splits": as flash, with splits of the keys merged by their fp32 LSE; "dense": any
                    intermediate may be rounded to the dtype
    claims          what holds in every bit, of CLAIMS; `check` measures all, and one that is claimed and fails is wrong
    empty_rows      its output for a query that may attend no key; unless "zero", such cases are refused
    masked_nan      "ignored": NaN and infinity at places that a query may not attend change nothing for it;
                    "may_spread": they may reach it, as 0 * NaN does, but no other head or batch row
    double_backward whether the gradients of q, k and v have gradients themselves, by autograd
    contiguous_features  whether it refuses q, k, v whose last dimension is not contiguous in memory
    varlen          whether packed documents are computed without padding
    timed           False if its times mean nothing (an interpreter)
    compiles        whether `prepare` compiles: a sweep prepares all its cases once before any is timed
    layer_level     whether it runs a whole layer with identity projections; it is labelled so
    where           a condition on the case (`attnbench.problem.condition`) for what no other field says, such as
                    "q_len == 1 and k_len % 128 == 0 and batch <= 8"; a case is refused with the clause it fails
    source          link to the documentation of what it takes
    """

    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    architectures: tuple[int, int] | None = None
    dtypes: frozenset[str] = frozenset({"fp32", "bf16", "fp16"})
    head_dims: tuple[int, int, int] = (1, 1 << 30, 1)
    masks: frozenset[str] = MASK_KINDS
    combinations: bool = True
    scores: frozenset[str] = SCORE_KINDS
    gqa: bool = True
    varlen: bool = False
    unequal_lengths: bool = True
    unequal_v_dim: bool = True
    backward: bool = True
    contract: Contract = "flash"
    claims: frozenset[Claim] = frozenset()
    empty_rows: Literal["zero", "nan", "mean_v", "undefined"] = "zero"
    double_backward: bool = False
    contiguous_features: bool = False
    masked_nan: Literal["ignored", "may_spread"] = "may_spread"
    timed: bool = True
    compiles: bool = False
    layer_level: bool = False
    where: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(self.claims - set(CLAIMS))
        if unknown:
            raise AttnbenchError(f"no claim {unknown[0]!r}; take {', '.join(CLAIMS)}")


@dataclass(frozen=True)
class Output:
    """A forward's result: out [B, H, Q, Dv] in the case's dtype; lse float32 [B, H, Q] (natural log) or None."""

    out: Tensor
    lse: Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """A backward's result: dq, dk, dv shaped as q, k, v; `scores` by gradient name (dbias, dsink, dtable)."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)


class Prepared(ABC):
    """One case prepared on one backend. The checked callable is the timed callable.

    `kernel` names what runs. `prepare_ms` holds milliseconds per step (mask, layout, compile), all off the clock.
    `backward` may be called repeatedly after one `forward`. `clock` names what times the calls, if it is not the
    clock of this process.
    """

    kernel: str = ""
    clock: str = ""
    prepare_ms: dict[str, float]

    def __init__(self) -> None:
        self.prepare_ms = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of a step of the preparation to `prepare_ms`."""
        start_ns = time.perf_counter_ns()
        yield
        self.prepare_ms[name] = self.prepare_ms.get(name, 0.0) + (time.perf_counter_ns() - start_ns) / 1e6

    @abstractmethod
    def forward(self) -> Output:
        """Compute the output on the prepared inputs (asynchronously on a GPU)."""

    @abstractmethod
    def backward(self, dout: Tensor) -> Gradients:
        """Compute the gradients of the last forward."""

    def call(self, direction: str, dout: Tensor | None) -> Callable[[], Any]:
        """The callable to time: the forward, or the backward of one forward that runs now.

        A callable with a method `timed(samples, calls_per_sample)`, which returns the fields of `measure.Timed`, times
        itself, because it runs in another process.
        """
        if direction == "fwd":
            return self.forward
        assert dout is not None
        self.forward()  # the graph that the backwards run on
        return partial(self.backward, dout)

    def memory(self) -> dict[str, int] | None:
        """fwd_peak, saved, bwd_peak in bytes above the inputs if torch's allocator cannot see them; else None."""
        return None

    def kernels(self) -> list[str] | None:
        """The GPU kernels of one forward (and backward) if they run in another process; else None."""
        return None

    def drop_graph(self) -> None:
        """Release the last forward's output and saved tensors."""

    def on(self, q: Tensor, k: Tensor, v: Tensor) -> Prepared | None:
        """The same case on other tensors, without preparing it again; None if that is not known to be sound.

        The result has its own graph, so that several calls of one case may be alive at the same time.
        """
        return None


class Backend(ABC):
    """One implementation of attention. `name` is set by the registry: the file's name, or the entry point's.

    `kernel_family` (a name of `measure.kernels.FAMILIES`): the GPU kernels that must run, and no others.
    `known_defects`: known defects of the library, by the check that finds them (see `KnownDefect`).
    """

    name: str = ""
    kernel_family: str = ""
    capabilities: Capabilities = Capabilities()
    known_defects: Mapping[str, KnownDefect] = MappingProxyType({})

    def version(self) -> str:
        """The version of the library that computes, e.g. `torch 2.13.0`."""
        return "unknown"

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        """The reason why this case is refused, or None. A subclass calls this first, then adds its own reasons."""
        return declared_refusal(self.capabilities, case, device)

    def limit_memory(self, limit_bytes: int | None, device: str) -> None:
        """Limit the processes that this backend started to this much more memory than they hold now."""
        return

    @abstractmethod
    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        """Lower the mask, change the layout, compile: everything but the computation itself."""

    def prepare_with_dropout(self, case: Case, inputs: Inputs, keep: Tensor) -> Prepared:
        """As `prepare`, with the weights after the softmax multiplied by keep [B, H, Q, K]: 0 or 1 / (1 - p).

        The caller draws `keep`, so that every backend drops the same weights. For layers; a case has no dropout.
        """
        raise NotImplementedError(f"{self.name} has no dropout on the attention weights")


def declared_refusal(can: Capabilities, case: Case, device: str) -> Refusal | None:
    """The refusal that follows from the declared capabilities, or None."""
    kind = device.split(":")[0]
    smallest, largest, step = can.head_dims
    masks = sorted(case.mask.kinds - can.masks)
    scores = sorted({score.kind for score in case.scores} - can.scores)
    reasons: list[tuple[bool, str]] = [
        (kind not in can.devices, f"runs on {' and '.join(sorted(can.devices))}, not on {kind}"),
        (case.dtype not in can.dtypes, f"takes {', '.join(sorted(can.dtypes))}, not {case.dtype}"),
        (bool(masks), f"has no {', '.join(masks)} mask"),
        (not can.combinations and case.mask.is_combined, "takes single masks only, no combination"),
        (bool(scores), f"has no {', '.join(scores)}"),
        (
            not can.gqa and case.group != 1,
            f"needs as many key heads as query heads, not {case.q_heads}:{case.kv_heads}",
        ),
        (not can.unequal_lengths and case.q_len != case.k_len, "needs q_len == k_len"),
        (not can.unequal_v_dim and case.v_dim != case.head_dim, "needs v_dim == head_dim"),
        (not can.backward and case.needs_backward, "has no backward"),
    ]
    for dim in sorted({case.head_dim, case.v_dim}):
        fits = smallest <= dim <= largest and dim % step == 0
        reasons.append((not fits, f"takes head dims {smallest} to {largest} in steps of {step}, not {dim}"))
    for holds, reason in reasons:
        if holds:
            return Refusal(reason)
    if can.where and (unmet := Condition(can.where).unmet(case)):
        return Refusal(unmet)
    if can.empty_rows != "zero" and case.has_empty_rows:
        return Refusal(f"gives {can.empty_rows} for queries without a key, and this case has such queries")
    return None
