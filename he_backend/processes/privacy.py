"""What a process does that will hold a secret key, before it does."""

from __future__ import annotations

import ctypes
import os
import resource

__all__ = ["keep_private"]

_PR_SET_DUMPABLE = 4


def keep_private() -> None:
    """Let nobody but the owner read this process's files, and nobody its memory.

    It leaves no core file when it fails or is killed, neither in its folder nor with a handler of
    the system, and other processes of the user cannot attach to it.
    """
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
