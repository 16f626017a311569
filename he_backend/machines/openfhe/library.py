"""OpenFHE's module, which has no types, and is only where its interpreter is.

Its operations share the cores by OpenMP, whose threads do not survive a fork: a child would wait
for them for ever. So they are let go before one, and started again by who needs them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from pathlib import Path
from typing import Any

__all__ = ["openfhe"]

openfhe: Any = importlib.import_module("openfhe")

_PAUSE_HARD = 2
"""omp_pause_hard of OpenMP 5.0: threads end, and what they hold is freed."""


def _runtime() -> ctypes.CDLL | None:
    """OpenMP's library as this process has loaded it; None if it has none, or an old one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").split():
            if "libgomp" in line or "libomp" in line or "libiomp" in line:
                found = ctypes.CDLL(line)
                return found if hasattr(found, "omp_pause_resource_all") else None
    return None


_openmp = _runtime()
if _openmp is not None:
    _let_go = _openmp.omp_pause_resource_all
    os.register_at_fork(before=lambda: _let_go(_PAUSE_HARD))
