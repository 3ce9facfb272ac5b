"""Programs of tools/ as modules, loaded from their files, which may have no ending."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(file: str) -> Any:
    """The module of tools/`file`, loaded anew, without bytecode beside the program."""
    name = f"tool_{Path(file).stem.replace('-', '_')}"
    loader = importlib.machinery.SourceFileLoader(name, str(TOOLS / file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module
