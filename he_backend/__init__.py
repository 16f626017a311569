"""Runs a Circuit encrypted: machines, a client that holds the secret key, a server that does not.

Names load on first use, so that a worker can import a machine without JAX.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BackendError": "he_backend.errors",
    "BlobError": "he_backend.errors",
    "CircuitError": "he_backend.errors",
    "ClientRefusedError": "he_backend.errors",
    "DomainError": "he_backend.errors",
    "EncodeError": "he_backend.errors",
    "LedgerMismatchError": "he_backend.errors",
    "MissingRotationKey": "he_backend.errors",
    "OpRecord": "he_backend.report",
    "Progress": "he_backend.protocol",
    "ProtocolError": "he_backend.errors",
    "Report": "he_backend.report",
    "RunFolderError": "he_backend.errors",
    "ValueRangeError": "he_backend.errors",
    "WorkerDied": "he_backend.errors",
    "run": "he_backend.run",
}

__all__ = [
    "BackendError",
    "BlobError",
    "CircuitError",
    "ClientRefusedError",
    "DomainError",
    "EncodeError",
    "LedgerMismatchError",
    "MissingRotationKey",
    "OpRecord",
    "Progress",
    "ProtocolError",
    "Report",
    "RunFolderError",
    "ValueRangeError",
    "WorkerDied",
    "run",
]

if TYPE_CHECKING:
    from he_backend.errors import (
        BackendError,
        BlobError,
        CircuitError,
        ClientRefusedError,
        DomainError,
        EncodeError,
        LedgerMismatchError,
        MissingRotationKey,
        ProtocolError,
        RunFolderError,
        ValueRangeError,
        WorkerDied,
    )
    from he_backend.protocol import Progress
    from he_backend.report import OpRecord, Report
    from he_backend.run import run


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """A package whose functions outrank its modules of the same name (`he_backend.run`)."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a module to its package whenever it is first imported.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
