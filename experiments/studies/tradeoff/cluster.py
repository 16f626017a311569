"""The jobs of a study on the workers of a Dask cluster.

A worker passes a job on to a process beside it. So what JAX compiles does not pile up in a worker
for weeks, a job that is too large for the host kills its own process, not the worker, and one that
nobody waits for any more is ended, which Dask cannot do with a thread. Jobs are data of the graph,
so those of a lost worker are done by another. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker, Reschedule, WorkerPlugin, get_worker
from distributed.worker import Worker

from experiments.studies.tradeoff.child import Bench, Closed
from he_backend.clusters.cluster import Cluster
from he_backend.clusters.connecting import connect, register
from he_backend.clusters.housekeeping import Housekeeping
from he_backend.errors import ClusterError

__all__ = ["open_pool"]

_PATIENCE = 600.0
"""Seconds without any worker after which a study gives up."""

_ANSWER_SECONDS = 20.0
_FETCH_SECONDS = 5.0
_AGAIN_SECONDS = 0.2

_COMPILED = "hesim-compiled"
"""Folder of what XLA compiled, in the worker's own, which Dask removes with the worker."""

_LIBRARY = "jax"
"""What jobs compute with, of one version everywhere."""


@contextlib.contextmanager
def open_pool(cluster: Cluster, needs: Sequence[str]) -> Iterator[_Pool]:
    """A place on the cluster, whose processes end when the context is left, or with this process.

    needs: absolute paths that every worker has to see.

    Raises:
      ClusterError: it cannot be used as it is.
    """
    session = f"hesim-study-{uuid.uuid4().hex[:8]}"
    client = connect(cluster, _LIBRARY)
    try:
        housekeeping = Housekeeping(session, client.id)
        _register(client, housekeeping, housekeeping.name)
        _register(client, _Processes(session, os.getcwd(), needs), session)
        yield _Pool(client, session)
    finally:
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            client.close(timeout=_FETCH_SECONDS)


def _register(client: Client, plugin: Any, name: str) -> None:
    """ClusterError if a worker cannot take it."""
    try:
        register(client, plugin, name)
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(
            f"the workers of the cluster cannot be made ready for a study "
            f"({type(error).__name__}: {error}): install the same there as here"
        ) from error


class _Processes(WorkerPlugin):
    """A study on a worker: a process a thread.

    Args:
      session: unique name, by which jobs find it. folder: where the caller works, in which
        processes do, too, where there is such a folder.
      needs: what has to be there.
    """

    def __init__(self, session: str, folder: str, needs: Sequence[str]):
        self.name, self.folder, self.needs = session, folder, list(needs)

    def setup(self, worker: Worker) -> None:
        """Raises ClusterError where a file is not there."""
        self.bench = Bench(Path(worker.local_directory, _COMPILED), self.folder)
        self.lacks = [path for path in self.needs if not os.path.exists(path)]
        self.address = worker.address
        self.check()

    def check(self) -> None:
        """Raises ClusterError where a file is not there."""
        if self.lacks:
            raise ClusterError(
                f"the worker {self.address} does not see {', '.join(self.lacks)}: have the data "
                "and models of a study under the same path on every host, a shared disk's for "
                "instance"
            )

    def teardown(self, worker: Worker) -> None:
        """Ends what is running."""
        del worker
        self.bench.close()


def _do(session: str, job: bytes) -> bytes | None:
    """What came of a job on whatever worker this is; None if its process was killed."""
    processes = get_worker().plugins.get(session)
    if isinstance(processes, _Processes):
        processes.check()
        with contextlib.suppress(Closed):  # the worker leaves, or the caller has
            return processes.bench.result(processes.bench.begin(job))
    time.sleep(_AGAIN_SECONDS)
    raise Reschedule


class _Pool:
    """See `mapping`. Begun is no more than there are threads, so that each job is at one at once,
    and no job is blamed for the death of a worker that has not begun it.
    """

    def __init__(self, client: Client, session: str):
        self._client: Any = client  # its methods wait or not, which types do not tell
        self._session = session
        self._futures: dict[int, Future] = {}
        self._over = queue.SimpleQueue[int]()
        self._seen = time.monotonic()

    def room(self) -> int:
        """Threads of the workers that there are now. Raises ClusterError if there have been none
        for long.
        """
        try:
            threads = self._client.sync(
                self._client.scheduler.ncores, workers=None, callback_timeout=_ANSWER_SECONDS
            )
        except Exception as error:
            raise _gone(f"its scheduler does not answer: {type(error).__name__}") from error
        if threads:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _PATIENCE:
            raise _gone(f"no worker for {_PATIENCE:.0f} seconds")
        return sum(threads.values())

    def begin(self, number: int, job: bytes) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            key = f"{self._session}-{number}"
            self._futures[number] = self._client.submit(_do, self._session, job, key=key)
        self._watch(number)

    def finished(self, seconds: float) -> list[tuple[int, bytes | None]]:
        try:
            number = self._over.get(timeout=seconds)
        except queue.Empty:
            return []
        found = self._found(number)
        if found is _NOT_YET:
            self._watch(number)
            return []
        self._futures.pop(number).release()
        return [(number, found)]

    def _watch(self, number: int) -> None:
        self._futures[number].add_done_callback(lambda _: self._over.put(number))

    def _found(self, number: int) -> Any:
        """What came of a job that is over, unless the worker that had it was lost since."""
        future = self._futures[number]
        if future.status == "cancelled":
            raise _gone("its scheduler is gone")
        if future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                return None
            if isinstance(error, ClusterError):
                raise error
            raise _gone(f"{type(error).__name__}: {error}")
        if future.status != "finished":
            return _NOT_YET
        try:
            return future.result(timeout=_FETCH_SECONDS)
        except TimeoutError:
            return _NOT_YET
        except Exception as error:
            raise _gone(f"{type(error).__name__}: {error}") from error


_NOT_YET = object()


def _gone(why: str) -> ClusterError:
    return ClusterError(
        f"the cluster gave up ({why}). What was finished is kept: the same command goes on, on a "
        "cluster or without one"
    )
