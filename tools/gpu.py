"""What is run on a GPU machine, in which order? One command, resumable: each step under ten minutes, the best first.

    python3 tools/gpu.py            # all steps that are not done yet, results in results/<gpu>/
    python3 tools/gpu.py --list     # what there is, what is done
    python3 tools/gpu.py headline   # only these

It needs a CUDA build of torch that is installed already, and no network. A step that fails is written down
with the end of its output, and the next one runs; running the script again tries it anew.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 580.0
TOKENS = 16_384  # a batch
HIDDEN = 2_048  # heads x head dim
RIVALS = "triton,sdpa_flash,sdpa_cudnn,flex"
LENGTHS = (16_384, 4_096, 8_192, 32_768, 2_048, 1_024, 512)


@dataclass(frozen=True)
class Step:
    """A name, why it is worth its minutes, and commands that share one time limit."""

    name: str
    why: str
    commands: tuple[tuple[str, ...], ...]


def attnbench(*words: str) -> tuple[str, ...]:
    """The command line of this repository, by the running interpreter."""
    return (sys.executable, "-c", "import sys; from attnbench.cli import main; sys.exit(main())", *words)


def run(out: Path, length: int, head_dim: int, backends: str = RIVALS, **options: str) -> tuple[str, ...]:
    """One `attnbench run` of 16k tokens: the batch shrinks as the length grows, the heads as the head dim does."""
    words = [
        "run",
        "--backend",
        backends,
        "--out",
        str(out),
        "--resume",
        "--dtype",
        "bf16",
        "--seq",
        str(length),
    ]
    words += [
        "--batch",
        str(max(1, TOKENS // length)),
        "--heads",
        str(HIDDEN // head_dim),
        "--head-dim",
        str(head_dim),
    ]
    for name, value in {"direction": "fwd,fwd_bwd", **options}.items():
        words += [f"--{name.replace('_', '-')}", value]
    return attnbench(*words)


def steps(out: Path) -> Iterator[Step]:
    """All steps, the most valuable first."""
    install = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-e",
        str(ROOT),
    )
    yield Step("install", "the package, from this checkout, without a network", (install,))
    yield Step(
        "smoke",
        "the real compiler's kernels are right at all",
        (attnbench("check", "triton", "--level", "smoke", "--device", "cuda"),),
    )
    headline = tuple(run(out / "headline", 16_384, 128, mask=mask) for mask in ("causal", "full"))
    yield Step("headline", "head dim 128 at 16k: the figures of the README", headline)
    tests = (
        sys.executable,
        "-m",
        "pytest",
        "tests/triton",
        "-q",
        "-x",
        "-m",
        "not interpret",
        "-p",
        "no:cacheprovider",
    )
    yield Step("tests", "the interpreter's tests, on the GPU", (tests,))
    sparse = (
        ("causal & window(4095, 0)", "causal & window(1023, 0)", "prefix(1024)"),
        ("causal & documents(1000, 3000, 96, 4096)", "causal & documents(4096, 4096)"),
    )
    masks = tuple(
        run(out / "masks", 8_192, 128, "triton,flex", mask=mask) for mask in (*sparse[0], *sparse[1])
    )
    yield Step("masks", "faster than flex on every mask, and time follows the allowed pairs", masks)
    scores = tuple(
        run(out / "scores", 8_192, 128, "triton,flex", mask="causal", score=s)
        for s in ("alibi", "softcap(50)")
    )
    yield Step("scores", "faster than flex with changed scores", scores)
    yield Step(
        "standard",
        "the whole conformance battery",
        (attnbench("check", "triton", "--level", "standard", "--device", "cuda"),),
    )
    for head_dim in (128, 64, 256):
        for mask in ("causal", "full"):
            commands = tuple(run(out / "dense", length, head_dim, mask=mask) for length in LENGTHS)
            yield Step(f"{mask}-d{head_dim}", f"512 to 32k tokens, {mask}, head dim {head_dim}", commands)
    decode = attnbench(
        "run", "--backend", RIVALS, "--out", str(out / "decode"), "--resume", "--dtype", "bf16", "--q-len", "1",
        "--k-len", "4096,65536", "--heads", "32:8", "--head-dim", "128", "--batch", "1,16", "--mask", "causal",
    )  # fmt: skip
    yield Step("decode", "one query over a long cache, split and not", (decode,))
    naive = tuple(run(out / "naive", length, 128, "triton,naive", mask="causal") for length in (1_024, 2_048))
    yield Step("naive", "what a plain implementation costs beside it", naive)
    yield Step(
        "tune",
        "the configurations of this GPU",
        ((sys.executable, "-m", "attnbench_backends.triton.tune", "--out", str(out)),),
    )
    folders = ("headline", "masks", "scores", "dense", "decode", "naive")
    reports = tuple(attnbench("report", str(out / name)) for name in folders)
    yield Step("report", "tables and charts", reports)


def gpu_name() -> str:
    """The GPU as a folder's name, e.g. `nvidia-h200`."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu: there is no CUDA GPU here, or torch is built without CUDA; nothing was run")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def perform(step: Step, state: Path) -> bool:
    """Run a step's commands within the limit, and write down how it ended."""
    start = time.monotonic()
    record: dict[str, object] = {"step": step.name, "why": step.why}
    for command in step.commands:
        left = LIMIT_S - (time.monotonic() - start)
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, left))
        except subprocess.TimeoutExpired:
            record |= {
                "ok": False,
                "reason": f"past {LIMIT_S:.0f} s; what was measured is kept, run it again to go on",
            }
            break
        if done.returncode:
            tail = (done.stdout + done.stderr)[-4000:]
            record |= {
                "ok": False,
                "reason": f"exit code {done.returncode}",
                "command": " ".join(command),
                "tail": tail,
            }
            break
    else:
        record["ok"] = True
    record["elapsed_s"] = round(time.monotonic() - start, 1)
    state.mkdir(parents=True, exist_ok=True)
    (state / f"{step.name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return bool(record["ok"])


def is_done(step: Step, state: Path) -> bool:
    """Whether an earlier run ended this step well."""
    path = state / f"{step.name}.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("ok"))


def main() -> int:
    """Run what is asked for and not done; 1 where a step failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="steps to run, done or not")
    parser.add_argument("--list", action="store_true", help="say what there is and run nothing")
    parser.add_argument("--out", type=Path, help="the folder of the results [results/<gpu>]")
    given = parser.parse_args()
    out = given.out or ROOT / "results" / ("gpu" if given.list else gpu_name())
    state = out / "steps"
    known = list(steps(out))
    unknown = set(given.only) - {step.name for step in known}
    if unknown:
        parser.error(f"no step {sorted(unknown)[0]!r}; there are {', '.join(step.name for step in known)}")
    failed = 0
    for step in known:
        wanted = step.name in given.only if given.only else not is_done(step, state)
        if given.list or not wanted:
            print(f"{'done' if is_done(step, state) else '    '}  {step.name}: {step.why}")
            continue
        print(f"run   {step.name}: {step.why}", flush=True)
        ok = perform(step, state)
        failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'}  {step.name}", flush=True)
        if step.name == "install" and not ok:
            return 1
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
