"""Whose work a run folder holds: the settings of a job and a digest of the code that it runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

__all__ = ["PACKAGES", "Job", "code_digest"]

PACKAGES = ("approx", "hesim", "models", "he_backend")
"""Packages whose code decides what a run computes."""


class Job(Protocol):
    """Settings of a run that keeps its work in a folder."""

    def plain(self) -> dict[str, Any]:
        """All settings as JSON data."""
        ...


def code_digest() -> str:
    """SHA-256 over the Python files of `PACKAGES`, in hexadecimal."""
    total = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            total.update(str(path.relative_to(root)).encode())
            total.update(path.read_bytes())
    return total.hexdigest()
