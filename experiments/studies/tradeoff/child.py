"""Processes that do the jobs of a study, as whoever has them done sees them.

A job passes through as bytes. So who passes it on, a worker of a cluster for instance, imports
nothing of what it computes with, no JAX either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.errors import first_line
from he_backend.processes.folders import module_command

__all__ = ["Bench", "Child", "Closed", "Failed", "done"]

_MODULE = "experiments.studies.tradeoff.child_main"

_TURNS = 8
"""Jobs of a process before another one takes its place: what JAX has compiled is never wholly
freed, but what the compiler knows of one plan serves the next.
"""


@dataclasses.dataclass(frozen=True)
class Failed:
    """A job that ended with an error, or whose process was killed."""

    reason: str


class Closed(Exception):
    """No process is to be had any more."""


def done(function: Callable[[Any], Any], job: Any) -> Any:
    """What a job returns, or why it could not."""
    try:
        return function(job)
    except Exception as error:  # one configuration's fault must not end hours of others
        return Failed(first_line(error))


class Child:
    """A process that does one job after the other, and ends with this one, however that ends.

    Args:
      compiled: folder that keeps what XLA compiled; None for none.
      folder: where it works, if there is such a folder; else where this process does.

    Attributes:
      link: has something to read when a job is done, or the process has ended.
      jobs: begun so far.
    """

    def __init__(self, compiled: Path | None, folder: str | None = None):
        ours, theirs = socket.socketpair()
        paths = dict.fromkeys(os.path.abspath(path) for path in sys.path)
        self.process = subprocess.Popen(
            module_command(_MODULE),
            stdin=theirs.fileno(),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            cwd=folder if folder is not None and os.path.isdir(folder) else None,
            start_new_session=True,  # Ctrl-C is for the one that waits
        )
        theirs.close()
        self.link, self.jobs = Connection(ours.detach()), 0
        self._send(pickle.dumps(compiled))

    def begin(self, job: bytes) -> None:
        """Have it do a function of an argument, the pair pickled."""
        self.jobs += 1
        self._send(job)

    def result(self) -> bytes | None:
        """What came of it, pickled, as `done` says it; None if the process was killed."""
        try:
            return self.link.recv_bytes()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """At once, whatever it does. Whoever waits for a result has None."""
        self.process.kill()
        self.process.wait()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # of one that was killed, which its result tells
            self.link.send_bytes(data)


class Bench:
    """As many processes as are asked for at a time; each of them does a few jobs. Threads may share
    it.

    Args:
      compiled, folder: of a `Child`.
    """

    def __init__(self, compiled: Path | None, folder: str | None = None):
        self._compiled, self._folder = compiled, folder
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._closed = False

    def begin(self, job: bytes) -> Child:
        """A process that has begun with a job. Raises Closed after `close`."""
        with self._lock:
            if self._closed:
                raise Closed
            child = self._idle.pop() if self._idle else Child(self._compiled, self._folder)
            self._busy.add(child)
        child.begin(job)
        return child

    def result(self, child: Child) -> bytes | None:
        """Waits for what came of the job, None if its process was killed. Raises Closed if that was
        `close`.
        """
        found = child.result()
        with self._lock:
            if self._closed:
                raise Closed
            self._busy.remove(child)
            if found is not None and child.jobs < _TURNS:
                self._idle.append(child)
                return found
        child.end()
        return found

    def close(self) -> None:
        """Ends all processes at once."""
        with self._lock:
            self._closed = True
            children = [*self._idle, *self._busy]
        for child in children:
            child.end()
