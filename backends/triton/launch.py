"""A Plan turns a case into kernel launches: it holds what depends on the case alone; calls take tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from attnbench.problem import BlockMap, Case, Score

from .backward import delta_kernel, dk_dv_kernel, dq_kernel
from .changes import Changes, Fixed, bind, fix
from .configurations import AMD, Configuration, Kernel, chosen, interpreted
from .decode import combine_kernel, decode_kernel, splits
from .forward import forward_kernel
from .layout import blocks_of, empty_like_with, fetched, within_reach
from .lowering import LoweredMask, Walk, lower, walk_over_all, walk_over_keys, walk_over_queries
from .schedule import Schedule, schedule
from .tiles import chunks

INTERPRETED_PROCESSORS, COMPILED_PROCESSORS = 4, 132  # without a GPU
COMBINE = Configuration(1, 0, 4, 1)


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel with its arguments, in the order of its signature, and its compile-time constants by name."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    tile: Configuration

    @property
    def name(self) -> str:
        """The kernel's name without its ending: forward, dk_dv, decode, ..."""
        return self.kernel.__name__.removesuffix("_kernel")

    def run(self) -> None:
        """Put it on the current stream (or interpret it)."""
        # The interpreter's NumPy warns if exp2 overflows; a GPU gives inf, which the mask drops.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._run()

    def _run(self) -> None:
        self.kernel[(self.programs,)](
            *self.arguments, **self.constants, num_warps=self.tile.warps, num_stages=self.tile.stages
        )


