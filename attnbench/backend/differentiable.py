"""A differentiable computation as a prepared case, and a plain function as a backend: gradients by torch's autograd."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from copy import copy
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from attnbench.backend.interface import Backend, Capabilities, Gradients, Output, Prepared
from attnbench.errors import AttnbenchError
from attnbench.problem import Case, Inputs, Score

if TYPE_CHECKING:
    from torch import Tensor

MOST_COMPILED = 1 << 14  # versions of one function that torch may compile


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
