"""What a plain function promises, in words such as `contract=dense,empty_rows=mean_v,lengths=equal`, as capabilities.

The words come from `--declare`, from a dict DECLARES beside the function in its file, or from `as_backend`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import CLAIMS, CONTRACTS, SCORE_KINDS
from attnbench.errors import AttnbenchError, did_you_mean
from attnbench.problem import MASK_KINDS
from attnbench.problem.case import DTYPES

Declared = str | Mapping[str, Any]
BESIDE = "DECLARES"  # the dict in a function's file


class Word(NamedTuple):
    """The capability that a word declares, and the capability's value for each text that it takes.

    `joins`: texts may be joined by `+`, and make a set.
    """

    capability: str
    values: Mapping[str, Any]
    joins: bool = False


YES_OR_NO = {"yes": True, "no": False}
ANY_OR_EQUAL = {"any": True, "equal": False}
WORDS = {
    "contract": Word("contract", {each: each for each in CONTRACTS}),
    "empty_rows": Word("empty_rows", {each: each for each in ("zero", "nan", "mean_v", "undefined")}),
    "masked_nan": Word("masked_nan", {each: each for each in ("ignored", "may_spread")}),
    "double_backward": Word("double_backward", YES_OR_NO),
    "contiguous_features": Word("contiguous_features", YES_OR_NO),
    "backward": Word("backward", YES_OR_NO),
    "gqa": Word("gqa", YES_OR_NO),
    "lengths": Word("unequal_lengths", ANY_OR_EQUAL),
    "v_dim": Word("unequal_v_dim", ANY_OR_EQUAL),
    "combinations": Word("combinations", YES_OR_NO),
    "dtypes": Word("dtypes", {each: each for each in DTYPES}, joins=True),
    "masks": Word("masks", {each: each for each in sorted(MASK_KINDS)}, joins=True),
    "scores": Word("scores", {each: each for each in (*sorted(SCORE_KINDS), "none")}, joins=True),
    "claims": Word("claims", {each: each for each in CLAIMS}, joins=True),
}


def parse_declaration(declared: Declared) -> dict[str, Any]:
    """Capabilities by name, from a text `word=value,...` or a dict; a set in a text is `fp32+bf16`.

    Raises AttnbenchError for an unknown word or value, and for a word that is given twice.
    """
    if isinstance(declared, Mapping):
        pairs = list(declared.items())
    elif isinstance(declared, str):
        pairs = [_pair(item) for item in declared.split(",") if item.strip()]
    else:
        raise AttnbenchError(f"a declaration is a text word=value,... or a dict, not {declared!r}")
    capabilities: dict[str, Any] = {}
    for word, value in pairs:
        if word not in WORDS:
            near = did_you_mean(str(word), WORDS)
            raise AttnbenchError(
                f"nothing called {word!r} can be declared{near}; words are {', '.join(WORDS)}"
            )
        if WORDS[word].capability in capabilities:
            raise AttnbenchError(f"{word} is declared twice; declare it once")
        capabilities[WORDS[word].capability] = _value(word, value)
    return capabilities


def _pair(item: str) -> tuple[str, str]:
    word, equals, value = item.partition("=")
    if not equals:
        raise AttnbenchError(f"{item.strip()!r} declares nothing; write word=value, such as contract=dense")
    return word.strip(), value.strip()


def _value(word: str, value: Any) -> Any:
    _, values, joins = WORDS[word]
    if isinstance(value, bool):
        value = next((text for text, meant in values.items() if meant is value), value)
    if not joins:
        texts = [value]
    elif isinstance(value, str):
        texts = [text.strip() for text in value.split("+")]
    else:
        texts = list(value) if isinstance(value, (set, frozenset, list, tuple)) else [value]
    for text in texts:
        if not isinstance(text, str) or text not in values:
            near = did_you_mean(str(text), values)
            more = ", joined by +" if joins else ""
            raise AttnbenchError(f"{word} takes {', '.join(values)}{more}, not {text!r}{near}")
    return frozenset(values[text] for text in texts) - {"none"} if joins else values[texts[0]]


def declaration_text(capabilities: Mapping[str, Any]) -> str:
    """Capabilities as the text that declares them."""
    items = []
    for name, (capability, values, joins) in WORDS.items():
        if capability in capabilities:
            value = capabilities[capability]
            text = (
                "+".join(sorted(value)) or "none"
                if joins
                else next(t for t, v in values.items() if v == value)
            )
            items.append(f"{name}={text}")
    return ",".join(items)


def beside(fn: Callable[..., Any]) -> dict[str, Any]:
    """Capabilities from the dict DECLARES in the file of a function; none without one."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    declared = getattr(inspect.unwrap(fn), "__globals__", {}).get(BESIDE, {})
    if not isinstance(declared, Mapping):
        raise AttnbenchError(f"{BESIDE} is a dict of words and values, not a {type(declared).__name__}")
    return parse_declaration(declared)


def as_backend(fn: Callable[..., Any], name: str = "", **declared: Any) -> FunctionBackend:
    """A plain function `fn(q, k, v, *, mask, scores, scale) -> [B, H, Q, Dv]` as a backend that declares its promises.

    `as_backend(fn, contract="dense", empty_rows="mean_v", gqa=False, lengths="equal")`: the words of `WORDS`, stronger
    than those of a dict DECLARES in the function's file. Raises AttnbenchError for an unknown word or value.
    """
    if not callable(fn):
        raise AttnbenchError(f"{fn!r} is no function; give fn(q, k, v, *, mask, scores, scale)")
    backend = FunctionBackend(fn, name or getattr(fn, "__name__", type(fn).__name__))
    return backend.declaring(**beside(fn) | parse_declaration(declared))
