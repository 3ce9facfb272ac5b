"""Switches Triton to its interpreter after another library has imported it for compiling."""

from __future__ import annotations

import os
import sys


def interpret_triton() -> None:
    """Make Triton's own library (tl.max, tl.zeros, ...) interpreted, as TRITON_INTERPRET does at import."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "triton" or module is None:
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                setattr(module, attribute, InterpretedFunction(value.fn))
