"""The tile sizes, warps and pipeline stages of each kernel.

Tuned entries come first: `attnbench tune` measures them on a GPU and keeps them in the user's cache; entries for all
users are shipped in configurations.json. `rule` applies if neither has an entry. No other file of the package
contains a tile size.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import triton

from attnbench.problem import Case

Kernel = Literal["forward", "dk_dv", "dq", "delta", "bias_gradient", "decode"]
WALKING: tuple[Kernel, ...] = ("forward", "dk_dv", "dq")  # they take the tiles of a schedule, and are tuned
# Of one program, by compute capability.
SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
AMD = (8, 0)  # AMD's GPUs take this rule: no copy engine, tiles as for Ampere
SHIPPED = Path(__file__).parent / "configurations.json"
# The keys and values of 3 waves are 26 MB at head dim 128, half of Hopper's L2; tools/triton_tails.py counts idle time.
WAVES = 3
SPARSE = 0.25  # share of allowed pairs below which a mask counts as sparse
PLAIN_MASKS = frozenset({"full", "causal", "causal(top_left)", "window", "prefix", "global"})


@dataclass(frozen=True)
class Configuration:
    """A tile of block_q queries x block_k keys, the warps of a program, the stages of its pipelined loads."""

    block_q: int
    block_k: int
    warps: int
    stages: int
    descriptors: bool = False  # the copy engine (TMA) fetches tiles if the tensors allow it
    together: bool = True  # dK and dV in one launch; else one each, if their accumulators do not fit together
    waves: int = (
        WAVES  # heads that fill the GPU this many times are taken together, their longest tiles first
    )
    persistent: int = (
        0  # programs per multiprocessor that stay and walk over the tiles; 0: one program per tile
    )

    def __str__(self) -> str:
        """In words, e.g. `128x64, 8 warps, 2 stages, TMA`."""
        sizes = f"{self.block_q}x{self.block_k}" if self.block_k else str(self.block_q)
        ways = [way for way, on in (("TMA", self.descriptors), ("persistent", self.persistent)) if on]
        return ", ".join([sizes, f"{self.warps} warps", f"{self.stages} stages", *ways])


def interpreted(kernel: Kernel, case: Case) -> Configuration:
    """The tile in the interpreter: three or four per side, so that every kind of block occurs at any length."""

    def block(length: int) -> int:
        return min(128, max(16, triton.next_power_of_2(-(-length // 4))))

    if kernel == "decode":
        return Configuration(64, max(16, block(case.k_len) // 4), warps=4, stages=1)
    return Configuration(block(case.q_len), block(case.k_len), warps=4, stages=1)


def key(kernel: Kernel, case: Case, capability: tuple[int, int]) -> str:
    """The key of a tuned entry, e.g. `sm_90/forward/bf16/d128/dense/plain`; the last part is `code_of`."""
    columns = max(case.head_dim, case.v_dim)
    density = case.pairs / (case.batch * case.q_heads * case.q_len * case.k_len)
    kind = "sparse" if density < SPARSE else "dense"
    return f"sm_{capability[0]}{capability[1]}/{kernel}/{case.dtype}/d{columns}/{kind}/{code_of(case)}"


def code_of(case: Case) -> str:
    """What takes registers beside the products: "changed" scores, a "masked" lookup or combination, or "plain".

    The fastest tiles of plain code spill or do not fit with either.
    """
    if any(score.kind != "sink" for score in case.scores):
        return "changed"
    return "plain" if case.mask.kinds <= PLAIN_MASKS and not case.mask.is_combined else "masked"


def cache_file() -> Path:
    """The file in which `attnbench tune` keeps the entries of this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "attnbench" / "triton" / "tuned.json"


