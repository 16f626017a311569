"""From the powers of x to Chebyshev polynomials of u = scale x + shift, in ball arithmetic.

Papers and other libraries print coefficients of powers, and on a wide domain these are large and
cancel. So x = (u - shift) / scale is put into Horner's rule with balls, and the precision doubled
until their radii are below float64's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from approx.errors import ApproxError

_START = 128  # bits
_LARGEST = 1 << 16
_RADIUS = 2.0**-60  # accepted, by the largest coefficient


def chebyshev(powers: Sequence[float], scale: float, shift: float) -> tuple[float, ...]:
    """The float64 coefficients of T_k(scale x + shift) in sum_k powers[k] x^k.

    Raises:
      ApproxError: the coefficients exceed float64.
    """
    import flint

    bits = _START
    while bits <= _LARGEST:
        with flint.ctx.workprec(bits):
            series = _horner([flint.arb(c) for c in powers], flint.arb(scale), flint.arb(shift))
            size = max(float(abs(c).upper()) for c in series)
            if all(float(c.rad().upper()) <= _RADIUS * size for c in series):
                found = tuple(float(c.mid()) for c in series)
                if all(abs(c) < float("inf") for c in found):
                    return found
                break
        bits *= 2
    raise ApproxError(
        "The Chebyshev coefficients of these powers of x exceed float64 on this domain; narrow it."
    )


def _horner(powers: list[Any], scale: Any, shift: Any) -> list[Any]:
    """series <- x series + c, where x T_k = ((T_{k+1} + T_{|k-1|}) / 2 - shift T_k) / scale."""
    series = [powers[-1]]
    for c in reversed(powers[:-1]):
        longer = [-shift * s for s in series] + [0 * shift]
        for k, s in enumerate(series):
            longer[k + 1] += s if k == 0 else s / 2
            if k > 0:
                longer[k - 1] += s / 2
        series = [s / scale for s in longer]
        series[0] += c
    return series
