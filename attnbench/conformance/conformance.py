"""Is this backend right in everything that it claims? The battery, the properties and the protocol, in one report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnbench.conformance.checks import ChecksOfDtype
from attnbench.conformance.known import settle_known_defects
from attnbench.conformance.plan import Given, plan_of
from attnbench.conformance.report import ORACLE, Report
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
    case: Case | dict[str, Any] | None = None,
    distribution: str = "randn",
) -> Report:
    """Check a backend (a name, path/to/file.py:function, a Backend or a plain function) and report what is wrong.

    `masks`, `dtypes` and `directions` keep the check to what the backend is meant for, `only` to some of the checks
    (oracle, protocol, or a property by its name); a NotImplementedError from a plain function refuses the case it is
    given. With `case` that one is held against the oracle, on `distribution` (`only="protocol"`: how it is worked on).
    The same seed gives the same check. Raises AttnbenchError where the request makes no sense, never for what the
    backend does.
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
    )
    report = Report(plan.backend.name, level, plan.device, seed, plan.contract)
    if case is not None:
        one = case if isinstance(case, Case) else Case.from_json(case)
        checks = ChecksOfDtype(plan, report, one.dtype, settles=False)
        for name in (ORACLE,) if only is None else plan.checks:
            checks.run_on(name, one, distribution)
        return report
    for dtype in plan.dtypes:
        ChecksOfDtype(plan, report, dtype).run()
    settle_known_defects(plan.backend, report)
    return report
