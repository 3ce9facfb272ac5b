"""Writes docs/backends.md: each backend's masks, score changes, dtypes, head dims, refusals, and claims to the bit.

What they take comes from the backends themselves, whether their libraries are installed or not; what they give to the
bit from stored records, one per machine: `python tools/backends_page.py` writes the page, `--check` fails if it is
out of date, `--measure NAME [backend ...]` measures every backend that runs here (or these, beside those in the record)
on all of its threads, and stores docs/backends/NAME.json first.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnbench.backend import Backend, registry
from attnbench.backend.interface import CLAIMS
from attnbench.backend.sources import BACKENDS_PACKAGE, backends_in, bundled_folder
from attnbench.conformance import check
from attnbench.conformance.claims import DIFFERS, SAME
from attnbench.measure.fingerprint import fingerprint
from attnbench.problem import ALiBi, Bias, Case, Mask, RelativeBias, Score, Sink, Softcap, parse_mask

PAGE = Path(__file__).resolve().parents[1] / "docs" / "backends.md"
RECORDS = PAGE.with_suffix("")  # a folder of JSON files
DTYPES = ("fp32", "bf16")
TOLD = {SAME: "=", DIFFERS: "≠"}
TO_THE_BIT = f"""\
Per claim one sign for {" and one for ".join(DTYPES)}: = no difference in any call on this machine, ≠ differs,
· not asked (it takes no such case). **Bold**: claimed, so that a difference is wrong. Any other is a finding, not
an error. `attnbench check NAME --only claims --level exhaustive` measures them on your machine.

- *bitwise repeatable*: each call gives the same out (forward) and the same dq, dk, dv (backward).
- *batch invariant*: a batch row alone gives the out that it gives in any batch, also beside longer caches.
- *length invariant*: a causal prefill of n tokens gives the first n rows of a longer one.
- *decode equals prefill*: one query or 16 against a cache give the rows of the causal prefill.

