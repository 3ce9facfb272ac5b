"""The checks as pytest parameters for a backend's own test file, one per backend, dtype and check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from attnbench.conformance.conformance import check
from attnbench.conformance.outcome import OK
from attnbench.conformance.plan import CHECKS, QUICK_CHECKS, Given, among
from attnbench.problem.case import DTYPES

Test = TypeVar("Test", bound=Callable[..., Any])


def parametrize_with_backends(
    *backends: Given, level: str = "standard", **options: Any
) -> Callable[[Test], Test]:
    """A pytest decorator: the test runs once per backend, dtype and check, and calls its argument.

    A plug-in author's whole test file:

        @ab.parametrize_with_backends("mine")
        def test_conformance(check):
            check()
    """
    import pytest

    names = QUICK_CHECKS if level == "smoke" else CHECKS
    rest = {key: value for key, value in options.items() if key != "dtypes"}
    parameters = []
    for backend in backends:
        for dtype in among("dtype", options.get("dtypes"), tuple(DTYPES)):
            for name in names:
                one = _OneCheck(backend, name, dtype, level, rest)
                parameters.append(pytest.param(one, id=f"{_label(backend)}-{dtype}-{name}"))
    return pytest.mark.parametrize("check", parameters)  # type: ignore[return-value]


def _label(backend: Given) -> str:
    if isinstance(backend, str):
        return backend
    return getattr(backend, "name", "") or getattr(backend, "__name__", "backend")


@dataclass(frozen=True)
class _OneCheck:
    # One check of one backend in one dtype, as a test calls it.
    backend: Given
    name: str
    dtype: str
    level: str
    options: dict[str, Any]

    def __call__(self) -> None:
        """Run the check; AssertionError with the failures, a pytest skip if every case was refused."""
        import pytest

        report = check(
            self.backend, level=self.level, dtypes=(self.dtype,), only=(self.name,), **self.options
        )
        if report.failures or report.gone:
            raise AssertionError(str(report))
        if not any(o.status == OK for o in report.outcomes):
            pytest.skip(f"{report.backend} takes no {self.dtype} case of {self.name}")
