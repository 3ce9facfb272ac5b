"""Everything that runs on a GPU machine: one resumable command, the most valuable steps first.

    python3 tools/gpu.py                  # all steps that are not done yet, results in results/<gpu>/
    python3 tools/gpu.py --list           # the steps, the seconds each should take, which of them are done
    python3 tools/gpu.py first table      # only these steps
    python3 tools/gpu.py --seconds 560 --pack out.tgz   # stop in time; pack the results after each row
    python3 tools/gpu.py --rehearse --out /tmp/r        # the same code on the fake GPU of tests/stand, small sizes
    python3 tools/gpu.py --rehearse --out /tmp/r --fail first   # as above, and this step fails

It needs an installed CUDA build of torch and no network, and installs nothing (the packages are found through
PYTHONPATH). Each figure is printed as a JSON line when it is known. A step that fails, by its exit code or by a row
that crashed, raised, took too long or is wrong, is recorded with the end of its output, the others run all the same,
and it is run again next time. What `--pack` wrote is unpacked first if the results are not there: a second call on a
fresh machine goes on where the first stopped, with what Triton and Inductor compiled.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 580.0  # of one step
WORTH_STARTING_S = 30.0
POLL_S = 1.0
TOKENS = 16_384  # per batch
HIDDEN = 2_048  # heads x head dim
RIVALS = "triton,sdpa_flash,sdpa_cudnn,flex"
LENGTHS = (16_384, 4_096, 8_192, 32_768, 2_048, 1_024, 512)
FAILING = ("wrong", "crashed", "error", "timeout")  # statuses of rows that make a step fail
# Without these nothing runs; each is a plain wheel that can be carried over.
NEEDED = ("torch", "triton", "numpy", "scipy", "pandas", "pyarrow", "rich", "typer", "psutil", "matplotlib")
TESTS_NEED = ("pytest", "hypothesis", "mpmath")
# On the fake GPU other backends stand in for those that need a real one.
STANDS_IN = {"triton": "naive", "sdpa_cudnn": "per_head", "flex": "mask_multiply", "naive": "chunked_heads"}


@dataclass(frozen=True)
class Step:
    """A name, the reason for it, a command, and the seconds that it should take on a GPU (estimated, not measured).

    `suite` is the suite file that it reads, `rows` the file of JSON lines that it writes. `interprets`: a rehearsal
    runs it in Triton's interpreter, since the fake GPU compiles nothing.
    """

    name: str
    why: str
    seconds: int
    command: tuple[str, ...]
    suite: str = ""
    rows: Path | None = None
    interprets: bool = False


@dataclass(frozen=True)
class Machine:
    """Where the steps run: a GPU, or the fake one of tests/stand with every size divided by `shrink`."""

    shrink: int = 1

    @property
    def rehearses(self) -> bool:
        return self.shrink > 1

    def length(self, tokens: int) -> int:
        return max(8, tokens // self.shrink)

    def backends(self, names: str) -> str:
        return ",".join(STANDS_IN.get(n, n) if self.rehearses else n for n in names.split(","))


def attnbench(*words: str) -> tuple[str, ...]:
    """The command line of this repository, by the running interpreter."""
    return (sys.executable, "-c", "import sys; from attnbench.cli import main; sys.exit(main())", *words)


def grid(machine: Machine, length: int, head_dim: int, masks: tuple[str, ...], **axes: object) -> str:
    """One grid of a suite, with 16k tokens per batch: longer sequences get smaller batches, larger D fewer heads."""
    table: dict[str, object] = {
        "batch": 1 if machine.rehearses else max(1, TOKENS // length),
        "seq": machine.length(length),
        "heads": max(1, HIDDEN // head_dim // machine.shrink),
        "head_dim": max(8, head_dim // 8) if machine.rehearses else head_dim,
        "dtype": "bf16",
        "mask": list(masks),
        "direction": "fwd_bwd",
    }
    # JSON and TOML write strings, numbers and lists alike.
    lines = [f"{name} = {json.dumps(value)}" for name, value in (table | axes).items() if value is not None]
    return "\n".join(["[[grid]]", *lines, ""])


def sweep(
    machine: Machine, out: Path, name: str, why: str, seconds: int, grids: list[str], backends: str = RIVALS
) -> Step:
    """One `attnbench run`: its workers start once for all cases. All sweeps share a folder, and so the roofs."""
    folder = out / "sweep"
    words = ["run", str(out / "suites" / f"{name}.toml"), "--backend", machine.backends(backends)]
    words += [
        "--out",
        str(folder),
        "--resume",
        "--device",
        "cuda",
        *(["--rounds", "1"] if machine.rehearses else []),
    ]
    return Step(name, why, seconds, attnbench(*words), "\n".join(grids), folder / "results.jsonl")


def table(machine: Machine) -> list[str]:
    """The grids of the first sweep, in the order of their worth."""

    def documents(*lengths: int) -> str:
        return f"causal & documents({', '.join(str(n // machine.shrink) for n in lengths)})"

    def window(keys: int) -> str:
        return f"causal & window({machine.length(keys) - 1}, 0)"

    dense, prefix = ("causal", "full"), f"prefix({machine.length(1024)})"
    sparse = (window(4096), window(1024), documents(1000, 3000, 96, 4096), documents(4096, 4096), prefix)
    cache = [machine.length(4096), machine.length(65_536)]
    one = {"seq": None, "q_len": 1, "k_len": cache, "batch": [1, 16], "heads": "32:8", "direction": "fwd"}
    return [
        grid(machine, 16_384, 128, dense),
        grid(machine, 8_192, 128, sparse),
        grid(machine, 8_192, 128, ("causal",), score=["alibi", "softcap(50)"]),
        *(grid(machine, length, 128, dense) for length in LENGTHS[1 : 2 if machine.rehearses else None]),
        grid(machine, 4096, 128, ("causal",), **one),
    ]


def steps(out: Path, machine: Machine = Machine()) -> Iterator[Step]:
    """All steps, the most valuable first."""
    first = out / "first.jsonl"
    words = ["--backend", machine.backends("triton,sdpa_flash,sdpa_cudnn"), "--out", str(first)]
    small = ["--tokens", str(machine.length(16_384)), "--contract", "dense"]
    words += small if machine.rehearses else []
    command = (sys.executable, str(ROOT / "tools" / "gpu_first.py"), *words)
    yield Step("first", "a first figure in the first minute: 16k, head dim 128", 50, command, rows=first)
    why = "headline, masks, scores, dense, decode at head dim 128: faster than flex on every mask"
    yield sweep(machine, out, "table", why, 330, table(machine))
    check = attnbench("check", machine.backends("triton"), "--device", "cuda", "--level")
    narrow = ("--dtype", "bf16", "--mask", "causal", "--direction", "fwd") if machine.rehearses else ()
    yield Step("smoke", "the kernels of the real compiler are right", 40, (*check, "smoke", *narrow))

    def tune(sizes: str, folder: Path) -> tuple[str, ...]:
        words = ("-m", "attnbench_backends.triton.tune", "--sizes", sizes, "--out", str(folder))
        return (sys.executable, *words, *(("--rehearse",) if machine.rehearses else ()))

    why = "the order of the tiles, and persistent programs; later steps run with the fastest"
    yield Step("walks", why, 60, tune("none", out / "walks"), interprets=True)
    plain = [grid(machine, length, 128, ("causal",)) for length in (1_024, 2_048)]
    yield sweep(machine, out, "naive", "the cost of a plain implementation", 40, plain, "triton,naive")
    for head_dim in (64, 256):
        lengths = LENGTHS[: 1 if machine.rehearses else None]
        grids = [grid(machine, length, head_dim, ("causal", "full")) for length in lengths]
        yield sweep(machine, out, f"d{head_dim}", f"512 to 32k tokens at head dim {head_dim}", 200, grids)
    if not machine.rehearses:
        yield Step("tune", "the sizes of the tiles on this GPU", 300, tune("few", out))
    # In slices: each is done or not, so a call that ends keeps the others.
    files = sorted((ROOT / "tests" / "triton").glob("test_*.py"))
    for file in [ROOT / "tests" / "measure" / "test_kernels.py"] if machine.rehearses else files:
        command = (
            sys.executable,
            "-m",
            "pytest",
            str(file),
            "-q",
            "-m",
            "not interpret",
            "-p",
            "no:cacheprovider",
        )
        yield Step(
            f"tests-{file.stem.removeprefix('test_')}", "the interpreter's tests, on the GPU", 30, command
        )
    for dtype in ("bf16", "fp16", "fp32")[: 1 if machine.rehearses else None]:
        level = "smoke" if machine.rehearses else "standard"
        words = ("--dtype", dtype, *(narrow[2:] if machine.rehearses else ()))
        yield Step(f"standard-{dtype}", "the whole conformance battery", 60, (*check, level, *words))


def surroundings(out: Path, machine: Machine = Machine(), commit: str = "") -> dict[str, str]:
    """The environment of every command: this checkout's packages on the path under their installed names.

    Tuned configurations and what the compilers made are stored with the results: a lent machine does not last, and
    the next one goes on with them. `commit` names the code where there is no .git.
    """
    links = out / ".packages"
    links.mkdir(parents=True, exist_ok=True)
    for name, folder in (("attnbench_backends", "backends"), ("attnbench_suites", "suites")):
        if not (links / name).is_symlink():
            (links / name).symlink_to(ROOT / folder, target_is_directory=True)
    fake = [str(ROOT / "tests" / "stand" / "site")] if machine.rehearses else []
    path = os.pathsep.join(
        [*fake, str(ROOT), str(links.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    cache = out.absolute() / ".cache"
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "XDG_CACHE_HOME": str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_DEFAULT_FP_FUSION": "1",  # as it is by default: part of the key of Triton's cache
        "ATTNBENCH_COMMIT": commit,
    }


def missing(names: tuple[str, ...]) -> list[str]:
    """Which of these modules this interpreter lacks."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def gpu_name() -> str:
    """The GPU as a folder's name, e.g. `nvidia-h200`."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu: no CUDA GPU, or torch is built without CUDA; nothing was run")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def run(
    command: tuple[str, ...], environment: dict[str, str], log: Path, left_s: float, look: Callable[[], None]
) -> int | None:
    """The command's exit code, None if its time ran out; its output goes to the log. `look` is called while it runs.

    Past its time it is interrupted before it is killed, so that it stores its results and ends its workers.
    """
    until = time.monotonic() + max(1.0, left_s)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        while (code := process.poll()) is None and time.monotonic() < until:
            look()
            time.sleep(min(POLL_S, max(0.05, until - time.monotonic())))
        if code is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        look()
        return code


def read_rows(file: Path | None) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none if it is not there yet."""
    if file is None or not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]  # the last one may be half written
    return [json.loads(line) for line in lines if line.strip()]


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a row: a stored result's medians and rates; a line of the first figures as it is."""
    if "samples_ms" not in row:
        return row
    shown = {"case": row["case_id"], "backend": row["backend"], "status": row["status"]}
    for name, rounds in row["samples_ms"].items():
        ms = statistics.median(ms for one in rounds for ms in one)
        shown |= {f"{name}_ms": round(ms, 4), f"{name}_tflops": round(row["flops"][name] / ms / 1e9, 1)}
    return shown | ({"reason": row["reason"]} if row["reason"] else {})


