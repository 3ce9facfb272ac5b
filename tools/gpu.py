"""Everything that runs on a GPU machine: one resumable command, the most valuable steps first.

    python3 tools/gpu.py                  # all steps that are not done yet, results in results/<gpu>/
    python3 tools/gpu.py --list           # the steps, which of them are done, their commands
    python3 tools/gpu.py headline masks   # only these steps
    python3 tools/gpu.py --seconds 560 --pack out.tgz   # stop in time and pack the results
    python3 tools/gpu.py --rehearse --out /tmp/r        # every step on the CPU, with sizes that take a minute or two

It needs an installed CUDA build of torch and no network, and installs nothing (the packages are found through
PYTHONPATH). A step that fails is recorded with the end of its output, and the next one runs; a step that runs out of
time keeps what it measured. Run the script again for the steps that are missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 580.0  # of one step
WORTH_STARTING_S = 40.0
TOKENS = 16_384  # per batch
HIDDEN = 2_048  # heads x head dim
RIVALS = "triton,sdpa_flash,sdpa_cudnn,flex"
LENGTHS = (16_384, 4_096, 8_192, 32_768, 2_048, 1_024, 512)
# Without these nothing runs; each is a plain wheel that can be carried over.
NEEDED = ("torch", "triton", "numpy", "scipy", "pandas", "pyarrow", "rich", "typer", "psutil", "matplotlib")
TESTS_NEED = ("pytest", "hypothesis", "mpmath")


@dataclass(frozen=True)
class Step:
    """A name, the reason for it, and commands that share one time limit; `suite` is the suite file that they read."""

    name: str
    why: str
    commands: tuple[tuple[str, ...], ...]
    suite: str = ""


@dataclass(frozen=True)
class Machine:
    """Where the steps run: the GPU, or a CPU for a rehearsal with every size divided by `shrink`."""

    device: str = "cuda"
    shrink: int = 1

    @property
    def rehearses(self) -> bool:
        return self.device == "cpu"

    def length(self, tokens: int) -> int:
        return max(8, tokens // self.shrink)


def attnbench(*words: str) -> tuple[str, ...]:
    """The command line of this repository, by the running interpreter."""
    return (sys.executable, "-c", "import sys; from attnbench.cli import main; sys.exit(main())", *words)


def grid(machine: Machine, length: int, head_dim: int, masks: tuple[str, ...], **axes: object) -> str:
    """One grid of a suite, with 16k tokens per batch: longer sequences get smaller batches, larger D fewer heads."""
    hidden = HIDDEN // machine.shrink if machine.rehearses else HIDDEN
    table: dict[str, object] = {
        "batch": 1 if machine.rehearses else max(1, TOKENS // length),
        "seq": machine.length(length),
        "heads": max(1, hidden // head_dim),
        "head_dim": head_dim,
        "dtype": "fp32" if machine.rehearses else "bf16",
        "mask": list(masks),
        "direction": "fwd_bwd",
    }
    # JSON and TOML write strings, numbers and lists alike.
    lines = [f"{name} = {json.dumps(value)}" for name, value in (table | axes).items() if value is not None]
    return "\n".join(["[[grid]]", *lines, ""])


def sweep(machine: Machine, out: Path, name: str, why: str, grids: list[str], backends: str = RIVALS) -> Step:
    """One `attnbench run` of a suite of these grids: its workers start once for all cases."""
    if machine.rehearses:
        backends = ",".join(b for b in backends.split(",") if b not in ("sdpa_cudnn", "flex", "naive"))
        backends += ",naive"
    folder = out / name
    words = ["run", str(folder / "suite.toml"), "--backend", backends, "--out", str(folder), "--resume"]
    words += ["--device", machine.device, *(["--rounds", "1"] if machine.rehearses else [])]
    return Step(name, why, (attnbench(*words),), "\n".join(grids))


def steps(out: Path, machine: Machine = Machine()) -> Iterator[Step]:
    """All steps, the most valuable first."""

    def documents(*lengths: int) -> str:
        return f"causal & documents({', '.join(str(n // machine.shrink) for n in lengths)})"

    def window(keys: int) -> str:
        return f"causal & window({machine.length(keys) - 1}, 0)"

    check = attnbench("check", "triton", "--device", machine.device, "--level")
    smoke = (*check, "smoke", *(("--direction", "fwd", "--mask", "causal") if machine.rehearses else ()))
    yield Step("smoke", "the kernels of the real compiler are right", (smoke,))
    dense = ("causal", "full")
    headline = [grid(machine, 16_384, 128, dense)]
    yield sweep(machine, out, "headline", "head dim 128 at 16k: the figures of the README", headline)
    sparse = (window(4096), window(1024), documents(1000, 3000, 96, 4096), documents(4096, 4096))
    masks = [grid(machine, 8_192, 128, (*sparse, f"prefix({machine.length(1024)})"))]
    why = "faster than flex on every mask, and time follows the allowed pairs"
    yield sweep(machine, out, "masks", why, masks, "triton,flex")
    changed = [grid(machine, 8_192, 128, ("causal",), score=["alibi", "softcap(50)"])]
    yield sweep(machine, out, "scores", "faster than flex with changed scores", changed, "triton,flex")

    def tune(sizes: str, folder: Path) -> tuple[str, ...]:
        words = ("-m", "attnbench_backends.triton.tune", "--sizes", sizes, "--out", str(folder))
        return (sys.executable, *words, *(("--rehearse",) if machine.rehearses else ()))

    why = "the order of the tiles, and persistent programs; later steps run with the fastest"
    yield Step("walks", why, (tune("none", out / "walks"),))
    for head_dim in (64, 128, 256):
        # The headline has 16k at head dim 128 already.
        lengths = [n for n in LENGTHS if (head_dim, n) != (128, 16_384)][: 2 if machine.rehearses else None]
        grids = [grid(machine, length, head_dim, dense) for length in lengths]
        why = f"512 to 32k tokens, causal and full, head dim {head_dim}"
        yield sweep(machine, out, f"dense-d{head_dim}", why, grids)
    cache = [machine.length(4096), machine.length(65_536)]
    one = {"seq": None, "q_len": 1, "k_len": cache, "batch": [1, 16], "heads": "32:8", "direction": "fwd"}
    decode = [grid(machine, 4096, 128, ("causal",), **one)]
    yield sweep(machine, out, "decode", "one query over a long cache, split and not", decode)
    plain = [grid(machine, length, 128, ("causal",)) for length in (1_024, 2_048)]
    yield sweep(machine, out, "naive", "the cost of a plain implementation beside it", plain, "triton,naive")
    if machine.rehearses:
        return
    why = "the sizes of the tiles on this GPU, within the time limit"
    yield Step("tune", why, (tune("few", out),))
    yield sweep(machine, out, "tuned", "the headline again, with the tuned sizes", headline, "triton")
    tests = (sys.executable, "-m", "pytest", "tests/triton", "-q", "-x", "-m", "not interpret")
    yield Step("tests", "the interpreter's tests, on the GPU", ((*tests, "-p", "no:cacheprovider"),))
    yield Step("standard", "the whole conformance battery", ((*check, "standard"),))


def report(out: Path) -> Step:
    """Tables and charts of the results so far."""
    folders = sorted(path.parent for path in out.glob("*/results.jsonl"))
    return Step("report", "tables and charts", tuple(attnbench("report", str(folder)) for folder in folders))


def surroundings(out: Path) -> dict[str, str]:
    """The environment of every command: this checkout's packages on the path under their installed names.

    Tuned configurations are stored with the results: the home folder of a lent machine does not last.
    """
    links = out / ".packages"
    links.mkdir(parents=True, exist_ok=True)
    for name, folder in (("attnbench_backends", "backends"), ("attnbench_suites", "suites")):
        if not (links / name).is_symlink():
            (links / name).symlink_to(ROOT / folder, target_is_directory=True)
    path = os.pathsep.join([str(ROOT), str(links.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = str(out.absolute() / ".cache")
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": cache}


def missing(names: tuple[str, ...]) -> list[str]:
    """Which of these modules this interpreter lacks."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def gpu_name() -> str:
    """The GPU as a folder's name, e.g. `nvidia-h200`."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu: no CUDA GPU, or torch is built without CUDA; nothing was run")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def run(command: tuple[str, ...], environment: dict[str, str], log: Path, left_s: float) -> int | None:
    """The command's exit code, None if its time ran out; its output goes to the log.

    Past its time it is interrupted before it is killed, so that it stores its results and ends its workers.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(timeout=max(1.0, left_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return None


def perform(step: Step, out: Path, limit_s: float) -> bool:
    """Run a step's commands within the limit and record the outcome; whether all succeeded."""
    start = time.monotonic()
    state = out / "steps"
    state.mkdir(parents=True, exist_ok=True)
    log = state / f"{step.name}.log"
    log.unlink(missing_ok=True)
    environment = surroundings(out)
    if step.suite:
        (out / step.name).mkdir(exist_ok=True)
        (out / step.name / "suite.toml").write_text(step.suite, encoding="utf-8")
    record: dict[str, object] = {"step": step.name, "why": step.why, "ok": True}
    for command in step.commands:
        code = run(command, environment, log, limit_s - (time.monotonic() - start))
        if code == 0:
            continue
        reason = f"exit code {code}"
        if code is None:
            reason = f"past {limit_s:.0f} s; its results are kept, run it again to go on"
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        record |= {"ok": False, "reason": reason, "command": " ".join(command), "tail": tail}
        print(f"      {reason}\n{tail}", flush=True)
        break
    record["elapsed_s"] = round(time.monotonic() - start, 1)
    (state / f"{step.name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return bool(record["ok"])


def is_done(step: Step, out: Path) -> bool:
    """Whether this step has succeeded before."""
    path = out / "steps" / f"{step.name}.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("ok"))


def pack(out: Path, file: Path) -> None:
    """Write all results to one file, replaced whole: an interrupted call leaves the last one."""
    part = file.with_name(f"{file.name}.part")
    with tarfile.open(part, "w:gz") as tar:
        tar.add(out, out.name, filter=lambda info: None if ".packages" in info.name.split("/") else info)
    part.replace(file)


def main() -> int:
    """Run the selected steps that are not done; 1 if a step failed, 2 if a library is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="steps to run, done or not")
    parser.add_argument("--list", action="store_true", help="list the steps and run nothing")
    parser.add_argument("--out", type=Path, help="the folder of the results [results/<gpu>]")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="time limit of all steps together"
    )
    parser.add_argument("--pack", type=Path, help="a .tgz of all results, written after each step")
    parser.add_argument("--rehearse", action="store_true", help="every step on the CPU, small; needs --out")
    options = parser.parse_args()
    if options.rehearse and options.out is None:
        parser.error("--rehearse needs --out: its figures mean nothing and do not belong in results/")
    machine = Machine("cpu", 128) if options.rehearse else Machine()
    out = (options.out or ROOT / "results" / ("gpu" if options.list else gpu_name())).absolute()
    start = time.monotonic()
    if lacking := missing(NEEDED):
        print(f"gpu: not installed: {', '.join(lacking)}; carry their wheels over (see tools/gpu-wheels)")
        return 2
    if lacking := missing(TESTS_NEED):
        print(f"gpu: the step `tests` will fail without {', '.join(lacking)}")
    planned = list(steps(out, machine))
    unknown = set(options.only) - {step.name for step in planned} - {"report"}
    if unknown:
        names = ", ".join(step.name for step in planned)
        parser.error(f"no step {sorted(unknown)[0]!r}; the steps are {names}")
    failed = 0
    for step in planned:
        wanted = step.name in options.only if options.only else not is_done(step, out)
        if options.list or not wanted:
            print(f"{'done' if is_done(step, out) else '    '}  {step.name}: {step.why}")
            for command in step.commands if options.list else ():
                print(f"          {' '.join(word for word in command[3:] or command)}")
            continue
        left_s = options.seconds - (time.monotonic() - start)
        if left_s < WORTH_STARTING_S:
            print(f"left  {step.name}: only {left_s:.0f} s remain; run it again to go on")
            failed += 1
            continue
        print(f"run   {step.name}: {step.why}", flush=True)
        ok = perform(step, out, min(LIMIT_S, left_s))
        failed += not ok
        print(
            f"{'ok  ' if ok else 'FAIL'}  {step.name} ({time.monotonic() - start:.0f} s so far)", flush=True
        )
        if options.pack:
            pack(out, options.pack)
    if not options.list:
        # Charts can be drawn from the packed results anywhere: they get the time that is left.
        left_s = options.seconds - (time.monotonic() - start)
        if left_s > WORTH_STARTING_S and not perform(report(out), out, min(LIMIT_S, left_s)):
            failed += 1
        if options.pack:
            pack(out, options.pack)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
