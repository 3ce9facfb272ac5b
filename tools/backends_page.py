"""Writes docs/backends.md: who takes which mask, score change, dtype, head dim and direction, and who refuses why.

Everything on the page is asked of the backends themselves, whether their libraries are installed or not:
`python tools/backends_page.py` writes it, `--check` fails where it is out of date.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from attnbench.backend import Backend, registry
from attnbench.backend.sources import BACKENDS_PACKAGE, backends_in, bundled_folder
from attnbench.problem import ALiBi, Bias, Case, Mask, RelativeBias, Score, Sink, Softcap, parse_mask

PAGE = Path(__file__).resolve().parents[1] / "docs" / "backends.md"

# Column -> mask, and changes of the case where it needs them.
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
    """The bundled backends; none of their files needs its library to be read but those that torch brings along."""
    found = {}
    for name in backends_in(bundled_folder()):
        backend = importlib.import_module(f"{BACKENDS_PACKAGE}.{name}").backend
        backend.name = name
        found[name] = backend
    return found


def a_case(device: str, mask: Mask | None = None, **changes: object) -> Case:
    small: dict[str, object] = {"q_len": 64, "k_len": 64, "q_heads": 4, "head_dim": 64}
    small |= {"dtype": "bf16" if device == "cuda" else "fp32"}
    return Case(**(small | ({} if mask is None else {"mask": mask}) | changes))  # type: ignore[arg-type]


def refusal(backend: Backend, case: Case, device: str) -> str:
    """The reason, or an empty text. What only this machine lacks is no refusal of the backend's."""
    found = backend.refuses(case, device)
    if found is None or " here" in found.reason or "compiler" in found.reason:
        return ""
    return found.reason


def answer(backend: Backend, device: str, reasons: dict[str, list[str]], column: str, **asked: object) -> str:
    """One cell; the reason goes to `reasons` with the columns it holds for."""
    said = {d: refusal(backend, a_case(device, direction=d, **asked), device) for d in ("fwd", "fwd_bwd")}  # type: ignore[arg-type]
    if said["fwd"]:
        reasons.setdefault(said["fwd"], []).append(column)
        return NEITHER
    if said["fwd_bwd"]:
        reasons.setdefault(said["fwd_bwd"], []).append(f"{column} (backward)")
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
    there = {name: b for name, b in backends.items() if device in b.capabilities.devices}
    columns = [*MASKS, *SCORES]
    lines = [row(["backend", *columns]), row(["---"] + [":-:"] * len(columns))]
    said: dict[str, dict[str, list[str]]] = {}
    for name, backend in there.items():
        reasons: dict[str, list[str]] = {}
        cells = []
        for column, (text, changes) in MASKS.items():
            cells.append(answer(backend, device, reasons, column, mask=parse_mask(text), **changes))
        for column, score in SCORES.items():
            cells.append(answer(backend, device, reasons, column, scores=(score,)))
        answer(backend, device, reasons, "grouped heads", kv_heads=2)  # listed where it is refused
        lines.append(row([f"`{name}`", *cells]))
        said[name] = reasons
    lines.append("")
    for name, reasons in said.items():
        for reason, where in reasons.items():
            lines.append(f"- `{name}`: {', '.join(where)}: {reason}")
    return lines


def lives(backends: dict[str, Backend]) -> list[str]:
    lines = [row(("environment", "backends", "made by")), row(("---",) * 3)]
    homes: dict[str, list[str]] = {}
    for name, path in backends_in(bundled_folder()).items():
        home = registry._literals(path).get("ENVIRONMENT")
        if home:
            homes.setdefault(home, []).append(f"`{name}`")
    for home, names in sorted(homes.items()):
        made = registry.how_to_make(home)
        text, sign, command = made.rpartition(", then ")
        command = f"{text}{sign}`{command}`"
        lines.append(row((f"`{home}`", ", ".join(names), command)))
    return lines


def page() -> str:
    backends = every_backend()
    return "\n".join(
        [
            "# Backends",
            "",
            "Generated by `python tools/backends_page.py` from what the backends themselves answer; do not edit.",
            "",
            "A refusal is an answer: no backend is patched, and none runs another kernel than the one it names. The",
            "refused cases of a sweep carry these reasons.",
            "",
            "## What they declare",
            "",
            *declared(backends),
            "",
            "The contract is the numeric one (see [how we judge](method.md)): *flash* keeps scores and statistics in",
            "float32, *flash splits* also merges splits of the keys by their float32 LSE, *dense* may round any",
            "intermediate. Unless rows without a key give zero, such cases are refused.",
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
            "## Where their libraries live",
            "",
            "A library that cannot be installed beside the others has an environment of its own",
            "(`attnbench env list`); `attnbench run --python NAME=/path/to/python` takes any interpreter that has it.",
            "",
            *lives(backends),
            "",
        ]
    )


def main() -> None:
    wanted = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
            sys.exit(f"{PAGE} is out of date; run python tools/backends_page.py")
    else:
        PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
