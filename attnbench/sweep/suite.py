"""Suites: grids of cases from a TOML file or from the command line.

A grid is a table of lists; its cases are their product, with exactly the sizes written:

    description = "what it is for"

    [[cpu.grid]]                 # or [[gpu.grid]], or [[grid]] for both
    group = "BERT-base"          # free text for reports
    source = "where the numbers are from"
    seq = [128, 512]             # or q_len and k_len
    heads = ["12", "32:8"]       # query heads, or query:key heads
    head_dim = ["64", "192:128"] # one number, or that of q, k and that of v
    mask = ["causal & window(127, 0)"]
    score = ["none", "softcap(50) + sink"]
    dtype = ["fp32"]             # default: fp32 on a CPU, bf16 on a GPU
    direction = ["fwd", "fwd_bwd"]
    batch = [1]
    scale = [1.0]
    layout = ["bhsd"]
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from attnbench.errors import AttnbenchError, SuiteError, did_you_mean
from attnbench.problem import Case, Score, parse_mask, parse_score, split_outside_brackets

SUITES_PACKAGE = "attnbench_suites"
GRID_TABLES = {"cpu": "cpu", "cuda": "gpu"}  # kind of device -> the table of its grids
AXES = (
    "batch",
    "seq",
    "q_len",
    "k_len",
    "heads",
    "head_dim",
    "dtype",
    "mask",
    "score",
    "scale",
    "direction",
    "layout",
)
LABELS = ("group", "source")


@dataclass(frozen=True)
class Planned:
    """A case of a suite, its group in reports, and the source of its numbers."""

    case: Case
    group: str = ""
    source: str = ""


@dataclass(frozen=True)
class Suite:
    """Named grids; `grids` holds (place in the file, device kinds, table) for each."""

    name: str
    description: str = ""
    grids: tuple[tuple[str, frozenset[str], Mapping[str, Any]], ...] = ()

    def cases(self, device: str) -> list[Planned]:
        """The cases for a device ("cpu", "cuda", "cuda:1"), in the order of the file; equal cases once.

        Raises SuiteError if there is no grid for the device, or a grid holds an impossible case.
        """
        kind = device.split(":")[0]
        own = [(where, table) for where, kinds, table in self.grids if kind in kinds]
        if not own:
            have = sorted({kind for _, kinds, _ in self.grids for kind in kinds})
            raise SuiteError(
                f"suite {self.name} has no grid for {kind}, only for {', '.join(have) or 'no device'}"
            )
        planned: dict[Case, Planned] = {}
        for where, table in own:
            for plan in _product(where, table, kind):
                planned.setdefault(plan.case, plan)
        return list(planned.values())


def _product(where: str, table: Mapping[str, Any], kind: str) -> list[Planned]:
    """The cases of one grid; the lengths vary fastest, so that a curve over the length is together."""
    axes: dict[str, list[Any]] = {}
    for key, value in table.items():
        if key in LABELS:
            continue
        if key not in AXES:
            raise SuiteError(f"{where}: no key {key!r}{did_you_mean(key, (*AXES, *LABELS))}")
        axes[key] = list(value) if isinstance(value, (list, tuple)) else [value]
        if not axes[key]:
            raise SuiteError(f"{where}: {key} is an empty list; remove it, or add a value")
    if ("seq" in axes) == ("q_len" in axes or "k_len" in axes):
        raise SuiteError(f"{where}: give seq, or q_len and k_len")
    if "seq" not in axes and not ("q_len" in axes and "k_len" in axes):
        raise SuiteError(f"{where}: give both q_len and k_len, or seq")
    for key in ("heads", "head_dim"):
        if key not in axes:
            raise SuiteError(f"{where}: {key} is missing")
    axes.setdefault("dtype", ["fp32" if kind == "cpu" else "bf16"])
    order: list[str] = [
        key
        for key in ("mask", "score", "dtype", "heads", "head_dim", "batch", "scale", "layout")
        if key in axes
    ]
    order += [key for key in ("q_len", "k_len", "seq", "direction") if key in axes]
    labels = {key: str(table.get(key, "")) for key in LABELS}
    planned = []
    for values in product(*(axes[key] for key in order)):
        chosen = dict(zip(order, values, strict=True))
        try:
            planned.append(Planned(_case(dict(chosen)), **labels))
        except (AttnbenchError, TypeError, ValueError) as error:
            named = ", ".join(f"{key} = {value!r}" for key, value in chosen.items())
            raise SuiteError(f"{where}: {error} (with {named})") from error
    return planned


def _case(chosen: dict[str, Any]) -> Case:
    q_heads, kv_heads = _pair(chosen.pop("heads"), "heads")
    head_dim, v_dim = _pair(chosen.pop("head_dim"), "head_dim")
    seq = chosen.pop("seq", None)
    lengths = {"q_len": seq, "k_len": seq} if seq is not None else {}
    return Case(
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_dim=v_dim,
        mask=parse_mask(chosen.pop("mask", "full")),
        scores=_scores(chosen.pop("score", "none")),
        **lengths,
        **chosen,
    )


def _pair(value: int | str, key: str) -> tuple[int, int]:
    """`8` is (8, 8), `32:8` is (32, 8)."""
    parts = str(value).split(":")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise SuiteError(f"{key} is a number or two numbers like 32:8, each at least 1, not {value!r}")
    return int(parts[0]), int(parts[-1])


def _scores(text: object) -> tuple[Score, ...]:
    if not isinstance(text, str):
        raise SuiteError(f"score is a text such as 'softcap(50) + sink', or 'none', not {text!r}")
    if text.strip() in ("none", ""):
        return ()
    return tuple(parse_score(part.strip()) for part in split_outside_brackets(text, sep="+"))


def list_suites() -> dict[str, str]:
    """The bundled suites with their descriptions."""
    named = {file.name: file for file in files(SUITES_PACKAGE).iterdir() if file.name.endswith(".toml")}
    return {
        name.removesuffix(".toml"): str(
            tomllib.loads(file.read_text(encoding="utf-8")).get("description", "")
        )
        for name, file in sorted(named.items())
    }


def load_suite(name_or_path: str | os.PathLike[str]) -> Suite:
    """A bundled suite by name, or a TOML file by path; SuiteError names the file and the table."""
    text = os.fspath(name_or_path)
    if text.endswith(".toml") or os.sep in text:
        path = Path(text)
        if not path.is_file():
            raise SuiteError(
                f"no file {text!r}; give the path of a TOML suite, or one of {', '.join(list_suites())}"
            )
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"{text} cannot be read: {error}") from error
        return _read(path.stem, text, content)
    bundled = list_suites()
    if text not in bundled:
        near = did_you_mean(text, bundled)
        raise SuiteError(
            f"no suite called {text!r}{near}; there are {', '.join(bundled)}; or give path/to/suite.toml"
        )
    return _read(
        text, f"suite {text}", files(SUITES_PACKAGE).joinpath(f"{text}.toml").read_text(encoding="utf-8")
    )


def _read(name: str, where: str, text: str) -> Suite:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{where}: not TOML: {error}") from error
    unknown = sorted(set(content) - {"description", "grid", "cpu", "gpu"})
    if unknown:
        near = did_you_mean(unknown[0], ("description", "grid", "cpu", "gpu"))
        raise SuiteError(
            f"{where}: no table {unknown[0]!r}{near}; take description, [[grid]], [[cpu.grid]], [[gpu.grid]]"
        )
    for table in GRID_TABLES.values():
        of_device = content.get(table, {})
        if not isinstance(of_device, dict) or set(of_device) - {"grid"}:
            raise SuiteError(f"{where}: {table} holds nothing but its grids, each written [[{table}.grid]]")
    grids: list[tuple[str, frozenset[str], Mapping[str, Any]]] = []
    for label, kinds, tables in (
        ("grid", frozenset(GRID_TABLES), content.get("grid", [])),
        *(
            (f"{table}.grid", frozenset({kind}), content.get(table, {}).get("grid", []))
            for kind, table in GRID_TABLES.items()
        ),
    ):
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise SuiteError(f"{where}: {label} is written [[{label}]], once for each grid")
        grids += [(f"{where}, {label} {number}", kinds, table) for number, table in enumerate(tables, 1)]
    return Suite(name, str(content.get("description", "")), tuple(grids))


def suite_from_options(
    *,
    masks: Sequence[str] = ("full",),
    seq: Sequence[int] | None = None,
    q_lens: Sequence[int] | None = None,
    k_lens: Sequence[int] | None = None,
    heads: Sequence[str] = ("8",),
    head_dims: Sequence[str] = ("64",),
    dtypes: Sequence[str] | None = None,
    directions: Sequence[str] = ("fwd",),
    scores: Sequence[str] = ("none",),
    batches: Sequence[int] = (1,),
    scales: Sequence[float] | None = None,
    layouts: Sequence[str] | None = None,
    device: str = "cpu",
    name: str = "grid",
) -> Suite:
    """The command line's grid as a suite; default: batch 1, forward, 8 heads of 64, fp32 on a CPU, bf16 on a GPU."""
    table: dict[str, Any] = {
        "mask": masks,
        "heads": heads,
        "head_dim": head_dims,
        "direction": directions,
        "score": scores,
        "batch": batches,
    }
    optional = {
        "seq": seq,
        "q_len": q_lens,
        "k_len": k_lens,
        "dtype": dtypes,
        "scale": scales,
        "layout": layouts,
    }
    table |= {key: value for key, value in optional.items() if value is not None}
    if "seq" not in table and "q_len" not in table and "k_len" not in table:
        table["seq"] = [512, 1024, 2048]
    return Suite(name, grids=(("the command line", frozenset({device.split(":")[0]}), table),))
