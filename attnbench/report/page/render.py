"""The page as one file: what the templates need, then Jinja with autoescape; only scripts of known hash may run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.errors import BackendUnavailable
from attnbench.gate import FAILING, ResultSet
from attnbench.report.cells import clean
from attnbench.report.charts.palette import looks_of
from attnbench.report.frame import frame
from attnbench.report.labels import case_text, with_families
from attnbench.report.page import overview, trust
from attnbench.report.page.compared import Compared, compared
from attnbench.report.page.rows import page_rows, roofs_of, selection
from attnbench.report.ranking import Winner, winners
from attnbench.report.tables import heading, reasons

SCRIPTS = ("figures.js", "draw.js", "tables.js", "page.js")  # in this order, in one scope
MOST_ROWS_AT_ONCE = 16
OFFSETS = 7  # of the points within a backend's row in the chart of ratios, so that they do not overlap
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
INSTALL = "the page needs altair, vl-convert-python and jinja2: pip install 'attnbench[page]'"


@dataclass(frozen=True)
class Shown:
    """One result set as the page shows it."""

    place: int
    name: str
    heading: str
    facts: list[tuple[str, str]]
    answer: tuple[str, str]
    verdicts: list[overview.BackendVerdict]
    grids: list[overview.Grid]
    agreements: list[trust.Agreement]
    furthest: trust.Furthest | None
    picture: str
    reasons: list[Any]
    noises: list[trust.Noise]
    remarks: list[tuple[str, int, str]]
    clocks: list[tuple[str, str]]

    @property
    def shows_all(self) -> bool:
        """Whether the grids of all shapes are few enough to show at once."""
        return sum(len(grid.rows) for grid in self.grids) <= MOST_ROWS_AT_ONCE


def write_page(sets: Sequence[ResultSet], path: Path, pictures: Mapping[int, bytes] | None = None) -> Path:
    """Write the page of one or several result sets (the others are compared to the first).

    `pictures` are PNG files by the index of their set: the errors of the result that `furthest_off` gives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(sets, pictures), encoding="utf-8")
    return path


def page(sets: Sequence[ResultSet], pictures: Mapping[int, bytes] | None = None) -> str:
    """The HTML text; raises BackendUnavailable with what to install if the `page` extra is missing."""
    environment, specifications, bundle = _libraries()
    tables = [with_families(frame(one.results, one.environments)) for one in sets]
    won = [winners(table) for table in tables]
    names = _names(sets)
    shown = [
        _shown(n, names[n], one, tables[n], won[n], (pictures or {}).get(n)) for n, one in enumerate(sets)
    ]
    pairs = _pairs(sets, names, tables, won)
    looks = looks_of(tables)
    data = {
        **page_rows(tables),
        "sets": names,
        "roofs": [roofs_of(table, one.environments) for table, one in zip(tables, sets, strict=True)],
        "looks": looks,
        "specs": specifications,
        "noise": [[vars(one) for one in s.noises] for s in shown],
        "compare": [_drawn(one) for one in pairs],
    }
    script = _script()
    policy = f"{POLICY}; script-src {' '.join(_hash(text) for text in (bundle, script))}"
    return environment.get_template("page.html").render(
        shown=shown,
        pairs=pairs,
        looks=looks,
        policy=policy,
        style=_asset("page.css"),
        spread_text=trust.spread_text,
        failing=FAILING,
        bundle=bundle,
        script=script,
        data=json_text(data),
        title=shown[0].heading if len(shown) == 1 else ", ".join(names),
    )


def _libraries() -> tuple[Any, dict[str, Any], str]:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined

        from attnbench.report.page.charts import specifications

        environment = Environment(
            loader=FunctionLoader(_asset),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment, specifications(), _bundle()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("altair", "vl_convert", "jinja2"):
            raise
        raise BackendUnavailable(INSTALL) from error


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in which no string can end its element."""
    import altair
    import vl_convert

    version = ".".join(altair.VEGALITE_VERSION.split(".")[:2])
    text = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;", vl_version=version)
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _asset(name: str) -> str:
    return files("attnbench.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _script() -> str:
    parts = "\n".join(_asset(name) for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def json_text(value: Any) -> str:
    """JSON for an HTML page: nothing in it can end its element or begin another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _names(sets: Sequence[ResultSet]) -> list[str]:
    """The names of the sets; equal ones are numbered."""
    names: list[str] = []
    for place, one in enumerate(sets):
        name = clean(one.name, 60) or f"set {place + 1}"
        names.append(name if name not in names else f"{name} ({place + 1})")
    return names


def _shown(
    place: int, name: str, one: ResultSet, table: pd.DataFrame, won: list[Winner], picture: bytes | None
) -> Shown:
    places = [value for value in one.environments.values() if isinstance(value, dict)]
    verdicts = overview.verdicts(table, won)
    return Shown(
        place,
        name,
        heading(table),
        overview.facts(table, one.environments),
        overview.answer(verdicts, won),
        verdicts,
        overview.grids(won, _links(table, place)),
        trust.agreements(table),
        trust.furthest(trust.furthest_off(one.results)),
        base64.b64encode(picture).decode() if picture else "",
        reasons(table),
        trust.noises(table),
        trust.remarks(table),
        trust.clocks(places),
    )


def _links(table: pd.DataFrame, place: int) -> dict[str, dict[str, str]]:
    """The selection that shows a case in Explore, by case."""
    return {
        str(row.case): {"set": str(place)} | selection(row)
        for row in table.drop_duplicates("case").itertuples()
    }


def _pairs(
    sets: Sequence[ResultSet], names: list[str], tables: list[pd.DataFrame], won: list[list[Winner]]
) -> list[Compared]:
    case_texts = {
        str(row.case): clean(case_text(row), 160)
        for table in tables
        for row in table.drop_duplicates("case").itertuples()
    }
    base, *heads = [
        ResultSet(one.results, one.environments, name) for one, name in zip(sets, names, strict=True)
    ]
    return [compared(base, head, case_texts, (won[0], won[n])) for n, head in enumerate(heads, 1)]


def _drawn(one: Compared) -> dict[str, Any]:
    rows = [
        {
            "backend": r.backend,
            "offset": place % OFFSETS,
            "point": r.point,
            "low": r.low or r.point,
            "high": r.high or r.point,
            "text": f"{r.backend}, {r.case}, {r.which}: {r.base} became {r.head}, {r.ratio} ({r.interval}): {r.kind}",
        }
        for place, r in enumerate(sorted(one.ratios, key=lambda r: r.backend))
    ]
    return {"margin": one.margin, "points": rows}
