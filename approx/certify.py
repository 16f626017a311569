"""Rigorous bounds on |p - f|: ball arithmetic at Chebyshev points, and analyticity in between.

On each smooth piece of the domain, mapped to t in [-1, 1], let e = f - p and q the polynomial of
degree D that interpolates e at D + 1 Chebyshev points. Three facts bound e:

1. |e - q| <= 4 M r^-D / (r - 1) if f is analytic inside the Bernstein ellipse of parameter r and
   |f| <= M there (Trefethen, Approximation Theory and Approximation Practice, theorem 8.2; q - p
   interpolates p exactly since D >= deg p). M comes from complex balls that cover the ellipse.
2. The node values carry balls of radius d; their effect on q is at most d (2/pi log(D+1) + 1).
3. |q| <= max over N + 1 equally spaced angles of |q(cos)| / cos(pi D / 2N), an inequality for
   trigonometric polynomials (Ehlich and Zeller 1964).

The residual e, not f, is transformed in float64, so rounding is relative to the error itself.

Where f is analytic in sqrt(x) only, as sqrt is at 0, everything is done in s = sqrt(x).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from approx.errors import DomainError
from approx.polynomial import Interval, Polynomial
from approx.remez import split
from approx.targets import Ball, Target

_PRECISION = 160  # bits of the ball arithmetic at the nodes, and 2 for each degree
_LARGEST = 6000  # most interpolation nodes on a piece
_OVERSAMPLING = 100  # N / D
_FINE = 1 << 16  # points of a fine estimate
_PEAKS = 4096  # refined in a fine estimate
_FFT_ALLOWANCE = 1e-8  # relative; float64 transforms of this length err by less than 1e-11


@dataclass(frozen=True)
class Residual:
    """e = f - p on one piece as a Chebyshev series of t, with a bound on what it leaves out.

    Attributes:
      piece: (a, b); t = (2x - a - b) / (b - a).
      root: whether the series is in s = sqrt(x), 0 <= s <= sqrt(b), instead of x.
      series: float64 Chebyshev coefficients in t.
      remainder: rigorous bound on |e - series| over the piece.
    """

    piece: Interval
    series: np.ndarray
    remainder: float
    root: bool = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        a, b = self.piece
        if self.root:
            x, b = np.sqrt(x), _root(b)
        t = np.clip((2.0 * x - a - b) / (b - a), -1.0, 1.0)
        return np.polynomial.chebyshev.chebval(t, self.series)

    def bound(self, oversampling: int = _OVERSAMPLING) -> float:
        """Rigorous upper bound on |e|, 1.24 / oversampling^2 above its maximum relatively.

        That is about 0.012 % by default; what ``remainder`` leaves open comes on top.
        """
        count = oversampling * max(len(self.series), 8)
        padded = np.zeros(count + 1)
        padded[: len(self.series)] = self.series
        padded[1:-1] *= 0.5
        values = _cosine_sums(padded)
        factor = math.cos(0.5 * math.pi * max(len(self.series) - 1, 1) / count)
        top = float(np.max(np.abs(values)))
        return top * (1.0 + _FFT_ALLOWANCE) / factor + self.remainder


def certify(poly: Polynomial, target: Target) -> float | None:
    """A rigorous bound on |poly - target| over the polynomial's domain, or None if there is none.

    None is returned for targets without a ball version, and where a singularity is so close to
    the domain that more than 6000 nodes would be needed.
    """
    parts = residuals(poly, target)
    return None if parts is None else max(part.bound() for part in parts)


def residuals(poly: Polynomial, target: Target, accuracy: float = 1e-5) -> list[Residual] | None:
    """target - poly on each smooth piece, to ``accuracy`` relative to the error, or None."""
    if target.ball is None:
        return None
    parts = []
    for piece in split(poly.intervals, target.kinks):
        if target.root is not None and piece[0] == 0.0:
            part = _residual(poly, target.root, (0.0, _root(piece[1])), accuracy, root=True)
            part = None if part is None else dataclasses.replace(part, piece=piece)
        else:
            part = _residual(poly, target.ball(0.5 * (piece[0] + piece[1])), piece, accuracy)
        if part is None:
            return None
        parts.append(part)
    return parts


def estimate(poly: Polynomial, target: Target, fine: bool = False) -> float:
    """max |poly - target| on a dense grid: an estimate for callables that have no ball version.

    With ``fine`` 65,537 equally spaced points join it, and the grid is refined about its highest
    peaks, so that features wider than 3e-5 of a piece are not missed.

    Raises:
      DomainError: the target is NaN or infinite at a point of the grid.
    """
    largest = 0.0
    for a, b in split(poly.intervals, target.kinks):
        t = np.cos(np.linspace(0.0, np.pi, 64 * (poly.degree + 8) + 1))
        if fine:
            t = np.union1d(t, np.linspace(-1.0, 1.0, _FINE + 1))
        x = np.clip(0.5 * (a + b) + 0.5 * (b - a) * t, a, b)
        for _ in range(8 if fine else 1):
            errors = np.abs(poly(x) - target(x))
            if not np.all(np.isfinite(errors)):
                bad = x[~np.isfinite(errors)][0]
                raise DomainError(
                    f"{target.name} is NaN or infinite at x = {bad:g}; choose a domain inside "
                    "which it is finite."
                )
            top = float(np.max(errors))
            if top <= largest * (1.0 + 1e-9):
                break
            largest = top
            if not fine or len(x) < 3:
                break
            tops = _tops(x, errors, top)
            x = np.unique(np.linspace(x[tops - 1], x[tops + 1], 33))
    return largest


def _tops(x: np.ndarray, errors: np.ndarray, top: float) -> np.ndarray:
    """Inner points of a grid beside which a peak may rise above `top`, the highest found so far.

    Every local maximum counts, not the highest points: those of a function that swings thousands
    of times may all lie about a few of its peaks, none of which need be the highest. How far a
    peak rises above its highest point is told by the parabola through it and its neighbours.
    """
    before, at, after = errors[:-2], errors[1:-1], errors[2:]
    left, right = np.diff(x)[:-1], np.diff(x)[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        rise, fall = (at - before) / left, (at - after) / right
        slope = (rise * right - fall * left) / (left + right)
        above = np.nan_to_num(slope**2 * (left + right) / (4.0 * (rise + fall)))
    peaks = np.flatnonzero((at >= before) & (at >= after) & (at + 4.0 * above >= top))
    highest = peaks[np.argsort((at + above)[peaks])[-_PEAKS:]]
    ends = [1] if errors[0] >= top else []
    ends += [len(x) - 2] if errors[-1] >= top else []
    return np.union1d(highest + 1, ends).astype(int)


def _root(b: float) -> float:
    """sqrt(b), rounded up."""
    return math.nextafter(math.sqrt(b), math.inf)


def _residual(
    poly: Polynomial, ball: Ball, piece: Interval, accuracy: float, root: bool = False
) -> Residual | None:
    import flint

    own = poly.degree * (2 if root else 1)
    with flint.ctx.workprec(_PRECISION + 2 * own):
        rough = _interpolate(poly, ball, piece, max(own + 1, 16), root)
        if not np.all(np.isfinite(rough.series)):
            return None
        size = max(float(np.max(np.abs(rough.series))), 1e-25)
        ellipse = _ellipse(ball, piece, accuracy * size)
        if ellipse is None:
            return None
        log_radius, bound = ellipse
        need = math.log(4.0 * bound / (accuracy * size * math.expm1(log_radius))) / log_radius
        if not math.isfinite(need):
            return None
        degree = max(int(need) + 2, own + 1, 16)
        if degree > _LARGEST:
            return None
        part = _interpolate(poly, ball, piece, degree, root)
        tail = 4.0 * bound * math.exp(-log_radius * degree) / math.expm1(log_radius)
        return Residual(piece, part.series, (part.remainder + tail) * (1.0 + 1e-12), root)


def _interpolate(
    poly: Polynomial, ball: Ball, piece: Interval, degree: int, root: bool
) -> Residual:
    """The interpolant of f - p of this degree; remainder holds the node radii only."""
    import flint

    a, b = flint.arb(piece[0]), flint.arb(piece[1])
    middle, half = (a + b) / 2, (b - a) / 2
    values, radius = np.empty(degree + 1), 0.0
    for k in range(degree + 1):
        x = middle + half * flint.arb.cos_pi_fmpq(flint.fmpq(k, degree))
        error = ball(flint.acb(x)).real - _exact(poly, x * x if root else x)
        values[k] = float(error.mid())
        radius = max(radius, float((error - flint.arb(values[k])).abs_upper()))
    series = _cosine_sums(values) / degree
    series[0] *= 0.5
    series[-1] *= 0.5
    lebesgue = 2.0 / math.pi * math.log(degree + 1) + 1.0
    return Residual(piece, series, radius * lebesgue * (1.0 + 1e-12))


def _cosine_sums(x: np.ndarray) -> np.ndarray:
    """y_k = x_0 + (-1)^k x_n + 2 sum x_j cos(pi j k / n): the cosine transform of type I."""
    return np.fft.rfft(np.concatenate([x, x[-2:0:-1]])).real


def _exact(poly: Polynomial, x: Any) -> Any:
    """p(x) in balls, with the polynomial's numbers (and their tails) taken as exact."""
    import flint

    u = flint.arb(poly.scale) * x + flint.arb(poly.shift)
    twice = 2 * u
    series: list[Any] = list(poly.coefficients)
    for k, tail in enumerate(poly.tails):
        series[k] = flint.arb(series[k]) + tail
    one = two = flint.arb(0)
    for c in reversed(series[1:]):
        one, two = twice * one - two + c, one
    return u * one - two + series[0]


