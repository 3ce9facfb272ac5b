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
from attnbench.conformance.plan import Given, Plan, plan_of
from attnbench.conformance.report import Report
from attnbench.conformance.steps import CheckProgress, Steps, Stopped
from attnbench.errors import SIGNALLED, AttnbenchError
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
    progress: Callable[[CheckProgress], None] | None = None,
    time_limit_s: float | None = None,
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

    `progress` is called before each step, with what comes next and how many checks passed and failed so far. After
    `time_limit_s` the report has what was found so far, and is not right; a call that does not return is not ended,
    and a crash of the backend ends this process (the command `attnbench check` works in a second process and goes on).
    If a KeyboardInterrupt stops the check, it carries the report so far as a note.
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
    one = None if case is None else case if isinstance(case, Case) else Case.from_json(case)
    report = report_of(plan, one)
    steps = Steps(on_step=progress, time_limit_s=time_limit_s)
    try:
        run_checks(plan, report, steps, one, distribution, only is not None)
    except KeyboardInterrupt as error:
        error.add_note(str(report))
        raise
    return report


def report_of(plan: Plan, case: Case | None) -> Report:
    """The report of a plan before anything is checked."""
    report = Report(plan.backend.name, plan.level, plan.device, plan.seed, plan.contract)
    report.is_restricted = plan.is_restricted or case is not None
    return report


def run_checks(
    plan: Plan, report: Report, steps: Steps, case: Case | None, distribution: str, only_some: bool
) -> None:
    """Fill the report, in these steps: of the plan, or of one case. What stops it leaves what was found so far.

    `only_some`: the plan's checks were named, and are those of the case.
    """
    try:
        _run(plan, report, steps, case, distribution, only_some)
    except Stopped as reason:
        report.stopped = str(reason)
    except KeyboardInterrupt:
        report.stopped = SIGNALLED
        raise
    finally:
        if case is None:
            settle_known_defects(plan.backend, report)
        if report.stopped:
            report.gone.clear()  # a defect may show on a case that was not reached


def _run(
    plan: Plan, report: Report, steps: Steps, case: Case | None, distribution: str, only_some: bool
) -> None:
    if case is not None:
        checks = ChecksOfDtype(plan, report, case.dtype, settles=False, steps=steps)
        for name in plan.checks if only_some else (ORACLE,):
            checks.run_on(name, case, distribution)
        settle_contracts([checks], report)
        return
    by_dtype: list[ChecksOfDtype] = []
    for dtype in plan.dtypes:
        checks = ChecksOfDtype(plan, report, dtype, steps=steps)
        by_dtype.append(checks)
        checks.run()
        checks.add_crashes()
        plan = replace(plan, backend=checks.plan.backend)  # with what was found out about rows without a key
    for checks in by_dtype:
        checks.settle_dtype(is_limit=any(o.status == OK and o.check == ORACLE for o in report.outcomes))
    settle_contracts(by_dtype, report)


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
