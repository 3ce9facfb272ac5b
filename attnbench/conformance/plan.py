"""The request of a check: the backend, and the dtypes, directions, masks, cases and checks to keep to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.backend.declaration import Declared, declaration_text, parse_declaration
from attnbench.backend.differentiable import FunctionBackend, finds_contract
from attnbench.backend.interface import CLAIMS, Backend
from attnbench.backend.registry import function_backend, resolve
from attnbench.conformance.battery import LEVELS
from attnbench.conformance.claims import REPEATS
from attnbench.conformance.outcome import ORACLE, PROTOCOL
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.device import work_on
from attnbench.errors import AttnbenchError
from attnbench.problem import Case
from attnbench.problem.case import DIRECTIONS, DTYPES
from attnbench.problem.condition import Condition

Given = str | Backend | Callable[..., Any]
CHECKS = (ORACLE, PROTOCOL, *PROPERTIES, *CLAIMS)
EXHAUSTIVE_CHECKS = {each.name for each in PROPERTIES.values() if each.level == "exhaustive"}
QUICK_CHECKS = (ORACLE, PROTOCOL)  # those of the level smoke


@dataclass(frozen=True)
class Plan:
    """One backend, and what of it is checked; `masks` None stands for all that it takes.

    `where_text` is the text of `where`, if it was a text. `is_restricted`: the caller keeps the check to some masks or
    checks, or to the level smoke. `declare`: the declaration of a plain function that came with the request, as a text.
    `finds_contract`: another contract than flash is looked for if flash fails.
    """

    backend: Backend
    given_contract: str | None
    contract: str
    level: str
    device: str
    seed: int
    masks: tuple[str, ...] | None
    dtypes: tuple[str, ...]
    directions: tuple[str, ...]
    checks: tuple[str, ...]
    where: Callable[[Case], bool] | None = None
    where_text: str = ""
    is_restricted: bool = False
    repeats: int = REPEATS
    declare: str = ""
    finds_contract: bool = False


def plan_of(
    given: Given,
    *,
    level: str = "standard",
    device: str = "auto",
    seed: int = 0,
    masks: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    directions: Iterable[str] | None = None,
    contract: str | None = None,
    only: Iterable[str] | None = None,
    where: str | Callable[[Case], bool] | None = None,
    repeats: int = REPEATS,
    declare: Declared | None = None,
) -> Plan:
    """The request to `check`, within what the backend declares; AttnbenchError if a word is unknown."""
    if level not in LEVELS:
        raise AttnbenchError(f"no level {level!r}; take one of {', '.join(LEVELS)}")
    if repeats < 1:
        raise AttnbenchError(f"repeats is a whole number of at least 1, not {repeats}")
    backend = _backend(given, contract)
    declared = {} if declare is None else parse_declaration(declare)
    if declared and not isinstance(backend, FunctionBackend):
        raise AttnbenchError(
            f"words declare a plain function; {backend.name} is a backend with `capabilities` of its own"
        )
    if isinstance(backend, FunctionBackend):
        backend = backend.declaring(**declared)
    can = backend.capabilities
    checks = CHECKS if only is not None or level != "smoke" else QUICK_CHECKS
    if only is None and level != "exhaustive":
        checks = tuple(name for name in checks if name not in EXHAUSTIVE_CHECKS)
    wanted_dtypes = among("dtype", dtypes, tuple(DTYPES))
    wanted_directions = among("direction", directions, DIRECTIONS)
    return Plan(
        backend,
        contract,
        contract or can.contract,
        level,
        work_on(device),
        seed,
        None if masks is None else tuple([masks] if isinstance(masks, str) else sorted(masks)),
        tuple(d for d in wanted_dtypes if d in can.dtypes),
        tuple(d for d in wanted_directions if d == "fwd" or can.backward),
        among("check", _spelled_out(only), checks),
        Condition(where).holds if isinstance(where, str) else where,
        where if isinstance(where, str) else "",
        masks is not None or only is not None or level == "smoke",
        repeats,
        declaration_text(declared),
        finds_contract(backend, contract),
    )


def _backend(given: Given, contract: str | None) -> Backend:
    if isinstance(given, str):
        return resolve(given, contract=contract)
    if isinstance(given, Backend):
        given.name = given.name or type(given).__name__
        return given
    if callable(given):
        return function_backend(given, contract=contract)
    raise AttnbenchError(
        f"{given!r} is no backend; give a name, path/to/file.py:function, a Backend or a function"
    )


def _spelled_out(only: Iterable[str] | None) -> Iterable[str] | None:
    """The checks that are asked for, with `claims` for all claims to the bit."""
    if only is None:
        return None
    words = [only] if isinstance(only, str) else list(only)
    return [each for word in words for each in (CLAIMS if word == "claims" else (word,))]


def among(what: str, chosen: Iterable[str] | None, words: Sequence[str]) -> tuple[str, ...]:
    """The chosen words in the order of all; all if `chosen` is None. AttnbenchError for an unknown word."""
    if chosen is None:
        return tuple(words)
    wanted = [chosen] if isinstance(chosen, str) else list(chosen)
    for word in wanted:
        if word not in words:
            raise AttnbenchError(f"no {what} {word!r}; take {', '.join(words)}")
    return tuple(word for word in words if word in wanted)
