"""How an evaluation magnifies CKKS noise: the error of its result for a unit error of each rescale.

Every product, and every sum of scalar terms, ends in a rescale whose rounding is an independent
error of about one size (hesim's profiles say which: some 2^-(scale_bits) times a constant of the
ring). The input carries one such error too. What these do to the result is found by running the
evaluation plan with small random errors added and comparing, so it includes cancellation inside a
plan, the slope of the function, and, for composites, that later stages damp what earlier ones add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from approx.plan import Plan
from approx.polynomial import Polynomial

if TYPE_CHECKING:
    from approx.composites.graph import Composite

_UNIT = 1e-7  # small against the values, large against float64's rounding
_TRIALS = 16


def amplification(
    approximation: Polynomial | Composite, x: Any = None, unit: float = _UNIT, seed: int = 0
) -> float:
    """Root mean square error of the result, by that of one rescale; 1 is no magnification.

    Args:
      approximation: a polynomial or a composite.
      x: points to average over, such as activations; by default an even grid of the domain.
      unit: the error of one rescale that is tried, relative to values of size 1.
      seed: of the random errors.

    Returns:
      rms over points and trials, with a statistical error of about 2 %; infinite if the values
      overflow.

    Raises nothing of its own.

    Examples:
      >>> import approx
      >>> root = approx.fit("inv_sqrt", (0.04, 1.0), degree=55)
      >>> approx.amplification(root) > approx.amplification(root.with_plan("quiet")) > 1
      True
    """
    if x is None:
        x = np.concatenate([np.linspace(a, b, 513) for a, b in approximation.intervals])
    points = np.tile(np.asarray(x, dtype=np.float64).ravel(), _TRIALS)
    noise = _Noise(unit, np.random.default_rng(seed))
    with np.errstate(all="ignore"):
        gap = noise.run(approximation, points) - approximation(points)
        rms = float(np.sqrt(np.mean(gap * gap))) / unit
    return rms if np.isfinite(rms) else float("inf")


class _Noise:
    """Evaluates with an error of ``unit`` added to the input and after every rescale."""

    def __init__(self, unit: float, rng: np.random.Generator) -> None:
        self.unit, self.rng = unit, rng

    def rounded(self, x: np.ndarray) -> np.ndarray:
        return x + self.unit * self.rng.standard_normal(x.shape)

    def run(self, approximation: Polynomial | Composite, x: np.ndarray) -> np.ndarray:
        x = self.rounded(x)
        if isinstance(approximation, Polynomial):
            return self.polynomial(approximation, x)
        registers = [x]
        for node in approximation.nodes:
            if node.polynomial is not None:
                registers.append(self.polynomial(node.polynomial, registers[node.inputs[0]]))
                continue
            value = node(registers)
            costs = node.kind == "product" or any(f != round(f) for f in node.factors)
            registers.append(self.rounded(value) if costs else value)
        return registers[-1]

    def polynomial(self, poly: Polynomial, x: np.ndarray) -> np.ndarray:
        u = poly.scale * x + poly.shift
        if poly.affine == "own" and abs(poly.scale) != 1.0:
            u = self.rounded(u)
        return self.plan(poly.plan, u)

    def plan(self, plan: Plan, u: np.ndarray) -> np.ndarray:
        registers = [u]
        for step in plan.steps:
            total = np.zeros_like(u)
            for f, a, b in step.products:
                total = total + f * registers[a] * registers[b]
            for c, j in step.scalars:
                total = total + c * registers[j]
            if step.products or step.scalars:
                total = self.rounded(total)
            for k, j in step.adds:
                total = total + k * registers[j]
            registers.append(total + step.constant)
        return registers[plan.output]
