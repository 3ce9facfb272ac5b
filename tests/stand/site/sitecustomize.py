"""Gives every Python process that finds this file on its path two fake CUDA devices (tests/stand/fake_cuda.py)."""

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("fake_cuda", Path(__file__).parents[1] / "fake_cuda.py")
assert spec is not None
assert spec.loader is not None
sys.modules["fake_cuda"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.install()
