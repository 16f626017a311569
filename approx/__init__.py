"""approx: fit, certify, plan and evaluate polynomials for homomorphic encryption."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from approx.choice.choosing import Choice, Front, choose
    from approx.choice.reporting import Report, report
    from approx.composites.composing import composite, maximum
    from approx.composites.graph import Composite
    from approx.errors import ApproxError, DomainError, ToleranceError
    from approx.fitting import fit
    from approx.noise import amplification
    from approx.plan import Plan, Step
    from approx.polynomial import Polynomial

__all__ = [
    "ApproxError",
    "Choice",
    "Composite",
    "DomainError",
    "Front",
    "Plan",
    "Polynomial",
    "Report",
    "Step",
    "ToleranceError",
    "amplification",
    "choose",
    "composite",
    "fit",
    "maximum",
    "report",
]

_HOME = {
    "ApproxError": "errors",
    "Choice": "choice.choosing",
    "Composite": "composites.graph",
    "DomainError": "errors",
    "Front": "choice.choosing",
    "Plan": "plan",
    "Polynomial": "polynomial",
    "Report": "choice.reporting",
    "Step": "plan",
    "ToleranceError": "errors",
    "amplification": "noise",
    "choose": "choice.choosing",
    "composite": "composites.composing",
    "fit": "fitting",
    "maximum": "composites.composing",
    "report": "choice.reporting",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"approx.{_HOME[name]}"), name)
    raise AttributeError(f"module 'approx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
