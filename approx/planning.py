"""Which plan a Chebyshev series gets: the fewest products within its levels.

By division (``approx.plan``), or by Paterson and Stockmeyer's own recursion where that needs fewer
products (``approx.paterson``). This module imports neither JAX nor NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from approx import paterson
from approx.errors import ApproxError
from approx.plan import DividingWriter, Plan, minimal_depth, structure

PLANNINGS = ("fewest", "quiet", "deeper")


def build(coefficients: Sequence[float], depth: int | None = None, quiet: bool = False) -> Plan:
    """The plan for sum_k coefficients[k] * T_k(u).

    Args:
      coefficients: Chebyshev coefficients, T_0 first.
      depth: levels that the plan may use; by default ceil(log2(degree + 1)). More levels can save
        products.
      quiet: do without Paterson and Stockmeyer's recursion, which saves products and costs noise.

    Returns:
      A plan of the fewest products found, and the fewest levels among those.

    Raises:
      ApproxError: no plan of that depth exists, or a coefficient is not finite.
    """
    series = [float(c) for c in coefficients]
    if not all(math.isfinite(c) for c in series):
        raise ApproxError(
            "A coefficient is NaN or infinite; fit the target on a domain where it is finite."
        )
    while len(series) > 1 and series[-1] == 0.0:
        series.pop()
    degree = len(series) - 1
    needed = minimal_depth(degree)
    if depth is None:
        depth = needed
    if depth < needed:
        raise ApproxError(
            f"Degree {degree} needs {needed} levels and only {depth} are allowed; "
            f"ask for degree <= {2**depth - 1} or allow more levels."
        )
    parity = parity_of(series)
    if not quiet and products(degree, parity, depth) < structure(degree, parity, depth).total(
        degree, parity, depth
    ):
        halved = paterson.build(series, depth)
        if halved is not None:
            return halved
    return DividingWriter(structure(degree, parity, depth)).run(series, parity, depth)


def planned(coefficients: Sequence[float], planning: str) -> Plan:
    """The plan for sum_k coefficients[k] * T_k(u) of one of the ``PLANNINGS``.

    "fewest" takes the least depth and the fewest products there, "quiet" the same depth without
    Paterson and Stockmeyer's recursion, "deeper" one level more if that saves products.
    """
    least = build(coefficients, quiet=planning == "quiet")
    if planning != "deeper" or least.depth == 0:
        return least
    deeper = build(coefficients, least.depth + 1)
    return deeper if deeper.nonscalar_mults < least.nonscalar_mults else least


def products(degree: int, parity: int | None = None, depth: int | None = None) -> int:
    """Products of two ciphertexts in the plan for a full series.

    A series whose highest coefficients exceed 16 may need more (see ``approx.paterson``).

    Args:
      degree: of the series.
      parity: 0 even, 1 odd, None both.
      depth: levels allowed; by default ceil(log2(degree + 1)).
    """
    depth = minimal_depth(degree) if depth is None else depth
    divided = structure(degree, parity, depth).total(degree, parity, depth)
    halved = paterson.shape(degree, depth) if parity is None else None
    return divided if halved is None else min(divided, halved[0])


def parity_of(series: Sequence[float]) -> int | None:
    """0 or 1 if all terms from T_2 on are even or odd (T_0 and T_1 are free), otherwise None."""
    present = {k % 2 for k, c in enumerate(series) if k >= 2 and c != 0.0}
    return present.pop() if len(present) == 1 else None
