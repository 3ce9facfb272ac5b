"""attnbench's own Triton attention: every mask and score change, both directions, gradients without a race.

Without a GPU the same kernels run in Triton's interpreter, in float32 inside (its bf16 is wrong), too slow to time.
"""

from __future__ import annotations

import os
import sys
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from attnbench.backend import (
    REPEATABLE,
    Backend,
    Capabilities,
    Gradients,
    Output,
    Prepared,
    Refusal,
    declared_refusal,
)
from attnbench.backend.conflicts import interpreter_conflict
from attnbench.errors import BackendUnavailable
from attnbench.problem import Case, Inputs

REQUIRES = {"triton": "pip install 'attnbench[triton]'"}

ON_GPU = torch.cuda.is_available()
# Set by ahead_of_time.py, which compiles the kernels for GPUs that are not here.
COMPILES = os.environ.get("ATTNBENCH_TRITON") == "compile"
if not ON_GPU and not COMPILES:
    # Triton decides at import whether its own library is interpreted.
    if "triton" in sys.modules and not os.environ.get("TRITON_INTERPRET"):
        from ._interpreter import interpret_triton

        interpret_triton()
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402

from .changes import Changes  # noqa: E402
from .configurations import Kernel, interpreted  # noqa: E402
from .launch import Plan  # noqa: E402
from .score_gradients import score_gradients  # noqa: E402

MOST_INTERPRETED_SECONDS = 12.0
# Measured on one core: tiles of 16 to 128 a side take about the same, mostly the interpreter's overhead.
SECONDS_PER_PROGRAM, SECONDS_PER_TILE, SECONDS_PER_PAIR_AND_DIM = 5e-3, 9e-3, 1e-9
BACKWARD_FACTOR, SCORES_FACTOR = 3.6, 1.5  # of the forward's time: with a backward; with changed scores


class TritonPrepared(Prepared):
    """One case: the plan is made here, off the clock; a call only launches kernels."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        super().__init__()
        self.case = case
        self._interprets = inputs.device.type != "cuda"
        with self.step("mask"):
            self.plan = Plan(case, inputs.device)
            self.plan.build()
        # The inputs themselves, not copies: a call reads their values at that time.
        self._inputs = inputs
        self._saved: tuple[Tensor, Tensor] | None = None
        if self._interprets:
            self.kernel = f"triton {triton.__version__} interpreter, float32 inside"
        else:
            with self.step("compile"):
                self.forward()
                torch.cuda.synchronize(inputs.device)
            ran: Kernel = "decode" if self.plan.splits > 1 else "forward"
            self.kernel = f"{ran}_kernel {self.plan.configuration(ran)}"

    def _computed(self, x: Tensor) -> Tensor:
        """The tensor as the kernels take it: in float32 in the interpreter, itself on a GPU."""
        return x.detach().float() if self._interprets else x.detach()

    def _operands(self) -> tuple[Tensor, Tensor, Tensor, Changes]:
        inputs = self._inputs
        bound = (s if s.tensor is None else s.bound(self._computed(s.tensor)) for s in inputs.scores)
        q, k, v = (self._computed(x) for x in (inputs.q, inputs.k, inputs.v))
        return q, k, v, self.plan.bind(tuple(bound))

    def forward(self) -> Output:
        out, lse = self.plan.forward(*self._operands())
        out = out.to(self._inputs.q.dtype)  # the interpreter's is float32
        self._saved = (out, lse) if self.case.needs_backward else None
        return Output(out, lse)

    def backward(self, dout: Tensor) -> Gradients:
        assert self._saved is not None, "backward needs a forward before it"
        q, k, v, changes = self._operands()
        out, lse = (self._computed(x) for x in self._saved)
        dout = self._computed(dout)
        dq, dk, dv, delta = self.plan.backward(q, k, v, changes, out, lse, dout)
        scores = score_gradients(self.plan, q, k, v, changes, lse, delta, dout)
        dtype = self._inputs.q.dtype
        return Gradients(
            dq.to(dtype), dk.to(dtype), dv.to(dtype), {name: x.to(dtype) for name, x in scores.items()}
        )

    def drop_graph(self) -> None:
        self._saved = None

    def on(self, q: Tensor, k: Tensor, v: Tensor) -> TritonPrepared | None:
        if self.case.scores:  # they carry the tensors of the call that they were made for
            return None
        other = copy(self)
        other._inputs, other._saved = replace(self._inputs, q=q, k=k, v=v, dout=None), None
        return other


class TritonBackend(Backend):
    """The kernels compiled on a GPU, and interpreted without one."""

    capabilities = Capabilities(
        head_dims=(1, 256, 1),
        architectures=(8, 0),
        varlen=True,
        claims=REPEATABLE,  # nothing is added atomically
        contract="flash_splits",  # decode.py merges splits of the keys by their LSE
        timed=ON_GPU,
        compiles=ON_GPU,
        source="https://arxiv.org/abs/2307.08691",
    )

    def version(self) -> str:
        return f"triton {triton.__version__}"

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        # Masks are compiled from their predicates, so kinds that are not declared are taken as well.
        any_mask = replace(self.capabilities, masks=self.capabilities.masks | case.mask.kinds)
        refusal = declared_refusal(any_mask, case, device)
        if refusal is not None:
            return refusal
        if device.startswith("cuda") and not ON_GPU:
            return Refusal("there is no CUDA device here; on a CPU it runs in Triton's interpreter")
        if device.startswith("cuda"):
            return None
        conflict = interpreter_conflict(triton.__version__, np.__version__)
        return Refusal(conflict) if conflict else _too_slow(case)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        if ON_GPU and inputs.device.type == "cpu":
            raise BackendUnavailable(
                "this process compiles for its GPU; set CUDA_VISIBLE_DEVICES= to interpret on the CPU"
            )
        return TritonPrepared(case, inputs)


def _too_slow(case: Case) -> Refusal | None:
    """The refusal of a case that the interpreter would not finish in time, with the estimated time."""
    tile = interpreted("forward", case)
    programs = case.batch * case.q_heads * -(-case.q_len // tile.block_q)
    area = tile.block_q * tile.block_k
    # The allowed pairs fill at least so many tiles; the map is made only if these are few.
    seconds = _interpreted_seconds(case, programs, -(-case.pairs // area), area)
    if seconds <= MOST_INTERPRETED_SECONDS:
        blocks = case.mask.block_map(case.extent, tile.block_q, tile.block_k)
        visited = int(blocks.partial.tiles.sum() + blocks.full.tiles.sum())
        visited *= (case.batch // blocks.batch) * (case.q_heads // blocks.heads)
        seconds = _interpreted_seconds(case, programs, visited, area)
    if seconds <= MOST_INTERPRETED_SECONDS:
        return None
    return Refusal(
        f"without a GPU it runs in Triton's interpreter, where this case takes about {seconds:.0f} s (limit: "
        f"{MOST_INTERPRETED_SECONDS:.0f} s); use shorter lengths or fewer heads"
    )


def _interpreted_seconds(case: Case, programs: int, tiles: int, area: int) -> float:
    products = tiles * area * (case.head_dim + case.v_dim)
    seconds = programs * SECONDS_PER_PROGRAM + tiles * SECONDS_PER_TILE + products * SECONDS_PER_PAIR_AND_DIM
    seconds *= SCORES_FACTOR if case.scores else 1.0
    return seconds * (BACKWARD_FACTOR if case.needs_backward else 1.0)


backend = TritonBackend()
