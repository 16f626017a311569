"""Where in the user's code an operation comes from."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hesim.tracing.frames import Frame, registered

__all__ = ["Frame", "Source", "frames_of", "of_frames"]


@dataclass(frozen=True)
class Source:
    """A place in the caller's code, and the innermost place outside JAX if that differs.

    Attributes:
      file: path of the caller's file; frames of libraries and of this toolkit are skipped.
      line: line number, from 1.
      function: name of the function.
      inner: `file:line` of the innermost frame that belongs to a model rather than to a
        framework, e.g. a layer of `models`; empty if it is the caller itself.
      cell: number of the notebook cell that the line is in, 0 outside of notebooks.
    """

    file: str
    line: int
    function: str
    inner: str = ""
    cell: int = 0

    def __str__(self) -> str:
        where = f"cell {self.cell}, line {self.line}"
        text = f"{where if self.cell else f'{_short(self.file)}:{self.line}'} ({self.function})"
        return f"{text} via {self.inner}" if self.inner else text

    @property
    def brief(self) -> str:
        """`file:line` of the innermost model code, or a line of a cell, for tables."""
        if self.inner:
            return self.inner
        if self.cell:
            return f"cell {self.cell}, line {self.line}"
        return f"{Path(self.file).name}:{self.line}"


def _short(path: str) -> str:
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return path
    return path if relative.startswith("..") else relative


def frames_of(traceback: Any) -> tuple[Frame, ...]:
    """The stack frames of a JAX traceback, innermost first; none of None.

    Args:
      traceback: `eqn.source_info.traceback` of a jaxpr equation, or frames like its own.
    """
    if traceback is None:
        return ()
    held = getattr(traceback, "frames", None)
    return tuple(
        Frame(
            frame.file_name,
            frame.start_line if hasattr(frame, "start_line") else frame.line_num,
            frame.function_name,
        )
        for frame in (traceback if held is None else held)
    )


def of_frames(frames: tuple[Frame, ...]) -> Source | None:
    """The Source that stack frames stand for, innermost first, or None if none is usable."""
    known = registered()
    outside = [f for f in frames if not f.file.startswith(known.machinery)]
    # A typed-in program is "<stdin>", but generated methods of dataclasses are "<string>", too.
    outside = [f for f in outside if not f.file.startswith("<") or _cell(f.file)] or outside
    if not outside:
        return None
    caller = next((f for f in outside if not f.file.startswith(known.packages)), None)
    inner = outside[0]
    if caller is None:
        return Source(*inner)
    cell = _cell(caller.file)
    if inner == caller:
        return Source(*caller, cell=cell)
    return Source(*caller, inner=f"{_in_package(inner.file)}:{inner.line}", cell=cell)


def _in_package(file: str) -> str:
    """A path from its package's folder on."""
    home = next((p for p in registered().packages if file.startswith(p)), None)
    path = Path(file)
    return path.relative_to(Path(home).parent).as_posix() if home else path.name


def _cell(file: str) -> int:
    """Number of the notebook or IPython cell that was compiled under this name, else 0.

    IPython keeps the numbers for its own tracebacks; ipykernel names cells by temporary files.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return 0
    try:
        _, name = shell.compile.format_code_name(file)
    except (AttributeError, TypeError):  # another shell, or no name of its own
        return 0
    digits = "".join(filter(str.isdigit, name))
    return int(digits) if digits else 0
