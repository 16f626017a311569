"""What a person sees while `hesim.compile` or `he_backend.run` works: phases, a bar, time left.

On a terminal the bar is redrawn in place, in a notebook too; in a log it is a line from time to
time. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import html
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

__all__ = ["Bar", "CompileProgress", "CompileWatch", "Reporter", "reporting", "watching"]

_LINE_SECONDS = 10.0
"""Between two lines of one phase in a log."""

_PATIENCE = 3.0
"""Seconds after which somebody who waits is told of it unasked."""

_DRAW_SECONDS = 0.25
"""Between two drawings in a notebook."""


@dataclass(frozen=True)
class CompileProgress:
    """How far `hesim.compile` is.

    Attributes:
      phase: what is being done.
      layout, layouts: number of the layout, or of the search for layouts, that is at work, from 1,
        and how many there may be; the later ones are given up as soon as they cost more than the
        best.
      operation, operations: operations of the Program lowered in it, and in all.
      op: name of the operation and the caller's line.
      elapsed: seconds so far.
    """

    phase: str
    layout: int
    layouts: int
    operation: int
    operations: int
    op: str
    elapsed: float

    @property
    def fraction(self) -> float:
        """Share of the work, where every layout counts alike, and the writing as one more."""
        inner = self.operation / self.operations if self.operations else 0.0
        return (self.layout - 1 + inner) / (self.layouts + 1)


class Reporter(Protocol):
    """What a job tells its progress to: the name of each phase, and how far it is inside."""

    def phase(self, text: str) -> None:
        """A phase begins; the one before it is finished."""

    def at(self, fraction: float, note: str = "", left: float | None = None) -> None:
        """The phase is done by this share (NaN: unknown); seconds left, None to estimate them."""


class Bar:
    """Phases with their times, on a terminal, in a notebook or in a log; a context manager.

    Args:
      console: a `rich` Console; the standard error by default.
    """

    def __init__(self, console: Any = None):
        from rich.console import Console

        self._console = console if console is not None else Console(stderr=True)
        self._view = _view(self._console)

    def __enter__(self) -> Bar:
        self._view.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._view.stop(finished=error[0] is None)

    def phase(self, text: str) -> None:
        self._view.phase(text)

    def at(self, fraction: float, note: str = "", left: float | None = None) -> None:
        self._view.at(fraction, note, left)


@contextlib.contextmanager
def reporting(progress: Any) -> Iterator[Any]:
    """The Reporter that a `progress=` argument asks for: a Bar for True, what has methods `phase`
    and `at` as it is, a Bar after some seconds for None where a person types, and silence for the
    rest.
    """
    if progress is True:
        with Bar() as bar:
            yield bar
    elif progress is None and _typed():
        with _Patient() as patient:
            yield patient
    elif hasattr(progress, "phase") and hasattr(progress, "at"):
        yield progress
    else:
        yield _Silent()


def _typed() -> bool:
    """Whether commands are typed here, at a prompt or in a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(sys, "ps1") or shell is not None


class _Patient:
    """A Bar that appears when it has taken long."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._bar: Bar | None = None
        self._text = ""

    def __enter__(self) -> _Patient:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def phase(self, text: str) -> None:
        self._text = text
        if self._bar is not None:
            self._bar.phase(text)

    def at(self, fraction: float, note: str = "", left: float | None = None) -> None:
        if self._bar is None and time.monotonic() - self._started > _PATIENCE:
            self._bar = Bar()
            self._bar.__enter__()
            self._bar.phase(self._text)
        if self._bar is not None:
            self._bar.at(fraction, note, left)


class _Silent:
    def phase(self, text: str) -> None:
        pass

    def at(self, fraction: float, note: str = "", left: float | None = None) -> None:
        pass


def _view(console: Any) -> _Lines | _Terminal | _Notebook:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is not None:
        return _Notebook()
    return _Terminal(console) if console.is_terminal else _Lines(console)


class _Lines:
    """A line when a phase begins, and from time to time in it."""

    def __init__(self, console: Any):
        self._console = console
        self._text = ""
        self._started = self._last = time.monotonic()

    def start(self) -> None:
        pass

    def stop(self, *, finished: bool) -> None:
        if self._text:
            took = _clock(time.monotonic() - self._started)
            self._say(f"{self._text}: {'done' if finished else 'stopped'} after {took}")

    def phase(self, text: str) -> None:
        self._text, self._started = text, time.monotonic()
        self._last = self._started
        self._say(f"{text} ...")

    def at(self, fraction: float, note: str, left: float | None) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_SECONDS:
            return
        self._last = now
        self._say(f"{self._text} {_share(fraction, now - self._started, left)}  {note}".rstrip())

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Terminal:
    """A row for each phase; the last one moves."""

    def __init__(self, console: Any):
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._task: Any = None
        self._started = 0.0

    def start(self) -> None:
        self._progress.start()

    def stop(self, *, finished: bool) -> None:
        self._end(finished)
        self._progress.stop()

    def phase(self, text: str) -> None:
        self._end(True)
        self._started = time.monotonic()
        self._task = self._progress.add_task(text, total=None, note="")

    def at(self, fraction: float, note: str, left: float | None) -> None:
        known = math.isfinite(fraction)
        share = _share(fraction, time.monotonic() - self._started, left)
        self._progress.update(
            self._task,
            total=1.0 if known else None,
            completed=fraction if known else 0.0,
            note=f"{share}  {note}".strip(),
        )

    def _end(self, finished: bool) -> None:
        if self._task is not None:
            note = "" if finished else "stopped"
            if finished:
                self._progress.update(self._task, total=1.0, completed=1.0, note=note)
            else:
                self._progress.update(self._task, note=note)
            self._progress.stop_task(self._task)


class _Notebook:
    """One output that is drawn anew: a `<progress>` element a phase."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, float]] = []  # finished: name, seconds
        self._text = ""
        self._now = ("", math.nan)  # note, fraction
        self._started = self._last = 0.0
        self._handle: Any = None

    def start(self) -> None:
        pass

    def stop(self, *, finished: bool) -> None:
        if self._text:
            if finished:
                self._rows.append((self._text, time.monotonic() - self._started))
                self._text = ""
            else:
                self._now = ("stopped", self._now[1])
        self._draw()

    def phase(self, text: str) -> None:
        if self._text:
            self._rows.append((self._text, time.monotonic() - self._started))
        self._text, self._now, self._started = text, ("", math.nan), time.monotonic()
        self._draw()

    def at(self, fraction: float, note: str, left: float | None) -> None:
        now = time.monotonic()
        share = _share(fraction, now - self._started, left)
        self._now = (f"{share}  {note}".strip(), fraction)
        if now - self._last >= _DRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display

        self._last = time.monotonic()
        rows = [
            f"<div>✓ {html.escape(name)} <small>{_clock(seconds)}</small></div>"
            for name, seconds in self._rows
        ]
        if self._text:
            note, fraction = self._now
            value = f' value="{fraction:.3f}"' if math.isfinite(fraction) else ""
            rows.append(
                f"<div>{html.escape(self._text)} <progress{value}></progress> "
                f"<small>{html.escape(note)}</small></div>"
            )
        shown = HTML("".join(rows))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


