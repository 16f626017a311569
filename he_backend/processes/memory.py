"""Memory of processes, read from /proc."""

from __future__ import annotations

from pathlib import Path

from he_backend.errors import BackendError
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.bootstraps import bootstrap_memory
from hesim.circuit.sizes import available

__all__ = [
    "grown_bytes",
    "need_memory",
    "peak_bytes",
    "private_bytes",
    "resident_bytes",
    "shared_bytes",
]


def need_memory(circuit: Circuit) -> None:
    """BackendError if a Circuit that bootstraps takes more than is free: its keys alone are
    gigabytes, and are made for minutes before a process would be ended for them.
    """
    refresher, free = circuit.bootstrap, available()
    needed = circuit.ledger.peak_bytes
    if refresher is None or not refresher.own_levels or needed <= free:
        return
    boots = bootstrap_memory(circuit.params, refresher, circuit.slots)
    raise BackendError(
        f"the circuit takes {needed / 1e9:.1f} GB to evaluate, of which {boots.keys / 1e9:.1f} GB "
        f"are keys and {boots.matrices / 1e9:.1f} GB matrices of its bootstraps, and "
        f"{free / 1e9:.1f} GB are free, so no keys were made: free some, or compile it with "
        f"memory={int(free):,}, fewer levels or a smaller ring"
    )


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
