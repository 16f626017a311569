"""Tables as text and as HTML, for `str()` and for notebooks. Imports no JAX."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

__all__ = ["html_block", "html_table", "shown_as_text", "text_table"]

_CELL = "text-align: {}; white-space: nowrap; padding: .1em .7em .1em 0"


def shown_as_text(self: Any, printer: Any, cycle: bool) -> None:
    """A `_repr_pretty_`: terminals of IPython, and notebooks without HTML, show what `str` says.

    IPython takes it from the class that has the `__repr__`, so each class names it in its body.
    """
    printer.text(str(self))


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells, columns aligned on the left; the first row is the head."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def html_table(rows: Sequence[Sequence[str]], head: bool = True, most: int = 400) -> str:
    """A `<table>` that takes the notebook's own colours; what looks like a number is on the right.

    Args:
      rows: cells, plain text. head: whether the first row names the columns.
      most: rows shown; of more, the number is said instead.
    """
    body = rows[1:] if head else rows
    sides = ["right" if _numbers(column) else "left" for column in zip(*body, strict=True)]
    lines = []
    if head:
        cells = zip(rows[0], sides or ["left"] * len(rows[0]), strict=True)
        lines.append("".join(_cell("th", text, side) for text, side in cells))
    for row in body[:most]:
        cells = zip(row, sides, strict=True)
        lines.append("".join(_cell("td", text, side) for text, side in cells))
    if len(body) > most:
        left = f"and {len(body) - most:,} more"
        lines.append(f'<td colspan="{len(rows[0])}" style="text-align: left">{left}</td>')
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="font-variant-numeric: tabular-nums">{inside}</table>'


def html_block(title: str, *paragraphs: str, inner: str = "") -> str:
    """A heading in bold, paragraphs of plain text, then HTML as it is, scrolled where too wide."""
    parts = [f"<b>{html.escape(title)}</b>"]
    parts += [f'<div style="margin: .2em 0">{html.escape(text)}</div>' for text in paragraphs]
    return f'<div style="overflow-x: auto">{"".join(parts)}{inner}</div>'


def _cell(tag: str, text: str, side: str) -> str:
    return f'<{tag} style="{_CELL.format(side)}">{html.escape(text)}</{tag}>'


def _numbers(column: Sequence[str]) -> bool:
    return any(column) and all(_number(text) for text in column if text not in ("", "-", "–"))


def _number(text: str) -> bool:
    try:
        float(text.replace(",", "").replace("2^", "").rstrip("%"))
    except ValueError:
        return False
    return True
