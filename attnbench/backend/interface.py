"""The interface of a backend: what it declares, refuses, prepares and returns."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from attnbench.backend.defects import KnownDefect
from attnbench.errors import AttnbenchError
from attnbench.problem import MASK_KINDS, Case, Inputs, Score
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
MOST_COMPILED = 1 << 14  # versions of one function that torch may compile
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


class AutogradPrepared(Prepared):
    """A case whose gradients come from torch's autograd through `compute(q, k, v, scores) -> Output | Tensor`.

    The arguments of `compute` are leaves, so a backward through it is the backward that a user would run.
    `reusable`: `compute` reads no tensor but its arguments, so that `on` may call it on others.
    """

    def __init__(
        self,
        case: Case,
        inputs: Inputs,
        compute: Callable[..., Any],
        kernel: str = "",
        *,
        reusable: bool = False,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        # Score changes carry the tensors of the call that they were made for.
        self._reusable = reusable and not inputs.scores
        self._grad = case.needs_backward
        self._q, self._k, self._v = (
            x.detach().requires_grad_(self._grad) for x in (inputs.q, inputs.k, inputs.v)
        )
        self._scores = tuple(
            s if s.tensor is None else s.bound(s.tensor.detach().requires_grad_(self._grad))
            for s in inputs.scores
        )
        self._compute = compute
        self._out: Tensor | None = None

    def forward(self) -> Output:
        import torch

        with torch.set_grad_enabled(self._grad):
            return self._kept(self._compute(self._q, self._k, self._v, self._scores))

    def _kept(self, result: Any) -> Output:
        """The result without its graph, which is kept for the backward."""
        output = output_of(result)
        self._out = output.out if self._grad else None
        return Output(output.out.detach(), None if output.lse is None else output.lse.detach())

    def _leaves(self) -> dict[str, Tensor]:
        """The tensors that get a gradient, by its name."""
        named = {"dq": self._q, "dk": self._k, "dv": self._v}
        return named | {s.gradient: s.tensor for s in self._scores if s.gradient and s.tensor is not None}

    def backward(self, dout: Tensor) -> Gradients:
        leaves = self._leaves()
        named = dict(zip(leaves, self._gradients(self._graph(), leaves, dout), strict=True))
        return Gradients(named.pop("dq"), named.pop("dk"), named.pop("dv"), named)

    def _graph(self) -> Tensor:
        if self._out is None:
            raise AttnbenchError(
                "backward needs a forward with gradients before it; the case's direction is fwd"
            )
        return self._out

    def _gradients(self, out: Tensor, leaves: dict[str, Tensor], dout: Tensor) -> Iterable[Tensor]:
        import torch

        return torch.autograd.grad(out, list(leaves.values()), dout, retain_graph=True)

    def gradients_of(self, names: Collection[str], dout: Tensor) -> dict[str, Tensor | None]:
        """Gradients by name of a forward in which only some inputs require one: of q, k, v, and the kinds of scores.

        A gradient that does not come is None. Raises what the backend raises.
        """
        import torch

        def leaf(name: str, x: Tensor) -> Tensor:
            return x.detach().requires_grad_(name in names)

        q, k, v = leaf("q", self._q), leaf("k", self._k), leaf("v", self._v)
        scores = tuple(s if s.tensor is None else s.bound(leaf(s.kind, s.tensor)) for s in self._scores)
        leaves: dict[str, Tensor] = {"dq": q, "dk": k, "dv": v}
        leaves |= {s.gradient: s.tensor for s in scores if s.gradient and s.tensor is not None}
        asked = {name: x for name, x in leaves.items() if x.requires_grad}
        with torch.enable_grad():
            result = self._compute(q, k, v, scores)
        output_of(result).out.backward(dout)
        return {name: x.grad for name, x in asked.items()}

    def second_gradients(self, dout: Tensor, by: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Gradients by q, k, v and dout of the sum of dq, dk and dv times `by` (each shaped as q, k, v)."""
        import torch

        named = {"q": self._q, "k": self._k, "v": self._v, "dout": dout}
        leaves = {name: x.detach().requires_grad_() for name, x in named.items()}
        with torch.enable_grad():
            out = output_of(self._compute(leaves["q"], leaves["k"], leaves["v"], self._scores)).out
            wanted = [leaves[name] for name in "qkv"]
            first = torch.autograd.grad(out, wanted, leaves["dout"], create_graph=True)
            total = sum((g * b).sum() for g, b in zip(first, by, strict=True))
        seconds = torch.autograd.grad(total, list(leaves.values()))  # type: ignore[arg-type]
        return dict(zip(leaves, seconds, strict=True))

    def drop_graph(self) -> None:
        self._out = None

    def on(self, q: Tensor, k: Tensor, v: Tensor) -> AutogradPrepared | None:
        if not self._reusable:
            return None
        other = copy(self)
        other._q, other._k, other._v = (x.detach().requires_grad_(self._grad) for x in (q, k, v))
        other._out = None
        return other


