"""Memory of processes, read from /proc."""

from __future__ import annotations

from pathlib import Path

__all__ = ["grown_bytes", "peak_bytes", "private_bytes", "resident_bytes", "shared_bytes"]


def peak_bytes(pid: int | None = None) -> int:
    """Largest resident size so far (VmHWM), in bytes; 0 where /proc does not say.

    pid: the process; by default this one.
    """
    return _field("VmHWM:", pid)


def resident_bytes(pid: int | None = None) -> int:
    """Resident size now (VmRSS), in bytes; 0 where /proc does not say."""
    return _field("VmRSS:", pid)


def shared_bytes(pid: int | None = None) -> int:
    """Resident size now of memory shared with other processes on purpose (RssShmem), in bytes; 0
    where /proc does not say.
    """
    return _field("RssShmem:", pid)


def private_bytes(pid: int) -> int:
    """Resident bytes now that a process shares with no other, neither by its parent's fork nor on
    purpose; 0 where /proc does not say.
    """
    return _field("Private_", pid, "smaps_rollup")


def grown_bytes(pid: int, before: int) -> int:
    """Bytes of a forked process at its peak, beyond what it began with or what it wrote to of that;
    0 where /proc does not say.

    before: resident bytes when it began, but for shared ones.
    """
    return max(peak_bytes(pid) - shared_bytes(pid) - before, private_bytes(pid))


def _field(name: str, pid: int | None, file: str = "status") -> int:
    """The sum of the lines that begin so, in bytes."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/{file}").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(name))
