"""Conditions on a case as text, such as `q_len == 1 and k_len % 128 == 0`: parsed, never evaluated as Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from attnbench.errors import CaseError, MaskError, did_you_mean
from attnbench.problem.case import Case
from attnbench.problem.grammar import parse_mask

FIELDS: dict[str, Callable[[Case], Any]] = {
    **{
        name: operator.attrgetter(name)
        for name in ("batch", "q_len", "k_len", "q_heads", "kv_heads", "group", "head_dim", "v_dim")
        + ("dtype", "direction", "layout", "scale")
    },
    "mask": lambda case: str(case.mask),
    "mask_kinds": lambda case: tuple(sorted(case.mask.kinds)),
    "scores": lambda case: tuple(score.kind for score in case.scores),
    "empty_rows": lambda case: case.has_empty_rows,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FORM = "and, or, not, ==, !=, <, <=, >, >=, in, + - * // %, numbers, quoted words and tuples of them"


@dataclass(frozen=True)
class Condition:
    """A condition on the fields of a case (`FIELDS`); `mask` is compared as a mask's text.

    Raises CaseError, naming the column, for a text that is not of this form.
    """

    text: str

    def __post_init__(self) -> None:
        _check(self._tree, self.text)

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise CaseError(
                f"condition {self.text!r}, column {error.offset}: {error.msg}; it takes {FORM}"
            ) from None

    def holds(self, case: Case) -> bool:
        """Whether the case meets the condition; CaseError if its values cannot be compared so."""
        return bool(self._of(self._tree, case))

    def unmet(self, case: Case) -> str:
        """The first clause of the conjunction that the case does not meet, with its values; or an empty text."""
        is_conjunction = isinstance(self._tree, ast.BoolOp) and isinstance(self._tree.op, ast.And)
        for clause in self._tree.values if is_conjunction else [self._tree]:  # type: ignore[attr-defined]
            if not self._of(clause, case):
                names = dict.fromkeys(n.id for n in ast.walk(clause) if isinstance(n, ast.Name))
                values = ", ".join(f"{name} is {FIELDS[name](case)}" for name in names)
                return f"takes {ast.unparse(clause)} only; {values}"
        return ""

    def _of(self, node: ast.expr, case: Case) -> Any:
        try:
            return self._value(node, case)
        except (TypeError, ZeroDivisionError) as error:
            raise CaseError(f"condition {self.text!r} cannot be computed for {case.id}: {error}") from None

    def _value(self, node: ast.expr, case: Case) -> Any:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return all(self._value(value, case) for value in values)
            case ast.BoolOp(values=values):
                return any(self._value(value, case) for value in values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, case)
            case ast.UnaryOp(operand=operand):
                return -self._value(operand, case)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                operands = [self._value(x, case) for x in (left, *comparators)]
                return all(
                    _COMPARISONS[type(op)](a, b)
                    for op, a, b in zip(ops, operands, operands[1:], strict=False)
                )
            case ast.BinOp(left=left, op=op, right=right):
                return _ARITHMETIC[type(op)](self._value(left, case), self._value(right, case))
            case ast.Name(id=name):
                return FIELDS[name](case)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return tuple(self._value(element, case) for element in elements)
            case ast.Constant(value=str() as text):
                return _canonical(text)
            case ast.Constant(value=value):
                return value
        raise AssertionError(f"unchecked node {ast.dump(node)}")


def _canonical(text: str) -> str:
    """A mask's text as masks print it; any other word as it is."""
    try:
        return str(parse_mask(text))
    except MaskError:
        return text


_ALLOWED: tuple[type, ...] = (
    *(
        ast.BoolOp,
        ast.And,
        ast.Or,
        ast.UnaryOp,
        ast.Not,
        ast.USub,
        ast.Compare,
        ast.BinOp,
        ast.Name,
        ast.Load,
    ),
    *(ast.Tuple, ast.List, ast.Constant, *_COMPARISONS, *_ARITHMETIC),
)


def _check(tree: ast.expr, text: str) -> None:
    """Raise CaseError at the first node that a condition may not hold."""
    for node in ast.walk(tree):
        column = getattr(node, "col_offset", 0) + 1
        if not isinstance(node, _ALLOWED):
            raise CaseError(
                f"condition {text!r}, column {column}: {type(node).__name__} is not taken; it takes {FORM}"
            )
        if isinstance(node, ast.Name) and node.id not in FIELDS:
            near = did_you_mean(node.id, FIELDS)
            raise CaseError(
                f"condition {text!r}, column {column}: no field {node.id!r}{near}; fields are {', '.join(FIELDS)}"
            )
        if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float, str, type(None))):
            raise CaseError(
                f"condition {text!r}, column {column}: {node.value!r} is not taken; it takes {FORM}"
            )
