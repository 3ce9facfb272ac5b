"""Frames that a notebook shows as the command line does; a selection of one is a plain frame."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from attnbench.report.backends import backend_table
from attnbench.report.terminal import result_tables

WIDTH = 110
PLAIN = '<pre style="line-height:1.25;font-family:monospace">{code}</pre>'


def as_html(renderables: Iterable[RenderableType]) -> str:
    """What a terminal would show, as HTML; foreign text is escaped."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, highlight=False)
    for one in renderables:
        console.print(one)
    return console.export_html(inline_styles=True, code_format=PLAIN)


class _Shown(pd.DataFrame):
    """A frame with a view of its own, unless columns that the view needs were taken out."""

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def _view(self) -> Iterator[RenderableType]:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        try:
            return as_html(self._view())
        except KeyError:
            return str(pd.DataFrame(self)._repr_html_())  # type: ignore[operator]


class ResultFrame(_Shown):
    """The frame of a sweep: a notebook shows the screen of `attnbench run`."""

    def _view(self) -> Iterator[RenderableType]:
        return result_tables(pd.DataFrame(self))


class BackendFrame(_Shown):
    """The frame of `backends()`: a notebook shows the table of `attnbench list`."""

    def _view(self) -> Iterator[RenderableType]:
        return backend_table(self.to_dict("records"))
