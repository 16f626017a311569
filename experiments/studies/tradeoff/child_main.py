"""The process that `child.Child` starts: jobs come by its standard input, and results go back."""

from __future__ import annotations

import os
import pickle
import queue
import threading
from multiprocessing.connection import Connection

from experiments.errors import first_line
from experiments.studies.tradeoff.child import Failed, done

__all__ = ["main"]


def main() -> None:
    """Does jobs until the other side is gone."""
    link = Connection(os.dup(0))
    with open(os.devnull) as nothing:  # what a job may read
        os.dup2(nothing.fileno(), 0)
    compiled = pickle.loads(link.recv_bytes())
    jobs = queue.SimpleQueue[bytes]()
    threading.Thread(target=_listen, args=(link, jobs), daemon=True).start()
    if compiled is None:
        _serve(link, jobs)
    else:
        from experiments.xla_cache import keep_compiled  # imports JAX

        with keep_compiled(compiled):
            _serve(link, jobs)


def _serve(link: Connection, jobs: queue.SimpleQueue[bytes]) -> None:
    while True:
        link.send_bytes(_answer(jobs.get()))


def _answer(job: bytes) -> bytes:
    """What came of a job, or that it cannot be read here, or its result not be sent."""
    try:
        return pickle.dumps(done(*pickle.loads(job)))
    except Exception as error:
        return pickle.dumps(Failed(first_line(error)))


def _listen(link: Connection, jobs: queue.SimpleQueue[bytes]) -> None:
    """Ends this process with the other side, in the middle of a job, too."""
    try:
        while True:
            jobs.put(link.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    main()
