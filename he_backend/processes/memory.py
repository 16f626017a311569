"""Memory of processes, read from /proc."""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak_bytes", "private_bytes", "resident_bytes", "shared_bytes"]


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


def private_bytes(pid: int) -> int:
    """Resident bytes now that a process shares with no other, neither by its parent's fork nor on
    purpose; 0 where /proc does not say.
    """
    return _field("Private_", f"/proc/{pid}/smaps_rollup")


def _field(name: str, path: str = "/proc/self/status") -> int:
    """The sum of the lines that begin so, in bytes."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(name))
