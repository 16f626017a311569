"""approx: fit, certify, plan and evaluate polynomials for homomorphic encryption."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from approx.composites import Composite, composite, maximum
    from approx.errors import ApproxError, DomainError, ToleranceError
    from approx.fitting import fit
    from approx.plan import Plan, Step
    from approx.polynomial import Polynomial

__all__ = [
    "ApproxError",
    "Composite",
    "DomainError",
    "Plan",
    "Polynomial",
    "Step",
    "ToleranceError",
    "composite",
    "fit",
    "maximum",
]

_HOME = {
    "ApproxError": "errors",
    "Composite": "composites",
    "DomainError": "errors",
    "Plan": "plan",
    "Polynomial": "polynomial",
    "Step": "plan",
    "ToleranceError": "errors",
    "composite": "composites",
    "fit": "fitting",
    "maximum": "composites",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"approx.{_HOME[name]}"), name)
    raise AttributeError(f"module 'approx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
