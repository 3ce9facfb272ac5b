"""Reads the capabilities that a backend's file declares without running it; no library is imported."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

from attnbench.backend.interface import Capabilities

FIELDS = frozenset(field.name for field in fields(Capabilities))
DO_NOT_REFUSE = frozenset({"source", "timed", "compiles"})  # often no literals; no refusal depends on them


def declared_capabilities(file: Path) -> Capabilities | None:
    """The file's one `Capabilities(...)`; None if there are several or none, or what refuses is not written out.

    `source`, `timed` and `compiles` are left at their defaults unless they are literals.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (OSError, SyntaxError, ValueError):
        return None
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Capabilities"
    ]
    if len(calls) != 1 or calls[0].args:
        return None
    values: dict[str, Any] = {}
    for keyword in calls[0].keywords:
        try:
            values[str(keyword.arg)] = _value(keyword.value)
        except ValueError:
            if keyword.arg not in DO_NOT_REFUSE:
                return None
    return Capabilities(**values) if values.keys() <= FIELDS else None


def _value(node: ast.expr) -> Any:
    """A literal, or a frozenset of literals."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset" and not node.keywords:
        return frozenset(*map(ast.literal_eval, node.args))
    return ast.literal_eval(node)
