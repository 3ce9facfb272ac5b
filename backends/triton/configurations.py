"""Which tile sizes, warps and pipeline stages does each kernel run with?

Tuned entries come first: `attnbench tune` measures them on a GPU and keeps them in the user's cache, and what was
measured for everybody is shipped in configurations.json. `rule` says what runs where both are silent. Nothing
else in the package types in a tile size.
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
AMD = (8, 0)  # which rule AMD's GPUs take: no copy engine, tiles as for Ampere
SHIPPED = Path(__file__).parent / "configurations.json"
# The keys and values of 3 waves are 26 MB at head dim 128, half of Hopper's L2 cache; tails.py counts what stays idle.
WAVES = 3
SPARSE = 0.25  # share of allowed pairs below which a mask counts as sparse
PLAIN_MASKS = frozenset({"full", "causal", "causal(top_left)", "window", "prefix", "global"})


@dataclass(frozen=True)
class Configuration:
    """block_q queries x block_k keys a tile; warps of a program; stages that loads are issued ahead."""

    block_q: int
    block_k: int
    warps: int
    stages: int
    descriptors: bool = False  # tiles are fetched by the copy engine (TMA) where tensors allow it
    together: bool = True  # dK and dV in one launch; else one each, for accumulators that do not fit together
    waves: int = WAVES  # heads that fill the GPU so often are taken together, their longest tiles first
    persistent: int = 0  # programs a multiprocessor that stay and walk over the tiles; 0: a program a tile

    def __str__(self) -> str:
        """In words, e.g. `128x64, 8 warps, 2 stages, TMA`."""
        sizes = f"{self.block_q}x{self.block_k}" if self.block_k else str(self.block_q)
        ways = [way for way, on in (("TMA", self.descriptors), ("persistent", self.persistent)) if on]
        return ", ".join([sizes, f"{self.warps} warps", f"{self.stages} stages", *ways])


def interpreted(kernel: Kernel, case: Case) -> Configuration:
    """The tile in the interpreter: three or four a side, so that every kind of block occurs at any length."""

    def block(length: int) -> int:
        return min(128, max(16, triton.next_power_of_2(-(-length // 4))))

    if kernel == "decode":
        return Configuration(64, max(16, block(case.k_len) // 4), warps=4, stages=1)
    return Configuration(block(case.q_len), block(case.k_len), warps=4, stages=1)


def key(kernel: Kernel, case: Case, capability: tuple[int, int]) -> str:
    """What a tuned entry is for, e.g. `sm_90/forward/bf16/d128/dense/plain`; `code_of` says what is last."""
    columns = max(case.head_dim, case.v_dim)
    density = case.pairs / (case.batch * case.q_heads * case.q_len * case.k_len)
    kind = "sparse" if density < SPARSE else "dense"
    return f"sm_{capability[0]}{capability[1]}/{kernel}/{case.dtype}/d{columns}/{kind}/{code_of(case)}"


def code_of(case: Case) -> str:
    """What takes registers beside the products: scores that are changed, a mask that is combined or looked up, or none.

    Tiles that are fastest without them spill with them, or do not fit.
    """
    if any(score.kind != "sink" for score in case.scores):
        return "changed"
    return "plain" if case.mask.kinds <= PLAIN_MASKS and not case.mask.is_combined else "masked"


def cache_file() -> Path:
    """Where `attnbench tune` keeps what it measured on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "attnbench" / "triton" / "tuned.json"


def entries_of(path: Path) -> dict[str, dict[str, Any]]:
    """The tuned entries of a file, fields by name; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@cache
def tuned(here: bool = True) -> dict[str, Configuration]:
    """The tuned entries: those shipped, and over them those of this machine; not `here`: those shipped."""
    found: dict[str, Configuration] = {}
    for path in (SHIPPED, cache_file()) if here else (SHIPPED,):
        found |= {name: Configuration(**fields) for name, fields in entries_of(path).items()}
    return found


def chosen(kernel: Kernel, case: Case, capability: tuple[int, int], here: bool = True) -> Configuration:
    """What runs on a GPU of this compute capability: the tuned entry, or the rule.

    Not `here`: on any machine, whatever was tuned on this one. What is written down or compared is of that kind.
    """
    found = tuned(here).get(key(kernel, case, capability)) or rule(kernel, case, capability)
    # A decode's block of queries is the whole of them, whatever its rows are.
    return found if kernel == "decode" else _fitted(found, case)


def rule(kernel: Kernel, case: Case, capability: tuple[int, int]) -> Configuration:
    """What runs where nothing was tuned: the widest tiles whose kernel compiles without a spill (compiled.json).

    The limit is registers. A program of 8 warps has 255 a thread: 128 queries x 128 columns of float32
    take 64 of them, the scores of a tile another block_q * block_k / 256 (twice in the backward). The copy
    engine of Hopper saves those for addresses. Where scores are changed or a table is read, dK and dV take
    narrower tiles. float32 has no matrix unit here (IEEE products): small tiles.
    """
    columns = max(triton.next_power_of_2(max(case.head_dim, case.v_dim)), 64)
    if kernel == "delta":
        return Configuration(16384 // columns, 0, 4, 1)
    if case.dtype == "fp32":
        return Configuration(64 if kernel == "decode" else 32, 32, 8, 1)
    plain = code_of(case) == "plain"
    if kernel == "decode":
        # Rows are those of the case; what matters is how many keys are on their way from memory at once.
        return Configuration(64, 64 if columns <= 128 else 32, 4, 2, descriptors=capability >= (9, 0))
    if kernel == "bias_gradient":
        return Configuration(64, 64, 8, 1)
    if capability >= (9, 0):
        found = _hopper(kernel, columns, plain)
        if capability >= (10, 0) and kernel == "dk_dv" and not plain:
            return replace(found, block_k=64)
        odd = triton.next_power_of_2(case.head_dim) != case.head_dim
        return replace(found, block_k=64) if capability >= (10, 0) and odd else found
    return _ampere(kernel, columns, plain)


def staying(found: Configuration, kernel: Kernel, case: Case) -> Configuration:
    """The same with a program a multiprocessor that stays.

    Its walk over tiles takes some 30 registers a thread more: half the queries where they are not left.
    """
    halved = kernel == "dk_dv" or (kernel == "forward" and code_of(case) != "plain")
    return replace(found, persistent=1, block_q=max(16, found.block_q // (2 if halved else 1)))


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


def _fitted(found: Configuration, case: Case) -> Configuration:
    """No tile longer than the sequence needs."""
    return replace(
        found,
        block_q=min(found.block_q, max(16, triton.next_power_of_2(case.q_len))),
        block_k=min(found.block_k, max(16, triton.next_power_of_2(case.k_len))),
    )
