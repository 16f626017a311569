"""Progress of batches as whoever asks for it wants it: on a bar, or by a function. No JAX."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from he_backend.processes.messages import Progress
from hesim.progress import Reporter, reporting

__all__ = ["Told", "telling"]


@contextlib.contextmanager
def telling(
    progress: bool | Callable[[Progress], None] | None,
) -> Iterator[Callable[[Progress], None]]:
    """What tasks are told to, for a `progress=` argument: True for a bar, None for one that appears
    after some seconds where a person types, or a function.
    """
    with reporting(progress) as reporter:
        yield Told(progress, reporter)


class Told:
    """Tells a function, if `progress` is one, and a Reporter by phases."""

    def __init__(self, progress: bool | Callable[[Progress], None] | None, reporter: Reporter):
        self._function = progress if callable(progress) else None
        self._reporter = reporter
        self._phase = ""
        self._done = 0

    def __call__(self, progress: Progress) -> None:
        if self._function is not None:
            self._function(progress)
        phase = progress.op
        if progress.tasks_total:  # what runs in no process of its own has told its phase before
            phase = "evaluating encrypted" if progress.processes else self._phase
        if phase != self._phase or progress.tasks_done < self._done:  # of the next batch
            self._reporter.phase(phase)
        self._phase, self._done = phase, progress.tasks_done
        if progress.tasks_total:
            self._reporter.at(progress.fraction, progress.op, progress.eta)