@dataclass
class Plan:
    """A case on one device: its mask lowered, its tiles chosen, its walks built; reused by all calls.

    The other fields are for tests, tuning and compiling ahead of time: `tiles` replaces the chosen tile of a kernel,
    `start` the running of a launch, `processors` the device's number of multiprocessors.
    """

    case: Case
    device: torch.device
    tiles: Callable[[Kernel], Configuration] | None = None
    start: Callable[[Launch], None] = Launch.run
    processors: int = 0
    mask: LoweredMask = field(init=False)
    fixed: Fixed = field(init=False)
    _configurations: dict[Kernel, Configuration] = field(init=False, default_factory=dict)
    _maps: dict[tuple[int, int], BlockMap] = field(init=False, default_factory=dict)
    _walks: dict[tuple[str, int, int], Walk] = field(init=False, default_factory=dict)
    _schedules: dict[tuple[str, Configuration], Schedule] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.processors = self.processors or _processors(self.device)
        self.mask = lower(self.case.mask, self.case.extent, self.device)
        self.fixed = fix(self.case, self.device)

    def bind(self, scores: tuple[Score, ...]) -> Changes:
        """The score changes with their tensors, as calls take them."""
        return bind(self.fixed, scores)

    def configuration(self, kernel: Kernel) -> Configuration:
        """The tile of a kernel on this device; chosen once, because every call needs it."""
        if kernel not in self._configurations:
            self._configurations[kernel] = self._chosen(kernel)
        return self._configurations[kernel]

    def _chosen(self, kernel: Kernel) -> Configuration:
        if self.tiles is not None:
            return self.tiles(kernel)
        if self.device.type != "cuda":
            return interpreted(kernel, self.case)
        capability = AMD if torch.version.hip else torch.cuda.get_device_capability(self.device)
        return chosen(kernel, self.case, capability)

    @cached_property
    def splits(self) -> int:
        """The number of parts into which the forward splits the keys; 1: none."""
        return splits(self.case, self.configuration("decode").block_k, self.processors)

    def walk(self, over: str, tile: Configuration) -> Walk:
        """The blocks to visit, over "keys", "queries" or "all" keys (split-KV); built once per tile size."""
        at = (over, tile.block_q, tile.block_k)
        if at not in self._walks:
            size = (tile.block_q, tile.block_k)
            if size not in self._maps:
                self._maps[size] = self.mask.mask.block_map(self.case.extent, *size)
            build = {"keys": walk_over_keys, "queries": walk_over_queries, "all": walk_over_all}[over]
            self._walks[at] = build(self._maps[size], self.case.extent, self.device)
        return self._walks[at]

    def work(self, over: str, tile: Configuration) -> np.ndarray:
        """How many blocks each tile of a walk over "keys" or "queries" visits: [B, heads, blocks of a head]."""
        case, work = self.case, self.walk(over, tile).work
        work = np.broadcast_to(work, (case.batch, case.q_heads, work.shape[2]))
        if over == "queries":  # the query heads of a group are summed in one program
            work = work.reshape(case.batch, case.kv_heads, case.group, -1).sum(axis=2)
        return work

    def schedule(self, over: str, tile: Configuration) -> Schedule:
        """The tiles of each program in a walk over "keys" or "queries"; built once per configuration."""
        if (over, tile) not in self._schedules:
            made = schedule(
                self.work(over, tile),
                tile.waves * self.processors,
                tile.persistent * self.processors or None,
                self.device,
            )
            self._schedules[over, tile] = made
        return self._schedules[over, tile]

    def build(self) -> None:
        """Build all that calls need, so that a call only launches (and a CUDA graph can capture it)."""
        if self.splits > 1:
            self.walk("all", self.configuration("decode"))
        else:
            self.schedule("keys", self.configuration("forward"))
        if self.case.needs_backward:
            self.schedule("queries", self.configuration("dk_dv"))
            self.schedule("keys", self.configuration("dq"))
            if any(score.kind in ("bias", "relative") for score in self.case.scores):
                self.walk("keys", self.configuration("bias_gradient"))

    def _widths(self) -> dict[str, int]:
        d0, d1 = chunks(self.case.head_dim)
        v0, v1 = chunks(self.case.v_dim)
        return {"D": self.case.head_dim, "D0": d0, "D1": d1, "DV": self.case.v_dim, "DV0": v0, "DV1": v1}

    def constants(self, tile: Configuration, changes: Changes) -> dict[str, Any]:
        return {
            "MASK": self.mask.function,
            # A scale of 0 or below would turn the maximum of the products into their minimum.
            "SCALE_IN_EXP": changes.are_none and self.case.softmax_scale > 0,
            **self._widths(),
            "BLOCK_Q": tile.block_q,
            "BLOCK_K": tile.block_k,
        }

    @property
    def sizes(self) -> tuple[Any, ...]:
        case = self.case
        return (case.q_heads, case.group, case.q_len, case.k_len, case.softmax_scale)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
        """out [B, H, Q, Dv] and lse float32 [B, H, Q]; out has q's memory layout."""
        case = self.case
        q, k, v = map(within_reach, (q, k, v))
        out = empty_like_with(q, case.v_dim)
        lse = torch.empty(case.batch, case.q_heads, case.q_len, dtype=torch.float32, device=q.device)
        parts = self.splits
        if parts > 1:
            self._decode(q, k, v, changes, out, lse, parts)
            return out, lse
        tile = self.configuration("forward")
        walk, tiles = self.walk("keys", tile), self.schedule("keys", tile)
        arguments = (
            *self.read((q, k, v), tile), out, lse, q.stride(), k.stride(), v.stride(), out.stride(), *self.sizes,
            changes.arguments, changes.sink, self.mask.table, walk.arguments, tiles.arguments,
        )  # fmt: skip
        self.start(Launch(forward_kernel, tiles.programs, arguments, self.constants(tile, changes), tile))
        return out, lse

    def _decode(
        self, q: Tensor, k: Tensor, v: Tensor, changes: Changes, out: Tensor, lse: Tensor, parts: int
    ) -> None:
        """Split-KV into out and lse: the parts, then their weighted sum."""
        case = self.case
        tile = self.configuration("decode")
        walk = self.walk("all", tile)
        part = torch.empty((parts, *out.shape), dtype=torch.float32, device=q.device)
        part_lse = torch.empty((parts, *lse.shape), dtype=torch.float32, device=q.device)
        _, k_read, v_read = self.read((q, k, v), tile)
        arguments: tuple[Any, ...] = (
            q, k_read, v_read, part, part_lse, q.stride(), k.stride(), v.stride(), parts, *self.sizes,
            changes.arguments, self.mask.table, walk.arguments,
        )  # fmt: skip
        constants = self.constants(tile, changes)
        del constants["BLOCK_Q"]
        constants["ROWS"] = max(16, triton.next_power_of_2(case.group * case.q_len))
        self.start(Launch(decode_kernel, parts * case.batch * case.kv_heads, arguments, constants, tile))
        count = case.batch * case.q_heads * case.q_len
        constants = {"DV": case.v_dim, "COLUMNS": max(16, triton.next_power_of_2(case.v_dim))}
        constants |= {"SPLITS": triton.next_power_of_2(parts)}
        arguments = (
            part,
            part_lse,
            out,
            lse,
            out.stride(),
            changes.sink,
            parts,
            count,
            case.q_heads,
            case.q_len,
        )
        self.start(Launch(combine_kernel, count, arguments, constants, COMBINE))

    @staticmethod
    def read(operands: tuple[Tensor, ...], tile: Configuration) -> list[Any]:
        """q, k, v (and dO) as the kernels take them."""
        rows = (tile.block_q, tile.block_k, tile.block_k, tile.block_q)
        return [fetched(x, n, tile) for x, n in zip(operands, rows, strict=False)]

    def backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        changes: Changes,
        out: Tensor,
        lse: Tensor,
        dout: Tensor,
        dlse: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dq, dk, dv in the shapes of q, k, v, and delta float32 [B, H, Q]; dlse is a gradient of the LSE itself."""
        case = self.case
        q, k, v, dout = map(within_reach, (q, k, v, dout))
        delta = torch.empty_like(lse)
        tile = self.configuration("delta")
        widths = self._widths()
        constants: dict[str, Any] = {name: widths[name] for name in ("DV", "DV0", "DV1")} | {
            "BLOCK_Q": tile.block_q
        }
        arguments: tuple[Any, ...] = (out, dout, delta, out.stride(), dout.stride(), case.q_heads, case.q_len)
        programs = blocks_of(case.q_len, tile.block_q) * case.batch * case.q_heads
        self.start(Launch(delta_kernel, programs, arguments, constants, tile))
        if dlse is not None:
            # dL/dlse adds P * dlse to dS = P * (dP - delta).
            delta = delta - dlse

        dq, dk, dv = (
            empty_like_with(q, case.head_dim),
            empty_like_with(k, case.head_dim),
            empty_like_with(v, case.v_dim),
        )
        operands = (q, k, v, dout)
        strides = tuple(x.stride() for x in (q, k, v, dout))
        tile = self.configuration("dk_dv")
        walk, tiles = self.walk("queries", tile), self.schedule("queries", tile)
        arguments = (
            *self.read(operands, tile), lse, delta, dk, dv, *strides, dk.stride(), dv.stride(), *self.sizes,
            changes.arguments, self.mask.table, walk.arguments, tiles.arguments,
        )  # fmt: skip
        common = self.constants(tile, changes)
        for with_dk, with_dv in [(True, True)] if tile.together else [(True, False), (False, True)]:
            constants = common | {"WITH_DK": with_dk, "WITH_DV": with_dv}
            self.start(Launch(dk_dv_kernel, tiles.programs, arguments, constants, tile))

        tile = self.configuration("dq")
        walk, tiles = self.walk("keys", tile), self.schedule("keys", tile)
        arguments = (
            *self.read(operands, tile), lse, delta, dq, *strides, dq.stride(), *self.sizes,
            changes.arguments, self.mask.table, walk.arguments, tiles.arguments,
        )  # fmt: skip
        self.start(Launch(dq_kernel, tiles.programs, arguments, self.constants(tile, changes), tile))
        return dq, dk, dv, delta


def _processors(device: torch.device) -> int:
    """The multiprocessors to fill; a few in the interpreter, so that long keys are split as on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return COMPILED_PROCESSORS if device.type == "meta" else INTERPRETED_PROCESSORS
