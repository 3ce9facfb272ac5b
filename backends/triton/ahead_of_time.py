"""Compiles the kernels for GPUs that are not here and counts registers, spills, shared memory, matrix instructions.

Runs as a separate program (`attnbench compile triton`, `python -m attnbench_backends.triton.ahead_of_time`), because
a process decides only once whether Triton compiles or interprets.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from attnbench.problem import (
    ALiBi,
    Bias,
    Case,
    Causal,
    Documents,
    Full,
    SlidingWindow,
    Softcap,
    torch_dtype,
)

from .configurations import AMD, SHARED_BYTES, WALKING, Configuration, Kernel, as_persistent, chosen
from .launch import Launch, Plan
from .score_gradients import score_gradients

SHARED_AMD = 65_536
TABLE = Path(__file__).parent / "compiled.json"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}
MATRIX_INSTRUCTIONS = r"wgmma\.mma_async|tcgen05\.mma\.|mma\.sync"


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one architecture. Register counts differ between Triton versions, hence `triton`."""

    arch: str
    kernel: str
    specimen: str
    config: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    shared_limit: int
    matrix_instructions: int
    instructions: int
    triton: str


@dataclass(frozen=True)
class Specimen:
    """A case whose kernels are compiled, with the tiles of the rule or those of persistent programs."""

    case: Case
    persistent: bool = False

    def tiles(self, capability: tuple[int, int]) -> Callable[[Kernel], Configuration]:
        """The tile of each kernel on a GPU of this compute capability."""

        def tile(kernel: Kernel) -> Configuration:
            configuration = chosen(kernel, self.case, capability, here=False)
            if self.persistent and kernel in WALKING:
                return as_persistent(configuration, kernel, self.case)
            return configuration

        return tile


def specimens() -> dict[str, Specimen]:
    """The compiled cases: what users run, and one for each part that changes the code."""
    plain = Case(
        batch=4, q_len=4096, k_len=4096, q_heads=16, head_dim=128, dtype="bf16", mask=Causal(), direction="fwd_bwd"
    )  # fmt: skip
    narrow = replace(plain, head_dim=64, v_dim=64)
    cases = {
        "bf16-d128-causal": plain,
        "bf16-d128-full": replace(plain, mask=Full()),
        "bf16-d64-causal": narrow,
        "bf16-d256-causal": replace(plain, head_dim=256, v_dim=256),
        "bf16-d192:128-causal": replace(plain, head_dim=192, v_dim=128),
        "bf16-d96-causal": replace(plain, head_dim=96, v_dim=96),
        "bf16-d128-gqa-window": replace(plain, mask=Causal() & SlidingWindow(1023, 0), kv_heads=4),
        "bf16-d128-documents": replace(plain, mask=Causal() & Documents((1000, 96, 3000))),
        "bf16-d128-causal-softcap": replace(plain, scores=(Softcap(50.0),)),
        "bf16-d128-causal-alibi": replace(plain, scores=(ALiBi(),)),
        "bf16-d64-full-bias": replace(narrow, mask=Full(), scores=(Bias("hqk"),)),
        "bf16-d128-decode": replace(
            plain, batch=1, q_len=1, k_len=65536, q_heads=32, kv_heads=8, direction="fwd"
        ),
        "fp16-d128-causal": replace(plain, dtype="fp16"),
        "fp32-d64-causal": replace(narrow, dtype="fp32"),
    }
    also_persistent = ("bf16-d128-causal", "bf16-d64-causal", "bf16-d128-documents")
    walking = {f"{name}-persistent": Specimen(cases[name], persistent=True) for name in also_persistent}
    return {name: Specimen(case) for name, case in cases.items()} | walking


def launches(
    case: Case, capability: tuple[int, int], tiles: Callable[[Kernel], Configuration] | None = None
) -> list[Launch]:
    """The launches of a forward and a backward on tensors without memory; none of them runs."""
    recorded: list[Launch] = []
    meta = torch.device("meta")
    dtype = torch_dtype(case.dtype)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=meta)

    q = empty(case.batch, case.q_heads, case.q_len, case.head_dim)
    k = empty(case.batch, case.kv_heads, case.k_len, case.head_dim)
    v = empty(case.batch, case.kv_heads, case.k_len, case.v_dim)
    shapes = [(score, score.tensor_shape(case.extent)) for score in case.scores]
    scores = tuple(score if shape is None else score.bound(empty(*shape)) for score, shape in shapes)
    plan = Plan(case, meta, tiles or Specimen(case).tiles(capability), recorded.append)
    changes = plan.bind(scores)
    out, lse = plan.forward(q, k, v, changes)
    if case.needs_backward:
        *_, delta = plan.backward(q, k, v, changes, out, lse, out)
        score_gradients(plan, q, k, v, changes, lse, delta, out)
    return recorded


