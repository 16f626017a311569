"""Machines that execute Circuits, one a file; `protocol` says what a machine can do."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {"Machine": "protocol", "PyfhelMachine": "pyfhel.machine", "SlotsMachine": "slots"}

__all__ = ["Machine", "PyfhelMachine", "SlotsMachine"]

if TYPE_CHECKING:
    from he_backend.machines.protocol import Machine
    from he_backend.machines.pyfhel.machine import PyfhelMachine
    from he_backend.machines.slots import SlotsMachine


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
