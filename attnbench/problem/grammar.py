"""The text form of masks and score changes: tokens, calls with arguments, and mask expressions.

`~` binds before `&` before `|`, `&` and `|` associate to the left, parentheses group. Arguments are numbers,
`inf`, bare words or bracketed lists of them. Nothing is evaluated and no file is read.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from attnbench.errors import AttnbenchError, MaskError, ScoreError, did_you_mean
from attnbench.problem.lengths import Documents, Padding
from attnbench.problem.masks import And, Extent, Leaf, Mask, Not, Or
from attnbench.problem.primitives import (
    Causal,
    Dilated,
    Full,
    GlobalTokens,
    PrefixLM,
    SlidingWindow,
)
from attnbench.problem.tables import BlockSparse, Explicit

LEAVES: dict[str, type[Leaf]] = {
    leaf.name: leaf
    for leaf in (
        Full,
        Causal,
        SlidingWindow,
        Padding,
        Documents,
        PrefixLM,
        GlobalTokens,
        BlockSparse,
        Dilated,
        Explicit,
    )
}
MASK_KINDS = frozenset(
    kind for leaf in LEAVES.values() for mask in leaf.examples(Extent(1, 1, 8, 8)) for kind in mask.kinds
)
MAX_DEPTH = 64  # nested parentheses, negations or brackets
MAX_OPERATORS = 200
MAX_DIGITS = 18
TOKEN = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)|(?P<sign>[~&|()\[\],]))",
    re.ASCII,
)
INSTEAD = {"and": "&", "or": "|", "not": "~", "!": "~"}


@dataclass(frozen=True)
class Token:
    """One word, number or sign of a text, and the column (from 1) where it starts."""

    kind: str
    text: str
    column: int


class Tokens:
    """The tokens of a text, read from the front; raises `error` with the column of a token that does not fit."""

    def __init__(self, text: str, error: type[AttnbenchError]) -> None:
        self.error = error
        self._tokens: list[Token] = []
        self._next = 0
        if not isinstance(text, str):
            raise error(f"expected a text, not {text!r}")
        end = len(text.rstrip())
        at = 0
        while at < end:
            match = TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                hint = f"; write {INSTEAD[text[at]]!r} for it" if text[at] in INSTEAD else "; remove it"
                raise error(f"unexpected {text[at]!r} at column {at + 1}{hint}")
            kind = match.lastgroup
            self._tokens.append(Token(kind, match[kind], match.start(kind) + 1))
            at = match.end()
        self._tokens.append(Token("end", "the end", end + 1))

    @property
    def front(self) -> Token:
        return self._tokens[self._next]

    def take(self) -> Token:
        """Read the front token."""
        token = self.front
        if token.kind != "end":
            self._next += 1
        return token

    def accept(self, sign: str) -> bool:
        """Read the front token if it is this sign."""
        is_front = self.front.kind == "sign" and self.front.text == sign
        if is_front:
            self.take()
        return is_front

    def expect(self, sign: str, use: str) -> None:
        """Read this sign, or raise an error with its use."""
        if not self.accept(sign):
            raise self.unexpected(f"{sign!r} {use}")

    def unexpected(self, wanted: str) -> AttnbenchError:
        """The error for a front token that is not what is wanted."""
        front = self.front.text if self.front.kind == "end" else repr(self.front.text)
        instead = INSTEAD.get(self.front.text.lower())
        hint = f"; write {instead!r} for it" if instead else ""
        return self.error(f"expected {wanted} at column {self.front.column}, found {front}{hint}")

    def arguments(self) -> tuple[Any, ...]:
        """Read `(argument, ...)` if it follows; () without it."""
        if not self.accept("("):
            return ()
        return self._values(")", "to close the arguments", 1)

    def _values(self, closing: str, use: str, depth: int) -> tuple[Any, ...]:
        if depth > MAX_DEPTH:
            raise self.error(f"brackets within more than {MAX_DEPTH} others at column {self.front.column}")
        values: list[Any] = []
        while not self.accept(closing):
            if values:
                self.expect(",", f"or {closing!r}")
            values.append(self._value(depth))
        return tuple(values)

    def _value(self, depth: int) -> Any:
        if self.accept("["):
            return self._values("]", "to close the list", depth + 1)
        token = self.front
        if token.kind not in ("number", "word"):
            raise self.unexpected("a number, a word or a list")
        self.take()
        if token.kind == "word":
            return math.inf if token.text == "inf" else token.text
        if not token.text.lstrip("-").isdigit():
            return float(token.text)
        if len(token.text) > MAX_DIGITS:
            raise self.error(f"number too large at column {token.column}; write inf for unlimited")
        return int(token.text)


def example_of(kind: str, extent: Extent) -> Mask:
    """The example that the leaf of this kind gives for the extent."""
    return next(m for leaf in LEAVES.values() for m in leaf.examples(extent) if m.kinds == {kind})


def parse_mask(text: str) -> Mask:
    """Read a mask expression such as `causal & window(127, 0)`; `parse_mask(str(mask)) == mask`.

    Raises MaskError (a ValueError) with the mistake, its column and what to do.
    """
    tokens = Tokens(text, MaskError)
    if sum(t.kind == "sign" and t.text in "&|" for t in tokens._tokens) > MAX_OPERATORS:
        raise MaskError(f"a mask has at most {MAX_OPERATORS} operators; use explicit or block_sparse")
    mask = _parse_or(tokens, 0)
    if tokens.front.kind != "end":
        raise tokens.unexpected("'&', '|' or the end")
    return mask


def _parse_or(tokens: Tokens, depth: int) -> Mask:
    mask = _parse_and(tokens, depth)
    while tokens.accept("|"):
        mask = Or(mask, _parse_and(tokens, depth))
    return mask


def _parse_and(tokens: Tokens, depth: int) -> Mask:
    mask = _parse_unary(tokens, depth)
    while tokens.accept("&"):
        mask = And(mask, _parse_unary(tokens, depth))
    return mask


def _parse_unary(tokens: Tokens, depth: int) -> Mask:
    if depth > MAX_DEPTH:
        raise MaskError(
            f"more than {MAX_DEPTH} levels at column {tokens.front.column}; remove doubled '~' and '('"
        )
    if tokens.accept("~"):
        return Not(_parse_unary(tokens, depth + 1))
    if tokens.accept("("):
        mask = _parse_or(tokens, depth + 1)
        tokens.expect(")", "to close the group")
        return mask
    if tokens.front.kind != "word":
        raise tokens.unexpected("a mask such as 'causal'")
    word = tokens.take()
    if word.text not in LEAVES:
        hint = did_you_mean(word.text, LEAVES) or f"; the masks are {', '.join(LEAVES)}"
        if word.text.lower() in INSTEAD:
            hint = f"; did you mean {INSTEAD[word.text.lower()]!r}?"
        raise MaskError(f"unknown mask {word.text!r} at column {word.column}{hint}")
    leaf = LEAVES[word.text]
    try:
        return leaf.from_arguments(tokens.arguments())
    except TypeError:
        raise MaskError(
            f"wrong arguments for {leaf.name!r} at column {word.column}; write {leaf.takes}"
        ) from None
    except MaskError as error:
        if "at column" in str(error):
            raise
        raise MaskError(f"{error} (in {leaf.name!r} at column {word.column}; write {leaf.takes})") from None


def parse_call(text: str, error: type[AttnbenchError] = ScoreError) -> tuple[str, tuple[Any, ...]]:
    """Read `name` or `name(argument, ...)`: the name, and arguments as int, float, str or tuples of them."""
    tokens = Tokens(text, error)
    if tokens.front.kind != "word":
        raise tokens.unexpected("a name")
    name = tokens.take().text
    arguments = tokens.arguments()
    if tokens.front.kind != "end":
        raise tokens.unexpected("the end")
    return name, arguments


def split_outside_brackets(text: str, sep: str = ",") -> list[str]:
    """The pieces of a list on the command line, split at `sep` outside brackets, without empty ones."""
    pieces, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([") - (sign in ")]")
        if depth < 0:
            raise MaskError(f"{sign!r} at column {at + 1} closes nothing; remove it")
        if sign == sep and depth == 0:
            pieces.append(text[start:at])
            start = at + 1
    if depth:
        raise MaskError(f"{depth} open bracket(s) at the end of {text!r}; close them")
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces if piece.strip()]