If you train by reinforcement learning and serve from the same weights, you need the last three: without them the
trainer computes other probabilities for the sampled tokens than they were sampled with. Why CPU kernels differ is among
the [findings](findings.md#bits-that-depend-on-the-batch-the-length-or-the-query-count).

"""

# Column -> mask, and other fields of its case.
MASKS: dict[str, tuple[str, dict[str, int]]] = {
    "full": ("full", {}),
    "causal": ("causal", {}),
    "causal, Q < K": ("causal", {"q_len": 32}),
    "top-left, Q < K": ("causal(top_left)", {"q_len": 32}),
    "window": ("window(7, 3)", {}),
    "causal & window": ("causal & window(7, 0)", {}),
    "padding": ("padding(64, 40)", {"batch": 2}),
    "causal & padding": ("causal & padding(64, 40)", {"batch": 2}),
    "documents": ("documents(30, 34)", {}),
    "documents & causal": ("documents(30, 34) & causal", {}),
    "prefix": ("prefix(8)", {}),
    "block-sparse": ("block_sparse([[1, 0], [1, 1]], 32)", {}),
    "`~`, `\\|`": ("~window(3, 3) | causal", {}),
    "no key": ("documents(30, 30)", {}),
}
SCORES: dict[str, Score] = {
    "softcap": Softcap(50.0),
    "ALiBi": ALiBi(),
    "bias": Bias("hqk"),
    "relative bias": RelativeBias("t5(32,128,bidirectional)"),
    "sink": Sink(),
}
BOTH, FORWARD, NEITHER = "●", "○", "·"


def every_backend() -> dict[str, Backend]:
    """The bundled backends; loading their files needs no library but torch and Triton."""
    loaded = {}
    for name in backends_in(bundled_folder()):
        backend = importlib.import_module(f"{BACKENDS_PACKAGE}.{name}").backend
        backend.name = name
        loaded[name] = backend
    return loaded


def a_case(device: str, mask: Mask | None = None, **changes: object) -> Case:
    small: dict[str, object] = {"q_len": 64, "k_len": 64, "q_heads": 4, "head_dim": 64}
    small |= {"dtype": "bf16" if device == "cuda" else "fp32"}
    return Case(**(small | ({} if mask is None else {"mask": mask}) | changes))  # type: ignore[arg-type]


def refusal(backend: Backend, case: Case, device: str) -> str:
    """The reason, or an empty text if it is refused only for what this machine lacks."""
    refused = backend.refuses(case, device)
    if refused is None or " here" in refused.reason or "compiler" in refused.reason:
        return ""
    return refused.reason


def answer(
    backend: Backend, device: str, reasons: dict[str, list[str]], column: str, **fields: object
) -> str:
    """One cell; a refusal adds its column to `reasons`."""
    forward, both = (
        refusal(backend, a_case(device, direction=direction, **fields), device)  # type: ignore[arg-type]
        for direction in ("fwd", "fwd_bwd")
    )
    if forward:
        reasons.setdefault(forward, []).append(column)
        return NEITHER
    if both:
        reasons.setdefault(both, []).append(f"{column} (backward)")
        return FORWARD
    return BOTH


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def declared(backends: dict[str, Backend]) -> list[str]:
    head = (
        "backend",
        "devices",
        "dtypes",
        "head dims",
        "GQA",
        "Dv ≠ D",
        "contract",
        "rows without a key",
        "source",
    )
    lines = [row(head), row("---" for _ in head)]
    for name, backend in backends.items():
        can = backend.capabilities
        smallest, largest, step = can.head_dims
        dims = (
            "any"
            if largest >= 1 << 30
            else f"{smallest} to {largest}" + (f", step {step}" if step > 1 else "")
        )
        devices = ", ".join(sorted(can.devices))
        if can.architectures is not None:
            devices += f" (sm_{can.architectures[0]}{can.architectures[1]} and later)"
        source = f"[documentation]({can.source})" if can.source.startswith("http") else can.source
        yes = {True: "yes", False: "no"}
        label = f"`{name}`" + (", a whole layer" if can.layer_level else "")
        lines.append(
            row(
                (label, devices, ", ".join(sorted(can.dtypes)), dims, yes[can.gqa], yes[can.unequal_v_dim])
                + (can.contract.replace("_", " "), can.empty_rows.replace("_", " "), source)
            )
        )
    return lines


def answered(backends: dict[str, Backend], device: str) -> list[str]:
    """The tables of one device: masks, score changes, and the reasons of all refusals in them."""
    runs = {name: b for name, b in backends.items() if device in b.capabilities.devices}
    columns = [*MASKS, *SCORES]
    lines = [row(["backend", *columns]), row(["---"] + [":-:"] * len(columns))]
    refusals: dict[str, dict[str, list[str]]] = {}
    for name, backend in runs.items():
        reasons: dict[str, list[str]] = {}
        cells = []
        for column, (text, changes) in MASKS.items():
            cells.append(answer(backend, device, reasons, column, mask=parse_mask(text), **changes))
        for column, score in SCORES.items():
            cells.append(answer(backend, device, reasons, column, scores=(score,)))
        answer(backend, device, reasons, "grouped heads", kv_heads=2)  # listed only if refused
        lines.append(row([f"`{name}`", *cells]))
        refusals[name] = reasons
    lines.append("")
    for name, reasons in refusals.items():
        for reason, refused_columns in reasons.items():
            lines.append(f"- `{name}`: {', '.join(refused_columns)}: {reason}")
    return lines


def environments() -> list[str]:
    """The table of environments."""
    lines = [row(("environment", "backends", "made by")), row(("---",) * 3)]
    users: dict[str, list[str]] = {}
    for name, path in backends_in(bundled_folder()).items():
        environment = registry._literals(path).get("ENVIRONMENT")
        if environment:
            users.setdefault(environment, []).append(f"`{name}`")
    for environment, names in sorted(users.items()):
        text, sign, command = registry.how_to_make(environment).rpartition(", then ")
        lines.append(row((f"`{environment}`", ", ".join(names), f"{text}{sign}`{command}`")))
    return lines


def environment() -> dict[str, Any]:
    """What bits may depend on."""
    import torch

    whole = fingerprint("cuda" if torch.cuda.is_available() else "cpu")
    libraries = ("torch", "triton", "jax", "flax", "cuda", "cudnn")
    return {
        "machine": whole["machine"],
        "device": whole["device"],
        "threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "libraries": {name: whole["libraries"][name] for name in libraries if whole["libraries"].get(name)},
    }


def measure(name: str, only: list[str]) -> None:
    """Measure the claims of every backend that runs here, or of these, and store them."""
    path = RECORDS / f"{name}.json"
    here = environment()
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if record.get("environment") != here:
        record = {"environment": here, "backends": {}}
    RECORDS.mkdir(exist_ok=True)
    for backend in only or [entry.name for entry in registry.entries() if entry.available]:
        loaded = registry.resolve(backend)
        if here["device"] not in loaded.capabilities.devices:
            continue
        report = check(loaded, level="exhaustive", device=here["device"], dtypes=DTYPES, only="claims")
        claims = [claim.record() for claim in report.claims]
        record["backends"][backend] = {"version": loaded.version(), "claims": claims}
        record["backends"] = dict(sorted(record["backends"].items()))
        path.write_text(compact(record), encoding="utf-8")


def compact(record: dict[str, Any]) -> str:
    """The record as JSON, one line per claim."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    return re.sub(r"\{\n +\"name[^}]*\}", lambda claim: re.sub(r"\n *", " ", claim[0]), text)


def measured(record: dict[str, Any]) -> list[str]:
    """The table of one record: per backend and claim a sign per dtype, and what differs first."""
    here = record["environment"]
    libraries = ", ".join(f"{name} {version}" for name, version in here["libraries"].items())
    lines = [
        f"### {here['machine']}, {here['threads']} thread{'s' * (here['threads'] > 1)}",
        "",
        f"On {here['device']}; instruction set {here['instruction set']}; {libraries}.",
        "",
        row(["backend", "version", *(name.replace("_", " ") for name in CLAIMS)]),
        row(["---", "---"] + [":-:"] * len(CLAIMS)),
    ]
    notes = []
    for backend, entry in record["backends"].items():
        cells = []
        for name in CLAIMS:
            of_name = [claim for claim in entry["claims"] if claim["name"] == name]
            signs = {claim["dtype"]: TOLD.get(claim["told"], NEITHER) for claim in of_name}
            sign = " ".join(signs.get(dtype, NEITHER) for dtype in DTYPES)
            cells.append(f"**{sign}**" if any(claim["is_claimed"] for claim in of_name) else sign)
            for claim in of_name:
                if claim["told"] == DIFFERS:
                    calls = f"{claim['differing']} of {claim['calls']} call{'s' * (claim['calls'] > 1)}"
                    notes.append(
                        f"- `{backend}`, {name.replace('_', ' ')}, {claim['dtype']}: {calls}; {claim['words']}"
                    )
        lines.append(row([f"`{backend}`", entry["version"], *cells]))
    return [*lines, "", *notes, ""]


def to_the_bit() -> list[str]:
    """The tables of all records."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]
    return [line for record in records for line in measured(record)]


def page() -> str:
    backends = every_backend()
    return "\n".join(
        [
            "# Backends",
            "",
            "Generated by `python tools/backends_page.py` from the backends' own answers; do not edit.",
            "",
            "A refusal is an answer: no backend is patched, and none runs another kernel than the one it names.",
            "Refused cases of a sweep carry these reasons.",
            "",
            "## What they declare",
            "",
            *declared(backends),
            "",
            "The contract is the numeric one (see [how we judge](method.md)): *flash* keeps scores and statistics in",
            "float32, *flash splits* also merges splits of the keys by their float32 LSE, *dense* may round any",
            "intermediate. Cases with rows without a key are refused unless these give zero.",
            "",
            "## What they take on a GPU",
            "",
            f"{BOTH} forward and backward, {FORWARD} forward only, {NEITHER} refused. bf16, 4 heads of 64, 64 tokens.",
            "",
            *answered(backends, "cuda"),
            "",
            "## What they take on a CPU",
            "",
            f"{BOTH} forward and backward, {FORWARD} forward only, {NEITHER} refused. fp32, 4 heads of 64, 64 tokens.",
            "",
            *answered(backends, "cpu"),
            "",
            "## What they give to the bit",
            "",
            *TO_THE_BIT.splitlines(),
            *to_the_bit(),
            "## Environments",
            "",
            "A library that cannot be installed beside the others has its own environment",
            "(`attnbench env list`); `attnbench run --python NAME=/path/to/python` takes any interpreter that has it.",
            "",
            *environments(),
            "",
        ]
    )


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3:])
    wanted = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
            sys.exit(f"{PAGE} is out of date; run python tools/backends_page.py")
    else:
        PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