def failing(step: Step) -> Counter[str]:
    """How many of a sweep's rows failed, by status; of several rows of one case and backend the last counts."""
    last = {(r["case_id"], r["backend"]): r for r in read_rows(step.rows) if r.get("suite") == step.name}
    return Counter(r["status"] for r in last.values() if r["status"] in FAILING)


def perform(
    step: Step, out: Path, limit_s: float, environment: dict[str, str], saw: Callable[[], None]
) -> bool:
    """Run a step within the limit, print its rows as they come, record the outcome; whether it succeeded."""
    start = time.monotonic()
    state = out / "steps"
    state.mkdir(parents=True, exist_ok=True)
    log = state / f"{step.name}.log"
    log.unlink(missing_ok=True)
    if step.suite:
        (out / "suites").mkdir(exist_ok=True)
        (out / "suites" / f"{step.name}.toml").write_text(step.suite, encoding="utf-8")
    shown = len(read_rows(step.rows))

    def look() -> None:
        nonlocal shown
        new = read_rows(step.rows)[shown:]
        for row in new:
            print(json.dumps(figures(row)), flush=True)
        shown += len(new)
        if new:
            saw()

    code = run(step.command, environment, log, limit_s, look)
    record: dict[str, object] = {"step": step.name, "why": step.why, "ok": True}
    reason = "" if code == 0 else f"exit code {code}"
    if code is None:
        reason = f"past {limit_s:.0f} s; its results are kept, run it again to go on"
    elif failed := failing(step) if step.suite else None:
        reason = f"rows that failed: {', '.join(f'{count} {status}' for status, count in failed.items())}"
    if reason:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        record |= {"ok": False, "reason": reason, "command": " ".join(step.command), "tail": tail}
        print(f"      {reason}\n{tail}", flush=True)
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


