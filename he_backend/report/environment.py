"""Where and with what something ran: date, interpreter, machine, versions of packages."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["environment"]

_PACKAGES = ("hesim", "jax", "flax", "numpy", "pyfhel")


def environment() -> dict[str, Any]:
    """Of this process, now.

    Returns:
      python (version), machine (architecture and cores), packages (version by name, "not
      installed" where one is missing), date ("2026-01-31 14:05", local time).
    """
    return {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: _version(name) for name in _PACKAGES},
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
