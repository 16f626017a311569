"""approx.composite: builds the composites by kind; and the maximum of two values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from approx import requests
from approx.composites import inverse, signs, squaring
from approx.composites.graph import Composite
from approx.errors import ApproxError
from approx.polynomial import Polynomial


def composite(
    kind: str,
    domain: Any,
    *,
    tol: float | None = None,
    degrees: Sequence[int] | None = None,
    gap: float | None = None,
    squarings: int | None = None,
    degree: int | None = None,
    steps: int | None = None,
    depth: int | None = None,
    products: int | None = None,
    multiplied: str | None = None,
) -> Composite:
    """Builds a composite approximation.

    Args:
      kind:
        "sign": composition of odd minimax polynomials; the domain is a union that leaves a gap
        around 0, such as [(-1, -0.01), (0.01, 1)].
        "relu": x (1 + sign(x)) / 2 on (a, b) with a < 0 < b; the gap is chosen.
        "abs": x sign(x) on (a, b) with a < 0 < b, from the same sign.
        "exp_squaring": exp on (a, 0): a seed for exp(x / 2^k), squared k times. With degree=1
        the seed is 1 + x / 2^k, otherwise the minimax polynomial for the error after squaring.
        "inv_sqrt": 1 / sqrt(x) on (a, b), 0 < a: a seed and Newton steps y (3 - x y^2) / 2.
        "inv": 1 / x on (a, b) without 0: a seed and Goldschmidt's steps, one level each.
      tol: largest permitted |composite - target| on the domain; knobs not given are chosen for
        the fewest levels, then the fewest products.
      degrees: of the stages of sign, relu and abs, for instance (15, 15, 27).
      gap: relu and abs only: the half width around 0, relative to the domain's half width, where
        sign need not be right; chosen to balance the two errors if not given.
      squarings: the k of exp_squaring.
      degree: of the seed of exp_squaring, inv_sqrt and inv.
      steps: Newton steps of inv_sqrt, Goldschmidt's of inv.
      depth: sign, relu and abs only: levels allowed; without tol, the least error within them.
      products: sign, relu and abs only: products of two ciphertexts allowed.
      multiplied: relu and abs only: "after" takes the product with x last, "early" inside the last
        stage (a level less, some products more); by default whichever suits the request, "after"
        for given degrees.

    Raises:
      ApproxError: an unknown kind or missing knobs.
      DomainError: the domain does not suit the kind.
      ToleranceError: tol is out of reach.

    Examples:
      >>> import approx
      >>> relu = approx.composite("relu", (-50, 50), tol=1e-2)
      >>> relu.depth, relu.max_error <= 1e-2, bool(abs(relu(-7.0)) <= 1e-2)
      (13, True, True)
    """
    requests.tolerance(tol)
    counts = {"squarings": squarings, "degree": degree, "steps": steps, "depth": depth}
    for knob, value in {**counts, "products": products}.items():
        if value is not None:
            requests.whole(knob, value)
    if degrees is not None:
        if isinstance(degrees, str) or not isinstance(degrees, Sequence) or not degrees:
            raise ApproxError(f"degrees are those of the stages, as (15, 15, 27), not {degrees!r}.")
        degrees = tuple(requests.whole("each of degrees", n, least=1) for n in degrees)
    if gap is not None and not (isinstance(gap, (int, float)) and 0.0 < gap < 1.0):
        raise ApproxError(f"gap must be between 0 and 1, not {gap!r}.")
    if multiplied not in (None, "after", "early"):
        raise ApproxError(f'multiplied is "after" or "early", not {multiplied!r}.')
    intervals = requests.domain(domain)
    if kind in ("sign", "relu", "abs"):
        if kind == "sign":
            return signs.sign(intervals, tol, degrees, depth, products)
        make = signs.absolute if kind == "abs" else signs.relu
        return make(intervals, tol, degrees, gap, depth, products, multiplied)
    if kind == "exp_squaring":
        return squaring.exp(intervals, tol, squarings, degree)
    if kind in ("inv_sqrt", "inv"):
        make = inverse.inv_sqrt if kind == "inv_sqrt" else inverse.inv
        return make(intervals, tol, degree, steps)
    raise ApproxError(
        f"Unknown composite {kind!r}; use sign, relu, abs, exp_squaring, inv_sqrt or inv, "
        "or approx.fit; the maximum of two is approx.maximum."
    )


def maximum(a: Any, b: Any, relu: Composite | Polynomial) -> Any:
    """max(a, b) = b + relu(a - b), with relu's error; NumPy or JAX arrays of one shape.

    Args:
      a, b: values whose difference stays in relu's domain.
      relu: from ``composite("relu", ...)`` or ``fit("relu", ...)``.

    Raises:
      ValueError: arrays whose shapes do not broadcast.

    Examples:
      >>> import approx
      >>> relu = approx.composite("relu", (-2, 2), tol=1e-2)
      >>> bool(abs(approx.maximum(0.3, 0.8, relu) - 0.8) <= 1e-2)
      True
    """
    return b + relu(a - b)