def output_of(result: Any) -> Output:
    """What a function returned as an Output: a tensor, an Output, or a tuple whose first item is out.

    A second item that is float32 [B, H, Q] is taken for the LSE (natural log), as flash_attn and xformers return it;
    anything else there, such as the weights, is not looked at. Raises TypeError for anything else.
    """
    import torch

    if isinstance(result, Output):
        return result
    items = result if isinstance(result, (tuple, list)) else (result,)
    out, second = items[0] if items else None, items[1] if len(items) > 1 else None
    if not isinstance(out, torch.Tensor):
        raise TypeError(
            f"it returns a {type(result).__name__}; return out [B, H, Q, Dv], a pair of out and LSE, or an Output"
        )
    is_lse = (
        isinstance(second, torch.Tensor) and second.dtype == torch.float32 and second.shape == out.shape[:3]
    )
    return Output(out, second if is_lse else None)


class FunctionPrepared(AutogradPrepared):
    """A plain function, called as its author's program calls it.

    Each call gets leaves of its own (so that hooks do not add up), the grad mode is on, and gradients come from
    `out.backward(dout)`: `torch.autograd.grad` is refused by a reentrant `torch.utils.checkpoint`, and skips what a
    backward adds to a leaf by itself. An input that got no gradient has gradient 0.
    """

    def forward(self) -> Output:
        import torch

        if self._grad:
            self._q, self._k, self._v = (x.detach().requires_grad_() for x in (self._q, self._k, self._v))
            self._scores = tuple(
                s if s.tensor is None else s.bound(s.tensor.detach().requires_grad_()) for s in self._scores
            )
        # A forward alone keeps the caller's grad mode: a function may need autograd to compute.
        with torch.set_grad_enabled(self._grad or torch.is_grad_enabled()):
            return self._kept(self._compute(self._q, self._k, self._v, self._scores))

    def _gradients(self, out: Tensor, leaves: dict[str, Tensor], dout: Tensor) -> Iterable[Tensor]:
        import torch

        for leaf in leaves.values():
            leaf.grad = None
        try:
            out.backward(dout, retain_graph=True)
        except RuntimeError as error:
            # Code that torch compiled before it came here frees its buffers at once.
            if "donated buffers" not in str(error):
                raise
            out.backward(dout)
        return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves.values()]


class FunctionBackend(Backend):
    """A plain function as a backend: `fn(q, k, v, *, mask, scores, scale) -> [B, H, Q, Dv]`, gradients by autograd.

    `scores` carry their tensors (`score.tensor`). It may return more than out (see `output_of`). A
    NotImplementedError refuses the case. `declared` names the capabilities that the author declares; the others are
    defaults, and a check may find out that they do not hold.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        name: str,
        capabilities: Capabilities = Capabilities(),
        declared: frozenset[str] = frozenset(),
    ) -> None:
        self.fn = fn
        self.name = name
        self.capabilities = capabilities
        changed = {f.name for f in fields(Capabilities) if getattr(capabilities, f.name) != f.default}
        self.declared = declared | changed

    def declaring(self, **capabilities: Any) -> FunctionBackend:
        """The same function, with these capabilities declared beside its own."""
        declared = self.declared | capabilities.keys()
        return FunctionBackend(self.fn, self.name, replace(self.capabilities, **capabilities), declared)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        def compute(q: Tensor, k: Tensor, v: Tensor, scores: tuple[Score, ...]) -> Tensor:
            return self.fn(q, k, v, mask=case.mask, scores=scores, scale=case.softmax_scale)

        _let_compiled_code_run()
        return FunctionPrepared(case, inputs, compute, kernel=self.name, reusable=True)


def finds_contract(backend: Backend, contract: str | None) -> bool:
    """Whether a contract is looked for if flash fails: that of a plain function which declares none, unless given."""
    return contract is None and isinstance(backend, FunctionBackend) and "contract" not in backend.declared


def _let_compiled_code_run() -> None:
    """Let a function that torch compiles be compiled for each case, and its backward be called more than once.

    After 8 cases torch runs the function uncompiled without a word, or raises if it is compiled with fullgraph=True.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        import torch._functorch.config

        dynamo.config.recompile_limit = dynamo.config.accumulated_recompile_limit = MOST_COMPILED
        torch._functorch.config.donated_buffer = False
