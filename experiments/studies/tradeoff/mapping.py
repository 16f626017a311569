"""Where the jobs of a study are done: in this process, or in others.

A mapping takes a function and its jobs and yields (number of the job, what came of it) in the order
in which they are finished. Whatever can do that may stand in for these two.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from experiments.studies.tasks import Stopped, first_line
from experiments.xla_cache import keep_compiled

__all__ = ["Failed", "Mapping", "in_processes", "in_this_process"]


@dataclasses.dataclass(frozen=True)
class Failed:
    """A job that ended with an error, or whose process was killed."""

    reason: str


Mapping = Callable[
    [Callable[[Any], Any], Sequence[Any], Callable[[], bool]], Iterator[tuple[int, Any]]
]
"""(function, jobs, stop) -> pairs (number, result or `Failed`); raises Stopped where `stop`, which
is asked again and again, says so.
"""

_TURNS = 3
"""Jobs of a process before another one takes its place: what JAX has compiled is never wholly
freed.
"""

_ASK_SECONDS = 0.5


def in_this_process(
    function: Callable[[Any], Any], jobs: Sequence[Any], stop: Callable[[], bool]
) -> Iterator[tuple[int, Any]]:
    """One after the other."""
    for number, job in enumerate(jobs):
        if stop():
            raise Stopped
        yield number, _done(function, job)


def in_processes(count: int, compiled: Path | None = None) -> Mapping:
    """In so many processes at a time. compiled: folder that keeps what XLA compiled. Jobs whose
    processes are killed are tried once more, one by one.
    """

    def mapped(
        function: Callable[[Any], Any], jobs: Sequence[Any], stop: Callable[[], bool]
    ) -> Iterator[tuple[int, Any]]:
        waiting, alone = list(range(len(jobs))), list[int]()
        while waiting or alone:
            single = not waiting
            rest = alone if single else waiting
            turn = rest[: 1 if single else count * _TURNS]
            del rest[: len(turn)]
            for number, found in _in_pool(function, jobs, turn, count, compiled, stop):
                if found is not _KILLED:
                    yield number, found
                elif single:
                    yield number, Failed("its process was killed: for want of memory?")
                else:  # or one beside it was, which ends all of a pool
                    alone.append(number)

    return mapped


_KILLED = object()


def _in_pool(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    turn: Sequence[int],
    count: int,
    compiled: Path | None,
    stop: Callable[[], bool],
) -> Iterator[tuple[int, Any]]:
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(count, len(turn)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(compiled,),
    )
    try:
        running = {pool.submit(_done, function, jobs[number]): number for number in turn}
        while running:
            for future in wait(running, _ASK_SECONDS, FIRST_COMPLETED).done:
                killed = isinstance(future.exception(), BrokenProcessPool)
                yield running.pop(future), _KILLED if killed else future.result()
            if stop():
                raise Stopped
    finally:
        own = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for process in own:
            process.terminate()


def _begin(compiled: Path | None) -> None:
    """Of a process: Ctrl-C is for the one that waits, and both end together, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if compiled is not None:
        stack = contextlib.ExitStack()
        stack.enter_context(keep_compiled(compiled))
        atexit.register(stack.close)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _done(function: Callable[[Any], Any], job: Any) -> Any:
    """What a job returns, or why it could not."""
    try:
        return function(job)
    except Exception as error:  # one configuration's fault must not end hours of others
        return Failed(first_line(error))
