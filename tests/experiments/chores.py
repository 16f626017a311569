"""Jobs for tests of where jobs are done. A process that does them imports no JAX."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from experiments.errors import ExperimentError

__all__ = ["Chore", "gone", "tried", "work"]

Chore = tuple[str, Path]
"""What is done, and a folder in which every try leaves a file."""


def work(job: Chore) -> str:
    """What was asked for, "PID" for the process that did it."""
    what, folder = job
    (folder / f"{what}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if what == "refused":
        raise ExperimentError("no such thing\nmore")
    if what == "sleeps":
        time.sleep(3600)
    if what.startswith("naps"):
        time.sleep(0.3)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return str(os.getpid()) if what == "PID" else what


def tried(folder: Path, what: str) -> list[int]:
    """The processes that began with it, one a try."""
    return [int(path.name.split("-")[1]) for path in folder.glob(f"{what}-*")]


def gone(process: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
