"""Memory of the calling process, read from /proc."""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak_bytes", "resident_bytes", "shared_bytes"]


def peak_bytes() -> int:
    """Largest resident size so far (VmHWM), in bytes; 0 where /proc does not say."""
    return _field("VmHWM:")


def resident_bytes() -> int:
    """Resident size now (VmRSS), in bytes; 0 where /proc does not say."""
    return _field("VmRSS:")


def shared_bytes() -> int:
    """Resident size now of memory shared with other processes on purpose (RssShmem), in bytes; 0
    where /proc does not say.
    """
    return _field("RssShmem:")


def _field(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = (line.split()[1] for line in lines if line.startswith(name))
    return 1024 * int(next(found, "0"))
