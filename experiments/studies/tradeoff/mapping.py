"""Where the jobs of a study are done: in this process, in others, or on a cluster.

A mapping takes a function and its jobs and yields (number of the job, what came of it) in the order
in which they are finished. Whatever can do that may stand in for these three.
"""

from __future__ import annotations

import contextlib
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from experiments.studies.tasks import Stopped
from experiments.studies.tradeoff.child import Bench, Child, Failed, done
from he_backend.clusters.cluster import Cluster

__all__ = ["Failed", "Mapping", "in_processes", "in_this_process", "on_cluster"]

Mapping = Callable[
    [Callable[[Any], Any], Sequence[Any], Callable[[], bool]], Iterator[tuple[int, Any]]
]
"""(function, jobs, stop) -> pairs (number, result or `Failed`); raises Stopped where `stop`, which
is asked again and again, says so.
"""

_ASK_SECONDS = 0.5


def in_this_process(
    function: Callable[[Any], Any], jobs: Sequence[Any], stop: Callable[[], bool]
) -> Iterator[tuple[int, Any]]:
    """One after the other."""
    for number, job in enumerate(jobs):
        if stop():
            raise Stopped
        yield number, done(function, job)


def in_processes(count: int, compiled: Path | None = None) -> Mapping:
    """In so many processes at a time. compiled: folder that keeps what XLA compiled. A job whose
    process is killed is tried once more when all others are done, alone.
    """

    @contextlib.contextmanager
    def opened() -> Iterator[_Pool]:
        with contextlib.closing(Bench(compiled)) as bench:
            yield _Here(bench, count)

    return _pooled(opened)


def on_cluster(cluster: Cluster, needs: Iterable[Path] = ()) -> Mapping:
    """In a process a thread of a Dask cluster's workers, however many come and go; a job whose
    process is killed is tried as `in_processes` does, one whose worker is lost is done by another.

    needs: files and folders that jobs read, which every worker has to see.

    The mapping raises ClusterError before any job where the scheduler does not answer or has no
    workers, or where one of them has other versions than are here or does not see a file; and later
    where the scheduler, or for ten minutes every worker, is gone.
    """
    paths = [str(path.resolve()) for path in needs]

    def opened() -> AbstractContextManager[_Pool]:
        from experiments.studies.tradeoff.cluster import open_pool  # imports Dask

        return open_pool(cluster, paths)

    return _pooled(opened)


class _Pool(Protocol):
    """Does jobs, several at a time."""

    def room(self) -> int:
        """How many."""
        ...

    def begin(self, number: int, job: bytes) -> None:
        """job: a function and its argument, pickled."""
        ...

    def finished(self, seconds: float) -> list[tuple[int, bytes | None]]:
        """Jobs that are finished, at least one unless `seconds` have passed, and what came of them,
        pickled; None where its process was killed.
        """
        ...


def _pooled(opened: Callable[[], AbstractContextManager[_Pool]]) -> Mapping:
    def mapped(
        function: Callable[[Any], Any], jobs: Sequence[Any], stop: Callable[[], bool]
    ) -> Iterator[tuple[int, Any]]:
        def tried(numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
            with opened() as pool:
                for number, found in _through(pool, function, jobs, numbers, stop):
                    yield number, _KILLED if found is None else pickle.loads(found)

        killed: list[int] = []
        for number, found in tried(range(len(jobs))):
            if found is _KILLED:
                killed.append(number)
            else:
                yield number, found
        for alone in killed:
            for number, found in tried([alone]):
                yield number, _GIVEN_UP if found is _KILLED else found

    return mapped


_KILLED = object()
_GIVEN_UP = Failed("its process was killed, twice: for want of memory?")


def _through(
    pool: _Pool,
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    numbers: Iterable[int],
    stop: Callable[[], bool],
) -> Iterator[tuple[int, bytes | None]]:
    """No more jobs are begun than there is room for, so the last ones are soon told to stop."""
    waiting, running = deque(numbers), 0
    while waiting or running:
        room = pool.room()
        while waiting and running < room:
            number = waiting.popleft()
            pool.begin(number, pickle.dumps((function, jobs[number])))
            running += 1
        for pair in pool.finished(_ASK_SECONDS):
            running -= 1
            yield pair
        if stop():
            raise Stopped


class _Here:
    """Processes of this one's."""

    def __init__(self, bench: Bench, count: int):
        self._bench, self._count = bench, count
        self._running: dict[Connection, tuple[int, Child]] = {}

    def room(self) -> int:
        return self._count

    def begin(self, number: int, job: bytes) -> None:
        child = self._bench.begin(job)
        self._running[child.link] = number, child

    def finished(self, seconds: float) -> list[tuple[int, bytes | None]]:
        found: list[tuple[int, bytes | None]] = []
        for link in wait(list(self._running), seconds):
            assert isinstance(link, Connection)
            number, child = self._running.pop(link)
            found.append((number, self._bench.result(child)))
        return found
