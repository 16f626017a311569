"""How much memory the tables of a compilation take, known before they are built.

A table entry is one element of a tensor, or one term of a sum; kernels hold several integers for
each, sort them, and keep an array of all columns for each ciphertext that they make.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hesim.errors import TooLargeError

__all__ = ["ENTRY_BYTES", "INDEX_BYTES", "TERM_BYTES", "available", "limited", "reserve"]

ENTRY_BYTES = 220
"""Of one element of an elementwise operation: places of both operands, sorted by class (measured:
85 to 216).
"""

INDEX_BYTES = 48
"""Of one element of a public operand, or of all members of a batch: which element it is."""

TERM_BYTES = 350
"""Of one term of a contraction: its places, its coefficient, and their sorted classes (measured:
175 to 380).
"""

_SMALL = 2**26
"""Bytes that are taken without asking."""

_LEFT = 2**28
"""Bytes that are left to everybody else."""


_UNKNOWN = 2**32
"""Bytes that are taken to be free where the system does not say."""


_limit: contextvars.ContextVar[int | None] = contextvars.ContextVar("limit", default=None)


def available() -> int:
    """Bytes that this process may still take: of the system, of its control group, and of what is
    left within `limited`.
    """
    found = [free for free in (_free_of_system(), _free_of_group()) if free is not None]
    free = max(min(found) - _LEFT, 0) if found else _UNKNOWN
    limit = _limit.get()
    return free if limit is None else max(min(free, limit - (_resident() or 0)), 0)


@contextlib.contextmanager
def limited(memory: int | None) -> Iterator[None]:
    """Within it, this process may take so many bytes more than it has now; None for any."""
    token = _limit.set(None if memory is None else memory + (_resident() or 0))
    try:
        yield
    finally:
        _limit.reset(token)


def _resident() -> int | None:
    """Bytes of memory that this process has."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def reserve(operation: Callable[[], str], size: int, held: int = 0) -> None:
    """TooLargeError if tables of `size` bytes for an operation do not fit into memory.

    Args:
      operation: its name and place. held: bytes that it has taken before.
    """
    if size <= _SMALL:
        return
    free = available()
    if size > free:
        raise TooLargeError(operation(), size + held, free + held)


def _free_of_system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable:")), None)


def _free_of_group() -> int | None:
    """Of a control group (version 2) with a limit, as containers have one."""
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        return None if most == "max" else int(most) - int(used)
    except (OSError, ValueError):
        return None
