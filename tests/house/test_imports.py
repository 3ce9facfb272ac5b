"""`import attnbench` loads no optional library, and a heavy one only when a name that needs it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import attnbench


def modules_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_attnbench_loads_no_optional_library() -> None:
    loaded = modules_after("import attnbench")
    assert not loaded & {
        "triton",
        "xformers",
        "flash_attn",
        "jax",
        "flax",
        "pandas",
        "matplotlib",
        "typer",
        "rich",
    }


def test_a_public_value_needs_no_optional_library() -> None:
    loaded = modules_after("import attnbench as ab; ab.parse_mask('causal & window(4, 0)')")
    assert not loaded & {"triton", "xformers", "flash_attn", "jax", "pandas", "matplotlib", "typer"}


@pytest.mark.parametrize("name", attnbench.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(attnbench, name) is not None


def test_an_unknown_name_is_refused_with_the_public_names() -> None:
    with pytest.raises(AttributeError, match="its public names are"):
        attnbench.sdap  # noqa: B018
