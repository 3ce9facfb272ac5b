"""The rates of the self-test as tables and a document: of `check`, and of the judge on trials of its own."""

from __future__ import annotations

import json
from typing import Any

from attnbench.report.cells import markdown_cell
from attnbench.report.markdown import grid
from attnbench.selftest.check_rates import FAMILIES, directions_of
from attnbench.selftest.counts import (
    Tally,
    check_table,
    interval,
    missed_by_check,
    only_killers,
    survivors,
    table,
)
from attnbench.selftest.criteria import OURS
from attnbench.selftest.mutants import MUTANTS
from attnbench.selftest.mutants.right import RIGHT
from attnbench.selftest.trials import TRIALS

CHECK_HEAD = ("cases", "level", "dtype", "kills", "95 %", "false alarms", "95 %")
HEAD = ("criterion", "dtype", "direction", "kills", "95 %", "false alarms", "95 %")
DIRECTION = {"fwd": "forward", "fwd_bwd": "forward and backward"}


def rate(row: dict[str, Any], what: str) -> tuple[str, str]:
    """`150 of 150`, `97.6 to 100 %`; a dash if there were no trials."""
    if what not in row:
        return "-", "-"
    low, high = (100 * row[f"{what}_{side}"] for side in ("low", "high"))
    return f"{row[what]} of {row[f'{what}_of']}", f"{low:.3g} to {high:.3g} %"


def check_cells(part: Tally) -> list[list[str]]:
    """The table of `check` as texts, in the order of CHECK_HEAD."""
    return [
        [row["cases"], row["level"], row["dtype"], *rate(row, "kills"), *rate(row, "false_alarms")]
        for row in check_table(part)
    ]


def cells(part: Tally) -> list[list[str]]:
    """The table as texts, in the order of HEAD."""
    return [
        [
            row["criterion"],
            row["dtype"],
            DIRECTION[row["direction"]],
            *rate(row, "kills"),
            *rate(row, "false_alarms"),
        ]
        for row in table(part)
    ]


def as_json(part: Tally) -> str:
    """The whole result, for machines: the table, survivors, false alarms with their reasons, who kills whom."""
    record = {
        "check": check_table(part),
        "missed_by_check": missed_by_check(part),
        "table": table(part),
        "survivors": survivors(part),
        "only_killed_by": {dtype: only_killers(part, dtype) for dtype in part.killers},
        "killers": part.killers,
        "reasons": part.reasons,
        "diagnoses": {
            dtype: [
                {**d._asdict(), "guesses": [g._asdict() for g in d.guesses], "is_right": d.is_right}
                for d in named
            ]
            for dtype, named in part.diagnoses.items()
        },
        "mutants": len(MUTANTS),
        "right": [right.name for right in RIGHT],
        "trials": [trial.name for trial in TRIALS],
    }
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def _lines(by_key: dict[str, list[str]], is_sorted: bool = True) -> list[str]:
    items = sorted(by_key.items()) if is_sorted else by_key.items()
    return [f"- {markdown_cell(key)}: {markdown_cell(', '.join(names))}" for key, names in items]


def right_answers(part: Tally) -> str:
    """How many implementations, trials and seeds give the right answers of each dtype."""
    lines = []
    for (criterion, dtype, direction), count in sorted(part.false_alarms.items()):
        if criterion == OURS and direction == "fwd_bwd" and count.tried:
            named = [name.split(" | ") for name in count.tried]
            implementations, trials, seeds = (sorted({words[n] for words in named}) for n in range(3))
            lines.append(
                f"- {dtype}: {len(implementations)} implementations, {len(trials)} trials, {', '.join(seeds)}"
            )
    return "\n".join(lines) or "None."


def diagnosis_table(part: Tally) -> str:
    """How often the right cause is among the first two named, by cause, and what was named instead."""
    blocks = []
    for dtype, named in sorted(part.diagnoses.items()):
        right = [d for d in named if d.is_right]
        low, high = (100 * x for x in interval(len(right), len(named)))
        first = sum(d.guesses[0].cause == d.cause for d in named if d.guesses)
        blocks.append(
            f"In {dtype}: of {len(named)} mutants found, the right cause is named first on {first}, first or second on "
            f"{len(right)} ({100 * len(right) / len(named):.3g} %; {low:.3g} to {high:.3g} %)."
        )
        rows = []
        for cause in sorted({d.cause for d in named}):
            of = [d for d in named if d.cause == cause]
            rows.append([cause, str(len(of)), str(sum(d.is_right for d in of))])
        blocks.append(grid(["cause", "mutants", "named first or second"], rows, texts=1))
        wrong = {
            d.mutant: [f"{d.cause}; named: " + ", ".join(g.cause for g in d.guesses)]
            for d in named
            if not d.is_right
        }
        if wrong:
            blocks.append("Named otherwise:\n\n" + "\n".join(_lines(wrong)))
    return "\n\n".join(blocks) or "Not measured in this run."


def document(part: Tally) -> str:
    """docs/selftest.md."""
    alarms = {key: why for key, why in part.reasons.items() if " | seed " in key}
    exempt = [f"- {right.name}: {right.defect}" for right in RIGHT if right.defect]
    missed = missed_by_check(part) | {f"trials, {dtype}": names for dtype, names in survivors(part).items()}
    families = [
        [name, f"`{condition}`", ", ".join(DIRECTION[direction] for direction in directions_of(name)[-1:])]
        for name, condition in FAMILIES.items()
    ]
    blocks = [
        "# Kill rate and false-alarm rate of the judge",
        "Written by `attnbench selftest --full --write docs/selftest.md`; not by hand.",
        f"{len(MUTANTS)} mutants of one readable tiled attention (`attnbench/selftest/mutants/`, each with its origin) "
        f"and {len(RIGHT)} right implementations. Intervals are Clopper and Pearson's.",
        "## `attnbench check`",
        "A mutant is killed if `check` at that level calls it wrong. Right implementations count once per case and "
        "property. Within a family, `check` gets the family's condition, and only mutants count that live there: an "
        "exhaustive check of the family shows them, in fp32 but for faults of low precision.",
        grid(list(CHECK_HEAD), check_cells(part), texts=3) if part.checks else "Not measured in this run.",
        grid(["family", "condition", "direction"], families, texts=3),
        "## Surviving mutants",
        "\n".join(_lines(missed, is_sorted=False)) or "None.",
        "## False alarms",
        "\n".join(_lines({key: [why] for key, why in alarms.items()})) or "None.",
        "Not counted, because the library itself is wrong:",
        "\n".join(exempt) or "Nothing.",
        "## The judge on the trials",
        f"The mutants and the right implementations also meet {len(TRIALS)} trials (`attnbench/selftest/trials.py`), "
        "which compare the judge with other criteria on the same numbers. A mutant is killed in a direction by its "
        "first alarm there; *forward* judges out and LSE, and counts only mutants that show there. *No LSE* is the "
        "same judge for backends that return none. The classic criteria look at out and gradients.",
        grid(list(HEAD), cells(part), texts=3),
        "The right answers come from",
        right_answers(part),
        "## Causes named by the diagnosis",
        "Each mutant is diagnosed on the first trial that kills it, among all causes.",
        diagnosis_table(part),
        "## Mutants that one trial alone kills",
        "By trial, in bf16, where all mutants meet all trials.",
        "\n".join(_lines(only_killers(part, "bf16"))) or "None.",
    ]
    return "\n\n".join(blocks) + "\n"
