"""`OpenFHEMachine`: in this process where OpenFHE is, and in one of its own where it is not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING or find_spec("openfhe") is None:
    from he_backend.machines.openfhe.remote import RemoteMachine as OpenFHEMachine
else:
    from he_backend.machines.openfhe.machine import NativeMachine as OpenFHEMachine

__all__ = ["OpenFHEMachine"]
