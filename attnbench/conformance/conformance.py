"""Check a backend in everything that it claims: the battery, the properties and the protocol, in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from attnbench.backend.declaration import Declared
from attnbench.conformance.checks import ChecksOfDtype
from attnbench.conformance.claims import REPEATS
from attnbench.conformance.known import settle_known_defects
from attnbench.conformance.outcome import OK, ORACLE
from attnbench.conformance.plan import Given, plan_of
from attnbench.conformance.report import Report
from attnbench.errors import AttnbenchError
from attnbench.judge.contracts import HYPOTHESES
from attnbench.problem import Case


def check(
    backend: Given,
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
    declare: Declared | None = None,
    case: Case | dict[str, Any] | None = None,
    distribution: str = "randn",
    repeats: int = REPEATS,
) -> Report:
    """Check a backend (a name, path/to/file.py:function, a Backend or a plain function) and report what is wrong.

    `masks`, `dtypes` and `directions` keep the check to what the backend is meant for, `where` to cases that meet a
    condition (a function of the case, or a text such as "q_len == 1 and k_len % 128 == 0"), `only` to some checks
    (oracle, protocol, a property or a claim to the bit by its name, or "claims"); `repeats` is how often a case is
    called again for the claims. If a plain function refuses a case with NotImplementedError, cases that it takes are
    drawn instead. `declare` says what a plain function promises (`attnbench.backend.declaration`), such as
    "empty_rows=mean_v,lengths=equal". If a function declares no contract and flash fails, another one is taken that
    allows and explains every error; the report names it. With `case` only that case is held against the oracle, on
    `distribution` (or, with `only="protocol"`, against the protocol). The same seed gives the same check. Raises
    AttnbenchError for a request that makes no sense, never for what the backend does.
    """
    plan = plan_of(
        backend,
        level=level,
        device=device,
        seed=seed,
        masks=masks,
        dtypes=dtypes,
        directions=directions,
        contract=contract,
        only=only,
        where=where,
        repeats=repeats,
        declare=declare,
    )
    if case is not None and where is not None:
        raise AttnbenchError("where chooses cases; drop it, or the case")
    report = Report(plan.backend.name, level, plan.device, seed, plan.contract)
    report.is_restricted = plan.is_restricted or case is not None
    if case is not None:
        one = case if isinstance(case, Case) else Case.from_json(case)
        checks = ChecksOfDtype(plan, report, one.dtype, settles=False)
        for name in (ORACLE,) if only is None else plan.checks:
            checks.run_on(name, one, distribution)
        settle_contracts([checks], report)
        return report
    by_dtype: list[ChecksOfDtype] = []
    for dtype in plan.dtypes:
        checks = ChecksOfDtype(plan, report, dtype)
        by_dtype.append(checks)
        checks.run()
        plan = replace(plan, backend=checks.plan.backend)  # with what was found out about rows without a key
    for checks in by_dtype:
        checks.settle_dtype(is_limit=any(o.status == OK and o.check == ORACLE for o in report.outcomes))
    settle_contracts(by_dtype, report)
    settle_known_defects(plan.backend, report)
    return report


def settle_contracts(by_dtype: Sequence[ChecksOfDtype], report: Report) -> None:
    """Name the one contract that all dtypes fit, if it is not flash; what was held back in vain is wrong."""
    found = {checks.dtype: checks.search.found for checks in by_dtype if checks.search is not None}
    contracts = sorted({contract for contract in found.values() if contract})
    for checks in by_dtype:
        checks.settle_contract(contracts[0] if len(contracts) == 1 else "")
    if len(contracts) > 1:
        words = "no one contract fits: " + ", ".join(f"{c} in {dtype}" for dtype, c in found.items() if c)
        for checks in by_dtype:
            checks.fail_for_another_contract(words)
    elif contracts:
        report.contract = contracts[0]
        dtypes = " and ".join(dtype for dtype, contract in found.items() if contract)
        report.not_flash = HYPOTHESES[contracts[0]].format(dtype=dtypes)
