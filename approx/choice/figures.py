"""Figures that a notebook shows, whether or not pyplot was imported."""

from __future__ import annotations

import io

from matplotlib.figure import Figure as _Figure

__all__ = ["Figure"]


class Figure(_Figure):
    """A matplotlib Figure that is its own picture as the last value of a cell. Without it IPython
    shows pictures only after `%matplotlib inline` or an import of pyplot.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()
