"""Phases of a run with the seconds that each took, told on to whoever shows progress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hesim.progress import Reporter

__all__ = ["Phases"]


class Phases:
    """A Reporter that passes everything on and remembers how long phases took.

    Args:
      reporter: who shows them.

    Examples:
      >>> from he_backend.report.phases import Phases
      >>> class Silent:
      ...     def phase(self, text): ...
      ...     def at(self, fraction, note="", left=None): ...
      >>> phases = Phases(Silent())
      >>> phases.phase("compiling"); phases.phase("comparing")
      >>> list(phases.seconds())
      ['compiling', 'comparing']
    """

    def __init__(self, reporter: Reporter):
        self._reporter = reporter
        self._finished: dict[str, float] = {}
        self._text = ""
        self._started = 0.0

    def phase(self, text: str) -> None:
        self._finish()
        self._text = text
        self._reporter.phase(text)

    def at(self, fraction: float, note: str = "", left: float | None = None) -> None:
        self._reporter.at(fraction, note, left)

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by phase so far, in the order in which they began."""
        self._finish()
        return dict(self._finished)

    def _finish(self) -> None:
        now = time.monotonic()
        if self._text:
            spent = self._finished.get(self._text, 0.0) + now - self._started
            self._finished[self._text] = spent
        self._started = now
