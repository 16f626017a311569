"""Cheap derivatives of approximations, from values that the forward pass has anyway.

exp' = y, tanh' = 1 - y^2, (1/sqrt)' = -y^3 / 2, (1/x)' = -y^2 of the value y, and relu' = the step
(1 + sign) / 2 that a composite computes on its way (Rho et al. 2025, backward passes): a gradient
then spends products on the value instead of evaluating a derivative's polynomial.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from approx.composites.graph import Composite
from approx.polynomial import IDENTITY, ONE_MINUS_SQUARE, Polynomial

_OF_VALUE: dict[str, Polynomial] = {
    "exp": IDENTITY,
    "tanh": ONE_MINUS_SQUARE,
    "inv_sqrt": Polynomial((0.0, -0.375, 0.0, -0.125), name="-y^3 / 2", max_error=0.0),
    "inv": Polynomial((-0.5, 0.0, -0.5), name="-y^2", max_error=0.0),
}


@dataclasses.dataclass(frozen=True)
class CheapComposite:
    """A composite whose derivative is `rule` of its value or, without a rule, the register that it
    multiplies the input by (the step of a ReLU); times `factor`.

    It has the composite's domain, degree, depth and errors, and is called like one.
    """

    composite: Composite
    rule: Polynomial | None = None
    factor: float = 1.0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "composite":
            raise AttributeError(name)
        return getattr(self.composite, name)

    def __call__(self, x: Any) -> Any:
        """The composite's value; in JAX with the cheap derivative."""
        if isinstance(x, np.ndarray | float | int):
            return self.composite(x)

        @jax.custom_jvp
        def value(u: jax.Array) -> jax.Array:
            return self.composite(u)

        @value.defjvp
        def both(primals: Any, tangents: Any) -> Any:
            (u,), (du,) = primals, tangents
            registers = [u]
            for node in self.composite.nodes:
                registers.append(node(registers))
            y = registers[-1]
            if self.rule is None:
                slope = registers[_step_register(self.composite)]
            else:
                slope = y if self.rule == IDENTITY else self.rule(y)
            return y, du * (slope if self.factor == 1.0 else self.factor * slope)

        return value(x)

    def rescaled(self, m: float) -> CheapComposite:
        """q with q(x) = self(m * x); the derivative takes the factor m."""
        factor = self.factor * m if self.rule is not None else self.factor
        return CheapComposite(self.composite.rescaled(m), self.rule, factor)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rule = None if self.rule is None else self.rule.to_dict()
        return {
            "kind": "cheap_composite",
            "composite": self.composite.to_dict(),
            "rule": rule,
            "factor": self.factor,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CheapComposite:
        """The inverse of `to_dict`; raises ApproxError on a broken composite or rule."""
        rule = None if data["rule"] is None else Polynomial.from_dict(data["rule"])
        return cls(Composite.from_dict(data["composite"]), rule, data["factor"])


def cheap(kind: str, function: Any) -> Any:
    """`function`, an approximation of `kind` (exp, tanh, inv_sqrt, inv, relu), with the cheap
    derivative. Where there is none (a ReLU that is one polynomial or multiplies early, GELU, SiLU)
    the function comes back as it is, with its own derivative.
    """
    rule = _OF_VALUE.get(kind)
    if isinstance(function, Polynomial):
        if rule is None:
            return function
        return function.with_derivative("value" if rule == IDENTITY else rule, "value")
    if isinstance(function, Composite):
        if rule is not None:
            return CheapComposite(function, rule)
        if kind == "relu" and _step_register(function):
            return CheapComposite(function)
    return function


def _step_register(composite: Composite) -> int:
    """The register by which the last product multiplies the input; 0 if there is none."""
    last = composite.nodes[-1]
    if last.kind != "product" or 0 not in last.inputs:
        return 0
    return max(last.inputs)