def _kind(value: Any, place: tuple[int, ...], constants: dict[Any, Any], aligned: dict[Any, Any]) -> Any:
    """The type of an argument in Triton's signature, specialised as its launcher does."""
    if isinstance(value, tuple):
        parts = [_kind(part, (*place, n), constants, aligned) for n, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{POINTERS[value.base.dtype][1:]}{list(value.block_shape)}>"
    if value is None or (isinstance(value, int) and value == 1):
        constants[place] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        aligned[place] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype]
    if isinstance(value, int):
        if value % 16 == 0:
            aligned[place] = [["tt.divisibility", 16]]
        return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
    return "fp32"


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """Compile a launch for a target, without a device."""
    constants: dict[Any, Any] = {}
    aligned: dict[Any, Any] = {}
    signature: dict[str, Any] = {}
    for n, name in enumerate(launch.kernel.arg_names):
        if n < len(launch.arguments):
            signature[name] = _kind(launch.arguments[n], (n,), constants, aligned)
        else:
            signature[name] = "constexpr"
            constants[(n,)] = launch.constants[name]
    source = ASTSource(launch.kernel, signature, constants, aligned)
    options = {"num_warps": launch.tile.warps, "num_stages": launch.tile.stages}
    return triton.compile(source, target=target, options=options)


def _spills(ptx: str, architecture: int) -> int:
    """Bytes of spill stores, by the assembler that comes with Triton."""
    tool = get_ptxas(architecture)  # the one that Triton took: several versions of it come along
    suffix = "a" if architecture >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [
            tool.path,
            "-v",
            f"--gpu-name=sm_{architecture}{suffix}",
            str(path),
            "-o",
            str(Path(folder) / "kernel"),
        ]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", log)))


def _registers(cubin: bytes) -> int:
    tool = triton.knobs.nvidia.cuobjdump
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return max(map(int, re.findall(r"REG:(\d+)", usage)))


def measured(launch: Launch, specimen: str, arch: str) -> Compiled:
    """Compile one launch for an architecture (`sm_90`, `gfx942`) and count."""
    amd = arch.startswith("gfx")
    number = 0 if amd else int(arch.removeprefix("sm_"))
    binary = compiled(launch, GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", number, 32))
    if amd:
        text = binary.asm["amdgcn"]
        registers = int(re.findall(r"\.vgpr_count:\s+(\d+)", text)[0])
        spills = 4 * 64 * int(re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)[0])
        matrix, lines = len(re.findall(r"v_mfma", text)), len(re.findall(r"^\s+[sv]_", text, re.M))
    else:
        text = binary.asm["ptx"]
        registers, spills = _registers(binary.asm["cubin"]), _spills(text, number)
        matrix, lines = len(re.findall(MATRIX_INSTRUCTIONS, text)), len(re.findall(r";\s*$", text, re.M))
    limit = SHARED_AMD if amd else SHARED_BYTES[number]
    parts = [name for name, on in (("dK", "WITH_DK"), ("dV", "WITH_DV")) if launch.constants.get(on)]
    if len(parts) == 1:
        specimen += f" {parts[0]}"
    return Compiled(
        arch, launch.name, specimen, str(launch.tile), registers, spills, binary.metadata.shared, limit, matrix, lines,
        triton.__version__,
    )  # fmt: skip


def rows(architectures: list[str], only: list[str] | None = None) -> Iterator[Compiled]:
    """One row per specimen, kernel and architecture; `only` names the specimens to compile."""
    for arch in architectures:
        number = 0 if arch.startswith("gfx") else int(arch.removeprefix("sm_"))
        capability = AMD if arch.startswith("gfx") else (number // 10, number % 10)
        for name, specimen in specimens().items():
            if only is None or name in only:
                for launch in launches(specimen.case, capability, specimen.tiles(capability)):
                    yield measured(launch, name, arch)


def with_rows(table: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table with `new` in place of the rows of the same architectures and specimens, in order."""

    def place(row: dict[str, Any]) -> tuple[str, str]:
        return row["arch"], row["specimen"].split(" ")[0]

    now, names = {place(row) for row in new}, list(specimens())
    kept = [row for row in table if place(row) not in now and place(row)[1] in names]
    return sorted(kept + new, key=lambda row: (len(row["arch"]), row["arch"], names.index(place(row)[1])))


def compiling_environment() -> dict[str, str]:
    """The environment of a process that compiles."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"ATTNBENCH_TRITON": "compile"}


def main(arguments: list[str]) -> int:
    """Compile, print the rows as JSON lines; with --write, put them into the committed table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="sm_80,sm_90,sm_100")
    parser.add_argument("--only", default="", help="specimens, separated by commas")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    if os.environ.get("ATTNBENCH_TRITON") != "compile":
        # This process interprets, which cannot be changed any more.
        again = [sys.executable, "-m", f"{__package__}.ahead_of_time", *arguments]
        return subprocess.run(again, env=compiling_environment(), check=False).returncode
    only = [name for name in options.only.split(",") if name] or None
    new = []
    for row in rows(options.arch.split(","), only):
        new.append(row)
        sys.stdout.write(json.dumps(asdict(row)) + "\n")
        sys.stdout.flush()
    if options.write:
        table = with_rows(json.loads(TABLE.read_text()), [asdict(row) for row in new])
        lines = ",\n".join(f" {json.dumps(row)}" for row in table)
        TABLE.write_text(f"[\n{lines}\n]\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
