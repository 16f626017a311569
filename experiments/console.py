"""What a person sees while a job runs: titles, notes, and bars with an estimate of the time left.

On a terminal a bar is redrawn in place; in a log it is a line from time to time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

__all__ = ["Display", "Update", "clock", "make_console"]

Update = Callable[[float, str, float | None], None]
"""(done, note, seconds left): the last is None to let the bar estimate it."""

_LINE_SECONDS = 10.0
_LOG_WIDTH = 118


def make_console(*, error: bool = False, whole: bool = False, **settings: Any) -> Console:
    """Standard output: as wide as the terminal, or wide enough for the tables in a log.

    What is printed is shown as it is, in tables too: brackets and colons of texts, settings and
    file names are no markup.

    Args:
      error: standard error instead.
      whole: no line is broken, however long.
      settings: others of `rich.console.Console`, such as a file and a width.
    """
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    console = Console(stderr=error, soft_wrap=whole, **plain, **settings)
    if console.is_terminal or "width" in settings:
        return console
    return Console(stderr=error, soft_wrap=whole, width=_LOG_WIDTH, **plain, **settings)


class Display:
    """Messages of a job on a console; `quiet` keeps them to itself, for tests and notebooks."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console if console is not None else make_console()
        if quiet:
            self.console = make_console(quiet=True)

    def stage(self, title: str) -> None:
        """A part of the job begins."""
        self.console.print()
        self.console.rule(Text(title, style="bold"), align="left", style="dim")

    def say(self, text: str, dim: str = "") -> None:
        """A remark, on lines of its own, shown as it is; `dim` follows it, less bright."""
        self.console.print(Text.assemble(text, (dim, "dim")), highlight=False)

    def warn(self, text: str) -> None:
        self.console.print(Text("warning: " + text, style="yellow"))

    @contextlib.contextmanager
    def bar(self, title: str, total: float) -> Iterator[Update]:
        """A bar for `total` units of work, driven by the update function that is handed out."""
        if not self.console.is_terminal:
            yield self._lines(title, total)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _Left(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4) as progress:
            task = progress.add_task(title, total=total, note="", left=None)

            def update(done: float, note: str, left: float | None) -> None:
                progress.update(task, completed=done, note=note, left=left)

            yield update

    def _lines(self, title: str, total: float) -> Update:
        started = time.monotonic()
        last = (
            waited
        ) = -math.inf  # a line of work, and one of waiting, as for a step to be compiled
        began, before = started, 0.0  # when the work began that is measured, and what was done then

        def update(done: float, note: str, left: float | None) -> None:
            nonlocal last, waited, began, before
            now = time.monotonic()
            if done <= before:
                began, before = now, done
                if not note or now - waited < _LINE_SECONDS:
                    waited = waited if note else -math.inf
                    return
                waited = now
            elif now - last < _LINE_SECONDS and done < total:
                return
            else:
                last = now
            elapsed = now - started
            if left is None and done > before:
                left = (now - began) * (total - done) / (done - before)
            share = f"{100 * done / total:3.0f} %" if total else ""
            self.say(f"{title} {share}  {clock(elapsed)} so far, {clock(left)} left  {note}")

        return update


class _Left(ProgressColumn):
    """Time left: as the job says, else from the speed so far."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None:
            left = task.time_remaining
        return Text(f"{clock(left)} left", style="cyan")


def clock(seconds: float | None) -> str:
    """Seconds as minutes and seconds, "?" where they are unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