def _ellipse(ball: Ball, piece: Interval, goal: float) -> tuple[float, float] | None:
    """(log r, M) of the Bernstein ellipse, f analytic on it, that needs the fewest nodes."""
    best: tuple[float, float, float] | None = None
    log_radius = 2.5
    misses = 0
    while log_radius > 2e-3 and misses < 3:
        bound = _largest(ball, piece, log_radius)
        if bound is not None:
            nodes = math.log(max(4.0 * bound / (goal * math.expm1(log_radius)), 2.0)) / log_radius
            if best is None or nodes < best[0]:
                best, misses = (nodes, log_radius, bound), 0
            else:
                misses += 1
        log_radius *= 0.75
    return None if best is None else (best[1], max(best[2], 1e-30))


def _largest(ball: Ball, piece: Interval, log_radius: float) -> float | None:
    """Upper bound on |f| over the filled ellipse, or None if it may not be analytic there.

    The ellipse is covered by images of cells in (s, angle), z = (e^{s+i angle} + e^{-s-i angle})/2.
    A cell on which the ball version is finite holds no singularity. By symmetry the upper half is
    enough. Cells are cut while they are not finite, down to a limit.
    """
    import flint

    a, b = flint.arb(piece[0]), flint.arb(piece[1])
    middle, half = (a + b) / 2, (b - a) / 2
    with flint.ctx.workprec(53):
        cells = [(0.0, log_radius, k / 8, (k + 1) / 8) for k in range(8)]
        largest, budget = 0.0, 600
        while cells:
            s0, s1, t0, t1 = cells.pop()
            budget -= 1
            if budget < 0:
                return None
            s = flint.arb((s0 + s1) / 2, (s1 - s0) / 2 * (1 + 1e-12) + 1e-300)
            angle = flint.arb((t0 + t1) / 2, (t1 - t0) / 2 * (1 + 1e-12)) * flint.arb.pi()
            z = flint.acb(s.cosh() * angle.cos(), s.sinh() * angle.sin())
            value = ball(middle + half * z)
            size = float(value.abs_upper()) if value.is_finite() else math.inf
            if size <= 100.0 * max(largest, _centre(ball, middle + half * z)) or (
                math.isfinite(size) and t1 - t0 < 1e-3
            ):
                largest = max(largest, size)
            elif t1 - t0 < 1e-4:
                return None
            else:
                s_mid, t_mid = (s0 + s1) / 2, (t0 + t1) / 2
                wide_s = (s1 - s0) > 2.0 * (t1 - t0)
                if wide_s:
                    cells += [(s0, s_mid, t0, t1), (s_mid, s1, t0, t1)]
                else:
                    cells += [(s0, s1, t0, t_mid), (s0, s1, t_mid, t1)]
        return largest


def _centre(ball: Ball, z: Any) -> float:
    """|f| at the middle of a box, at least 1; infinite results count as 1."""
    import flint

    value = ball(flint.acb(z.real.mid(), z.imag.mid()))
    return max(float(value.abs_upper()), 1.0) if value.is_finite() else 1.0


def recheck(
    poly: Polynomial, target: str | Callable[[Any], Any] | Target, ball: Ball | None = None
) -> bool:
    """Whether the polynomial's certificate holds: computes the bound again and compares.

    ``target`` and ``ball`` are as for ``approx.fit``. True if ``poly.certified`` and ``max_error``
    is at least the bound, rounding aside.
    """
    from approx.targets import find

    bound = certify(poly, find(target, ball))
    return bool(poly.certified and bound is not None and poly.max_error >= bound * (1 - 1e-12))
