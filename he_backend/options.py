"""How batches of a session are run, as its callers ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from he_backend.clusters.cluster import Cluster
from he_backend.errors import BackendError, need_count
from he_backend.machines.table import DEFAULT_MACHINE, find
from he_backend.processes.messages import Progress

if TYPE_CHECKING:
    from hesim.calibrate import Calibration

__all__ = ["Asked", "Options"]


@dataclass(frozen=True)
class Options:
    """How batches are run; the arguments of `session` by the same names.

    Raises:
      BackendError: one of them is out of range, or the machine's library is not there.
    """

    backend: str = DEFAULT_MACHINE
    compare: bool = False
    workers: int = 2
    clients: int = 2
    worker_deaths: int = 3
    progress: bool | Callable[[Progress], None] | None = None
    ranges: Mapping[int, tuple[float, float]] | None = None
    outside: str = "error"
    keys: int = 32
    sampled: int = 32
    calibration: Calibration | None = None
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        find(self.backend).python()
        if self.outside not in ("error", "warn"):
            raise BackendError(f"outside={self.outside!r} must be 'error' or 'warn'")
        least = {"workers": 1, "clients": 1, "worker_deaths": 0, "keys": 1, "sampled": 0}
        for name, low in least.items():
            need_count(name, getattr(self, name), low)

    @property
    def encrypts(self) -> bool:
        return find(self.backend).encrypts

    @property
    def apart(self) -> bool:
        """Whether it runs in processes apart from the caller's, encrypted or not."""
        return self.encrypts or self.cluster is not None


@dataclass(frozen=True)
class Asked:
    """How one batch is run, of the arguments of `Session.run`.

    Attributes:
      name: of the batch. after: of the one that it goes on from.
      compare, check: as there.
    """

    name: str
    compare: bool = False
    after: str | None = None
    check: bool = True

    def __post_init__(self) -> None:
        if self.compare and not self.check:
            raise BackendError("compare=True holds a run against exact values: leave check=True")
