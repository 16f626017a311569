"""Which machines there are: each is one module beside this one and one row here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from he_backend.errors import BackendError

if TYPE_CHECKING:
    from he_backend.machines.protocol import KeyMaker

__all__ = ["DEFAULT_MACHINE", "MACHINES", "MachineRow", "find", "find_for_two_owners"]


@dataclass(frozen=True)
class MachineRow:
    """Where a machine is found, and what its processes need.

    Attributes:
      module: name of its module. kind: name of its class there, a `KeyMaker`.
      encrypts: whether it runs in processes of its own, apart from the keys; otherwise it holds the
        numbers in the clear, and runs in the caller's process.
      server_keys, client_keys: names of the files that `KeyMaker.make_keys` writes into the
        server's folder and the client's.
      rotation_keys: names of those that it writes into the server's besides if there are steps.
      bootstrap_keys: names of those that it writes there besides if the server bootstraps.
      interpreter: the Python that key process, client, server and workers run under, where its
        library is installed; None for the caller's.
      digits: in which it switches keys unless its parameters say another number; None for a digit
        a prime.
      profile: name of the noise profile of its library.
      bootstraps: whether it refreshes by itself, where a Circuit was planned for that.
      others_keys: whether key files that somebody else made may be loaded; not if its library reads
        them with a parser that trusts them.
      finder: module and name, with a colon between, of a function that finds it instead.
      environment: variables, with their values, that its client, server and workers are given.
      threads: whether one operation shares the cores by OpenMP: then `variables` gives each worker
        its part of them, and one worker has them all.
    """

    module: str
    kind: str
    encrypts: bool
    server_keys: tuple[str, ...] = ()
    client_keys: tuple[str, ...] = ()
    rotation_keys: tuple[str, ...] = ()
    bootstrap_keys: tuple[str, ...] = ()
    interpreter: str | None = None
    finder: str = ""
    bootstraps: bool = False
    digits: int | None = None
    profile: str = "seal"
    others_keys: bool = True
    environment: tuple[tuple[str, str], ...] = ()
    threads: bool = False

    def python(self) -> str | None:
        """The interpreter, found if it must be; None for the caller's. Raises BackendError if there
        is none that has the library.
        """
        if not self.finder:
            return self.interpreter
        module, name = self.finder.split(":")
        return getattr(importlib.import_module(module), name)()

    def variables(self, workers: int = 1) -> tuple[tuple[str, str], ...]:
        """`environment`, and how many threads each of so many workers has."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        each = str(max(cores // workers, 1))
        own = (("OMP_NUM_THREADS", each), ("OMP_WAIT_POLICY", "passive")) if self.threads else ()
        return (*self.environment, *own)

    def load(self) -> KeyMaker:
        """The class, its module imported only now: it may need a library that is not installed."""
        return cast("KeyMaker", getattr(importlib.import_module(self.module), self.kind))


_TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("mmap_threshold", 1 << 25), ("trim_threshold", 1 << 27), ("hugetlb", 1))
)
"""For an allocator that is asked for a ciphertext's bytes again and again: by itself glibc gives
memory back each time and takes it anew, page by page, which costs ten times the copy. Large pages
make forking workers from a server with gigabytes of keys cheap. Other allocators ignore it.
"""

MACHINES: Mapping[str, MachineRow] = MappingProxyType(
    {
        "slots": MachineRow("he_backend.machines.slots", "SlotsMachine", encrypts=False),
        "pyfhel": MachineRow(
            "he_backend.machines.pyfhel.machine",
            "PyfhelMachine",
            encrypts=True,
            server_keys=("public.key", "relin.key"),
            client_keys=("public.key", "secret.key"),
            rotation_keys=("rotation.key",),
            environment=(("GLIBC_TUNABLES", _TUNABLES),),
        ),
        "openfhe": MachineRow(
            "he_backend.machines.openfhe.entry",
            "OpenFHEMachine",
            encrypts=True,
            server_keys=("public.key", "relin.key"),
            client_keys=("public.key", "secret.key"),
            rotation_keys=("rotation.key",),
            bootstrap_keys=(
                *("bootstrap-public.key", "bootstrap-relin.key", "bootstrap-rotation.key"),
                "bootstrap-common.cipher",
            ),
            finder="he_backend.machines.openfhe.interpreter:find_interpreter",
            bootstraps=True,
            threads=True,
            digits=3,
            profile="openfhe",
            others_keys=False,
        ),
    }
)
"""The rows by the name that `he_backend.run(..., backend=...)` takes."""

DEFAULT_MACHINE = "pyfhel"
"""The machine of a caller who names none."""


def find(name: str) -> MachineRow:
    """The row of a machine. Raises BackendError if there is none of this name."""
    if name not in MACHINES:
        known = " or ".join(map(repr, MACHINES))
        raise BackendError(f"backend {name!r} is unknown; use {known}")
    return MACHINES[name]


def find_for_two_owners(name: str) -> MachineRow:
    """The row of a machine that an evaluator and a key holder run apart.

    Raises:
      BackendError: there is none of this name, or it takes no keys of another owner.
    """
    row = find(name)
    if not row.others_keys:
        able = " or ".join(repr(n) for n, r in MACHINES.items() if r.encrypts and r.others_keys)
        raise BackendError(
            f"backend={name!r} is for one owner of data and model: its library reads key files "
            f"with a parser that trusts them. Between two owners take {able}"
        )
    return row