def _share(fraction: float, elapsed: float, left: float | None) -> str:
    if not math.isfinite(fraction):
        return f"{_clock(elapsed)} so far"
    if (left is None or not math.isfinite(left)) and fraction > 0.0:
        left = elapsed * (1.0 - fraction) / fraction
    return f"{100.0 * fraction:3.0f} %, {_clock(left)} left"


def _clock(seconds: float | None) -> str:
    """Seconds as minutes and seconds, "?" where they are unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


class CompileWatch:
    """Where `hesim.compile` says what it is at.

    Args:
      send: called with every CompileProgress.
      announce: called with what is to be done, before it begins; `send` alone if None.
    """

    def __init__(
        self,
        send: Callable[[CompileProgress], None],
        announce: Callable[[str], None] | None = None,
    ):
        self._send, self._announce = send, announce
        self._started = time.monotonic()
        self._layout = self._layouts = 1
        self._done = self._operations = 0
        self._phase = "searching layouts"

    def expect(self, text: str) -> None:
        """What is to be done, and what it usually takes."""
        if self._announce is not None:
            self._announce(f"compiling {text}".rstrip())
        self._tell(f"planning {text}" if text else self._phase, "")

    def begin(self, layouts: int) -> None:
        """So many layouts will be tried, searches for layouts included, at most."""
        self._layout, self._layouts = 0, max(layouts, 1)

    def layout(self, number: int, layouts: int) -> None:
        """Layout `number` of so many, from 1, is tried."""
        self._phase = f"trying layout {number} of {layouts}"
        self._next()

    def searching(self) -> None:
        """Layouts are searched, operation by operation."""
        self._phase = "searching layouts"
        self._next()

    def emitting(self, number: int) -> None:
        """Plan `number` of a search, from 1, is lowered to stages."""
        self._tell(f"writing plan {number} of the search", "")

    def _next(self) -> None:
        self._layout = min(self._layout + 1, self._layouts)
        self._done = 0
        self._tell(self._phase, "")

    def operation(self, number: int, operations: int, op: Any) -> None:
        """Operation `number`, from 0, an Equation, is lowered."""
        self._done, self._operations = number, operations
        self._tell(self._phase, f"{op.name} at {op.source}" if op.source else op.name)

    def writing(self) -> None:
        """Layouts are chosen: levels are settled and instructions written."""
        self._layout, self._done = self._layouts + 1, 0
        self._tell("placing refreshes and writing instructions", "")

    def _tell(self, phase: str, op: str) -> None:
        elapsed = time.monotonic() - self._started
        self._send(
            CompileProgress(
                phase, self._layout, self._layouts, self._done, self._operations, op, elapsed
            )
        )


@contextlib.contextmanager
def watching(
    progress: bool | Callable[[CompileProgress], None] | Reporter | None,
) -> Iterator[CompileWatch]:
    """What a compilation tells a `progress=` argument to: a Bar for True, a Reporter, a function
    of a CompileProgress, or nobody.
    """
    if callable(progress) and not hasattr(progress, "phase"):
        yield CompileWatch(cast("Callable[[CompileProgress], None]", progress))
        return
    with reporting(progress) as reporter:

        def send(p: CompileProgress) -> None:
            reporter.at(p.fraction, f"{p.phase}: {p.op}" if p.op else p.phase)

        yield CompileWatch(send, reporter.phase)
