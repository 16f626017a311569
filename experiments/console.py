"""What a person sees while a job runs: titles, notes, and bars with an estimate of the time left.

On a terminal a bar is redrawn in place; in a log it is a line from time to time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

__all__ = ["Display", "Update", "clock", "make_console"]

Update = Callable[[float, str, float | None], None]
"""(done, note, seconds left): the last is None to let the bar estimate it."""

_LINE_SECONDS = 10.0
_LOG_WIDTH = 118


def make_console() -> Console:
    """The standard output: as wide as the terminal, or wide enough for the tables in a log."""
    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


class Display:
    """Messages of a job on a console; `quiet` keeps them to itself, for tests and notebooks."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console if console is not None else make_console()
        if quiet:
            self.console = Console(quiet=True)

    def stage(self, title: str) -> None:
        """A part of the job begins."""
        self.console.print()
        self.console.rule(f"[bold]{title}[/bold]", align="left", style="dim")

    def say(self, text: str) -> None:
        """A remark, on lines of its own; rich's markup is understood."""
        self.console.print(text, highlight=False)

    def warn(self, text: str) -> None:
        self.console.print(Text("warning: " + text, style="yellow"))

    @contextlib.contextmanager
    def bar(self, title: str, total: float) -> Iterator[Update]:
        """A bar for `total` units of work, driven by the update function that is handed out."""
        if not self.console.is_terminal:
            yield self._lines(title, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _Left(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4) as progress:
            task = progress.add_task(title, total=total, note="", left=None)

            def update(done: float, note: str, left: float | None) -> None:
                progress.update(task, completed=done, note=note, left=left)

            yield update

    def _lines(self, title: str, total: float) -> Update:
        started = time.monotonic()
        last = -math.inf

        def update(done: float, note: str, left: float | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _LINE_SECONDS and done < total:
                return
            last = now
            elapsed = now - started
            if left is None and done > 0:
                left = elapsed * (total - done) / done
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
