"""What CKKS does to a JAX program: trace it, plan it, predict it. Encrypts nothing.

Names load on first use, so that a process without JAX can import the parameters and Circuits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesim.lazy import attach

_HOMES = {
    "ArgumentError": "hesim.errors",
    "BootstrapLaw": "hesim.noise.bootstrap",
    "Bundle": "hesim.bundles.bundle",
    "BundleError": "hesim.errors",
    "CKKSParams": "hesim.params",
    "Calibration": "hesim.calibrate",
    "Certificate": "hesim.certify",
    "Circuit": "hesim.circuit.circuit",
    "HesimError": "hesim.errors",
    "LayoutError": "hesim.errors",
    "LevelError": "hesim.errors",
    "NoiseProfile": "hesim.noise.profiles",
    "NotHomomorphicError": "hesim.errors",
    "ParameterError": "hesim.errors",
    "OverBudgetError": "hesim.errors",
    "Program": "hesim.program",
    "Suggestion": "hesim.suggest",
    "TooLargeError": "hesim.errors",
    "TraceError": "hesim.errors",
    "ValueOverflowError": "hesim.errors",
    "Approximated": "hesim.approximating.approximated",
    "KEY_HOLDER": "hesim.circuit.refresher",
    "Refresher": "hesim.circuit.refresher",
    "WorstInput": "hesim.worst_input",
    "approximate": "hesim.approximating.approximate",
    "bootstrap": "hesim.circuit.refresher",
    "openfhe_bootstrap": "hesim.circuit.refresher",
    "bundle": "hesim.bundle",
    "calibrate": "hesim.calibrate",
    "certify": "hesim.certify",
    "compile": "hesim.circuit.compile",
    "load": "hesim.bundles.storage",
    "predict": "hesim.predict",
    "refresh": "hesim.refresh",
    "save": "hesim.bundles.storage",
    "simulate": "hesim.simulate",
    "suggest": "hesim.suggest",
    "trace": "hesim.trace",
    "worst_input": "hesim.worst_input",
}

__all__ = [
    "Approximated",
    "ArgumentError",
    "KEY_HOLDER",
    "BootstrapLaw",
    "Bundle",
    "BundleError",
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
    "OverBudgetError",
    "Program",
    "Refresher",
    "Suggestion",
    "TooLargeError",
    "TraceError",
    "ValueOverflowError",
    "WorstInput",
    "approximate",
    "bootstrap",
    "bundle",
    "calibrate",
    "certify",
    "compile",
    "load",
    "openfhe_bootstrap",
    "predict",
    "refresh",
    "save",
    "simulate",
    "suggest",
    "trace",
    "worst_input",
]

if TYPE_CHECKING:
    from hesim.approximating.approximate import approximate
    from hesim.approximating.approximated import Approximated
    from hesim.bundle import bundle
    from hesim.bundles.bundle import Bundle
    from hesim.bundles.storage import load, save
    from hesim.calibrate import Calibration, ValueOverflowError, calibrate
    from hesim.certify import Certificate, certify
    from hesim.circuit.circuit import Circuit
    from hesim.circuit.compile import compile
    from hesim.circuit.refresher import KEY_HOLDER, Refresher, bootstrap, openfhe_bootstrap
    from hesim.errors import (
        ArgumentError,
        BundleError,
        HesimError,
        LayoutError,
        LevelError,
        NotHomomorphicError,
        OverBudgetError,
        ParameterError,
        TooLargeError,
        TraceError,
    )
    from hesim.noise.bootstrap import BootstrapLaw
    from hesim.noise.profiles import NoiseProfile
    from hesim.params import CKKSParams
    from hesim.predict import predict
    from hesim.program import Program
    from hesim.refresh import refresh
    from hesim.simulate import simulate
    from hesim.suggest import Suggestion, suggest
    from hesim.trace import trace
    from hesim.worst_input import WorstInput, worst_input

__getattr__, __dir__ = attach(__name__, _HOMES)
