"""What CKKS does to a JAX program: trace it, plan it, predict it. Encrypts nothing.

Names load on first use, so that a process without JAX can import the parameters and Circuits.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

_HOMES = {
    "BootstrapLaw": "hesim.bootstrap",
    "CKKSParams": "hesim.params",
    "Calibration": "hesim.calibrate",
    "Certificate": "hesim.certify",
    "Circuit": "hesim.circuit.circuit",
    "HesimError": "hesim.errors",
    "LayoutError": "hesim.errors",
    "LevelError": "hesim.errors",
    "NoiseProfile": "hesim.profiles",
    "NotHomomorphicError": "hesim.errors",
    "ParameterError": "hesim.errors",
    "Program": "hesim.program",
    "Suggestion": "hesim.suggest",
    "TraceError": "hesim.errors",
    "ValueOverflowError": "hesim.calibrate",
    "calibrate": "hesim.calibrate",
    "certify": "hesim.certify",
    "compile": "hesim.circuit.compile",
    "predict": "hesim.simulate",
    "refresh": "hesim.refresh",
    "simulate": "hesim.simulate",
    "suggest": "hesim.suggest",
    "trace": "hesim.trace",
}

__all__ = [
    "BootstrapLaw",
    "CKKSParams",
    "Calibration",
    "Certificate",
    "Circuit",
    "HesimError",
    "LayoutError",
    "LevelError",
    "NoiseProfile",
    "NotHomomorphicError",
    "ParameterError",
    "Program",
    "Suggestion",
    "TraceError",
    "ValueOverflowError",
    "calibrate",
    "certify",
    "compile",
    "predict",
    "refresh",
    "simulate",
    "suggest",
    "trace",
]

if TYPE_CHECKING:
    from hesim.bootstrap import BootstrapLaw
    from hesim.calibrate import Calibration, ValueOverflowError, calibrate
    from hesim.certify import Certificate, certify
    from hesim.circuit.circuit import Circuit
    from hesim.circuit.compile import compile
    from hesim.errors import (
        HesimError,
        LayoutError,
        LevelError,
        NotHomomorphicError,
        ParameterError,
        TraceError,
    )
    from hesim.params import CKKSParams
    from hesim.profiles import NoiseProfile
    from hesim.program import Program
    from hesim.refresh import refresh
    from hesim.simulate import predict, simulate
    from hesim.suggest import Suggestion, suggest
    from hesim.trace import trace


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """A package whose functions outrank its modules of the same name (`hesim.trace`)."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a module to its package whenever it is first imported.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