def entries_of(path: Path) -> dict[str, dict[str, Any]]:
    """The tuned entries of a file, fields by name; empty if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@cache
def tuned(here: bool = True) -> dict[str, Configuration]:
    """The shipped entries, overridden by those of this machine if `here`."""
    merged: dict[str, Configuration] = {}
    for path in (SHIPPED, cache_file()) if here else (SHIPPED,):
        merged |= {name: Configuration(**fields) for name, fields in entries_of(path).items()}
    return merged


def chosen(kernel: Kernel, case: Case, capability: tuple[int, int], here: bool = True) -> Configuration:
    """What runs on a GPU of this compute capability: the tuned entry, or the rule.

    Not `here`: ignore what was tuned on this machine, for records that are committed or compared.
    """
    configuration = tuned(here).get(key(kernel, case, capability)) or rule(kernel, case, capability)
    # A decode's block of queries is all of them, whatever block_q says.
    return configuration if kernel == "decode" else _fitted(configuration, case)


def rule(kernel: Kernel, case: Case, capability: tuple[int, int]) -> Configuration:
    """What runs without a tuned entry: the widest tiles whose kernel compiles without a spill (compiled.json).

    The limit is registers. A program of 8 warps has 255 per thread: 128 queries x 128 columns of float32 take 64 of
    them, the scores of a tile another block_q * block_k / 256 (twice in the backward). Hopper's copy engine saves
    those for addresses. With changed scores or a lookup, dK and dV take narrower tiles. float32 has no matrix unit
    (IEEE products): small tiles.
    """
    columns = max(triton.next_power_of_2(max(case.head_dim, case.v_dim)), 64)
    if kernel == "delta":
        return Configuration(16384 // columns, 0, 4, 1)
    if case.dtype == "fp32":
        return Configuration(64 if kernel == "decode" else 32, 32, 8, 1)
    plain = code_of(case) == "plain"
    if kernel == "decode":
        # The rows are the case's; what matters is how many keys are being loaded at once.
        return Configuration(64, 64 if columns <= 128 else 32, 4, 2, descriptors=capability >= (9, 0))
    if kernel == "bias_gradient":
        return Configuration(64, 64, 8, 1)
    if capability >= (9, 0):
        tile = _hopper(kernel, columns, plain)
        if capability >= (10, 0) and kernel == "dk_dv" and not plain:
            return replace(tile, block_k=64)
        odd = triton.next_power_of_2(case.head_dim) != case.head_dim
        return replace(tile, block_k=64) if capability >= (10, 0) and odd else tile
    return _ampere(kernel, columns, plain)


def as_persistent(tile: Configuration, kernel: Kernel, case: Case) -> Configuration:
    """The same with one persistent program per multiprocessor.

    Its walk over tiles takes about 30 more registers per thread: half the queries if these are not free.
    """
    halved = kernel == "dk_dv" or (kernel == "forward" and code_of(case) != "plain")
    return replace(tile, persistent=1, block_q=max(16, tile.block_q // (2 if halved else 1)))


def _hopper(kernel: Kernel, columns: int, plain: bool) -> Configuration:
    if kernel == "forward":
        shape = {64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)}[columns]
    elif kernel == "dk_dv":
        wide = (64, 128, 8, 2)
        shape = {64: wide, 128: wide if plain else (32, 128, 8, 2), 256: (16, 128, 8, 2)}[columns]
    else:
        shape = {64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (128, 32, 8, 2)}[columns]
    return Configuration(*shape, descriptors=True, together=columns <= 128)


def _ampere(kernel: Kernel, columns: int, plain: bool) -> Configuration:
    if kernel == "forward":
        shape = {64: (128, 64, 8, 3), 128: (128, 64, 8, 2) if plain else (64, 64, 4, 2), 256: (64, 32, 8, 2)}[
            columns
        ]
    elif kernel == "dk_dv":
        shape = {64: (64, 64, 4, 2) if plain else (32, 64, 4, 2), 128: (32, 64, 8, 2), 256: (32, 64, 8, 2)}[
            columns
        ]
    else:
        shape = {64: (64, 64, 4, 2) if plain else (64, 32, 4, 2), 128: (128, 32, 8, 2), 256: (64, 16, 8, 2)}[
            columns
        ]
    return Configuration(*shape, together=columns <= 128)


def _fitted(tile: Configuration, case: Case) -> Configuration:
    """The tile, no longer than the sequences need."""
    return replace(
        tile,
        block_q=min(tile.block_q, max(16, triton.next_power_of_2(case.q_len))),
        block_k=min(tile.block_k, max(16, triton.next_power_of_2(case.k_len))),
    )