def unpack(file: Path, out: Path) -> None:
    """Take over what an earlier call packed, if there is nothing here yet."""
    if file.is_file() and not out.exists():
        with tarfile.open(file) as tar:
            tar.extractall(out.parent, filter="data")


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
    parser.add_argument("--pack", type=Path, help="a .tgz of all results, written after each row and step")
    parser.add_argument("--commit", default="", help="what results name as their commit, without a .git")
    parser.add_argument("--rehearse", action="store_true", help="on the fake GPU, small; needs --out")
    parser.add_argument(
        "--fail", action="append", default=[], help="with --rehearse: this step fails; repeat for more"
    )
    options = parser.parse_args()
    if options.rehearse and options.out is None:
        parser.error("--rehearse needs --out: its figures mean nothing and do not belong in results/")
    if options.fail and not options.rehearse:
        parser.error("--fail needs --rehearse")
    machine = Machine(128) if options.rehearse else Machine()
    out = (options.out or ROOT / "results" / ("gpu" if options.list else gpu_name())).absolute()
    start = time.monotonic()
    if lacking := missing(NEEDED):
        print(f"gpu: not installed: {', '.join(lacking)}; carry their wheels over (see tools/gpu-wheels)")
        return 2
    if lacking := missing(TESTS_NEED):
        print(f"gpu: the steps `tests-...` will fail without {', '.join(lacking)}")
    planned = list(steps(out, machine))
    unknown = (set(options.only) | set(options.fail)) - {step.name for step in planned}
    if unknown:
        names = ", ".join(step.name for step in planned)
        parser.error(f"no step {sorted(unknown)[0]!r}; the steps are {names}")
    if options.list:
        for step in planned:
            print(
                f"{'done' if is_done(step, out) else '    '}  {step.name} (about {step.seconds} s): {step.why}"
            )
            print(f"          {' '.join(word for word in step.command[3:] or step.command)}")
        return 0
    if options.pack:
        unpack(options.pack, out)

    def save() -> None:
        if options.pack:
            pack(out, options.pack)

    failed = 0
    for step in planned:
        if step.name not in options.only if options.only else is_done(step, out):
            continue
        left_s = options.seconds - (time.monotonic() - start)
        if left_s < WORTH_STARTING_S:
            print(f"left  {step.name}: only {left_s:.0f} s remain; run it again to go on")
            failed += 1
            continue
        print(f"run   {step.name} (about {step.seconds} s): {step.why}", flush=True)
        if step.name in options.fail:
            step = replace(step, command=(sys.executable, "-c", "raise SystemExit('made to fail')"))
        environment = surroundings(out, Machine() if step.interprets else machine, options.commit)
        ok = perform(step, out, min(LIMIT_S, left_s), environment, save)
        failed += not ok
        print(
            f"{'ok  ' if ok else 'FAIL'}  {step.name} ({time.monotonic() - start:.0f} s so far)", flush=True
        )
        save()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
