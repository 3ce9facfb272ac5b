"""The headline in one process: attnbench's kernels beside torch's at 16k tokens and head dim 128, checked and timed.

    python3 tools/gpu_first.py --out first.jsonl          # a JSON line per backend, printed and appended to the file

It starts no workers and measures no roofs, so its first figure comes in the first minute. All backends are judged by
one answer in float64, under one contract, and timed in interleaved blocks as `attnbench run` does. Exit 1 if one is
wrong or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

BACKENDS = "triton,sdpa_flash,sdpa_cudnn"
CONTRACT = "flash_splits"  # of ours; the others' allows no more
CASE = {"q_len": 16_384, "k_len": 16_384, "q_heads": 16, "head_dim": 128, "dtype": "bf16", "mask": "causal"}
ROUNDS, BLOCK_MS = 10, 12.0
SHOWN_AFTER = (1, 3, ROUNDS)  # rounds: a first figure at once, a good one at the end


class Lane:
    """One backend: its bench, and what is known of it so far."""

    def __init__(self, name: str, device: str, case: dict[str, Any], contract: str) -> None:
        from attnbench.sweep.bench import Bench

        self.case, self.bench, self.contract = case, Bench(device), contract
        self.line: dict[str, Any] = {"backend": name, "status": "ok"}
        self.samples_ms: dict[str, list[float]] = {}

    def tried(self, step: str, **fields: Any) -> dict[str, Any]:
        """Do a step; what it raises ends this lane and no other."""
        from attnbench.sweep.step_errors import StepError
        from attnbench.sweep.worker import do_step

        if self.line["status"] != "ok":
            return {}
        try:
            return do_step(self.bench, step, fields)
        except StepError as error:
            self.line |= {"status": error.status, "reason": error.reason}
            return {}

    def judge(self, reference: Path) -> None:
        """Open the backend, ask whether it takes the case, judge its answer and warm it up."""
        self.tried("open", backend=self.line["backend"], contract=self.contract)
        if refusal := self.tried("admit", case=self.case).get("refusal"):
            self.line |= {"status": "refused", "reason": refusal}
        judged = self.tried("judge", case=self.case, seed=0, distribution="randn", reference=str(reference))
        self.line |= {name: judged[name] for name in ("kernel", "error_over_budget") if name in judged}
        if judged and not judged["ok"]:
            self.line |= {"status": "wrong", "reason": judged["reason"]}

    def time(self) -> None:
        """One block per direction."""
        block = self.tried("block", block_ms=BLOCK_MS)
        self.line |= {f"{name}_host_ms": round(ms, 4) for name, ms in block.get("host_ms", {}).items()}
        for name, samples in block.get("samples_ms", {}).items():
            self.samples_ms.setdefault(name, []).extend(samples)

    def figures(self, flops: dict[str, int]) -> dict[str, Any]:
        """The line with its medians so far."""
        line = dict(self.line)
        for name, samples in self.samples_ms.items() if line["status"] == "ok" else ():
            ms = statistics.median(samples)
            line |= {f"{name}_ms": round(ms, 4), f"{name}_tflops": round(flops[name] / ms / 1e9, 1)}
        return line


def main() -> int:
    """Judge and time; 1 if a backend is wrong or fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default=BACKENDS)
    parser.add_argument("--tokens", type=int, default=CASE["q_len"], help="queries and keys [16384]")
    parser.add_argument("--contract", default=CONTRACT, help="all are judged under it [flash_splits]")
    parser.add_argument("--out", type=Path, required=True, help="the lines are appended to this file")
    options = parser.parse_args()
    began = time.monotonic()
    from attnbench.problem import Case
    from attnbench.sweep.bench import Bench

    lengths = {"q_len": options.tokens, "k_len": options.tokens}
    problem = Case.from_json(CASE | lengths | {"direction": "fwd_bwd"})
    case, flops = problem.to_json(), {d: problem.flops(d) for d in ("fwd", "bwd")}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def tell(**line: Any) -> None:
        text = json.dumps({"at_s": round(time.monotonic() - began, 1), "case": problem.id, **line})
        print(text, flush=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    with tempfile.TemporaryDirectory(prefix="attnbench-") as folder:
        reference = Path(folder) / "reference.npz"
        oracle = Bench(options.device)
        oracle.settle(None)
        oracle.reference(case, 0, "randn", options.contract, str(reference))
        lanes = [Lane(name, options.device, case, options.contract) for name in options.backend.split(",")]
        for lane in lanes:
            lane.judge(reference)
            tell(**lane.line)
    for done in range(1, ROUNDS + 1):
        # A new order each round: a fixed one gives the later one the warmer machine.
        for lane in random.sample(lanes, len(lanes)):
            lane.time()
        for lane in (lane for lane in lanes if done in SHOWN_AFTER and lane.line["status"] == "ok"):
            tell(**lane.figures(flops), rounds=done)
    for lane in lanes:
        judged = lane.tried("recheck")
        if judged and not judged["ok"]:
            lane.line |= {"status": "wrong", "reason": f"after the timed loop: {judged['reason']}"}
        if judged:
            tell(**lane.figures(flops), notes=judged.get("notes", []), final=True)
    return int(any(lane.line["status"] not in ("ok", "refused", "unavailable") for lane in lanes))


if __name__ == "__main__":
    raise SystemExit(main())
