"""Versions of two libraries that do not work together, as a sentence; the doctor and the backends say it."""

from __future__ import annotations

from packaging.version import Version


def interpreter_conflict(triton: str, numpy: str) -> str:
    """Why Triton's interpreter breaks with this version of numpy; empty if it works."""
    if Version(triton) >= Version("3.7") or Version(numpy) < Version("2.4"):
        return ""
    return (
        f"the interpreter of triton {triton} breaks with numpy {numpy} ('only 0-dimensional arrays can be converted'): "
        'pip install "numpy<2.4", or triton 3.7 or later'
    )
