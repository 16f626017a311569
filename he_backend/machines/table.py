"""Which machines there are: each is one module beside this one and one row here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["MACHINES", "MachineRow"]


@dataclass(frozen=True)
class MachineRow:
    """Where a machine is found.

    Attributes:
      module: name of its module. kind: name of its class there.
      encrypts: whether its numbers are encrypted at all.
    """

    module: str
    kind: str
    encrypts: bool

    def load(self) -> Any:
        """The class, its module imported only now: it may need a library that is not installed."""
        return getattr(importlib.import_module(self.module), self.kind)


MACHINES: Mapping[str, MachineRow] = MappingProxyType(
    {
        "slots": MachineRow("he_backend.machines.slots", "SlotsMachine", encrypts=False),
        "pyfhel": MachineRow("he_backend.machines.pyfhel.machine", "PyfhelMachine", encrypts=True),
    }
)
"""The rows by the name that `he_backend.run(..., backend=...)` takes."""
