"""approx.report: what an approximation does to data, inside and outside its domain, in words."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from approx.errors import ApproxError
from approx.noise import amplification
from approx.planning import PLANNINGS
from approx.polynomial import Polynomial
from approx.targets import NAMED, Target, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from approx.composites.graph import Composite

MARGINS = (0.01, 0.05, 0.10, 0.25)
_TARGET_OF = {"exp_squaring": "exp"}  # composites named otherwise than their target


@dataclass(frozen=True)
class Report:
    """Figures about one approximation on one sample; ``str`` says them in words.

    Attributes:
      approximation: what is reported on.
      samples: how many there were (0: none were given).
      outside: share of the samples outside the domain, P(x not in domain).
      furthest: the sample furthest outside, by the width of the hull; 0 if none is.
      rms_inside, worst_inside: error of the samples inside.
      worst_outside: largest error of a sample outside, infinite where it overflows; 0 if none is.
      growth: (margin, sup |p| within that share of the width outside the domain).
      blow_up: smallest margin where |p| exceeds twice its largest value inside; None below 25 %.
      data: float64 (samples,), the samples themselves.
      target: the function that is approximated.
      magnification: of the rounding of a rescale by the evaluation plan, over the domain.
      alternatives: (plan, levels, products, magnification) of each other plan of a polynomial that
        costs differently (see ``Polynomial.with_plan``); of a composite, none.

    Examples:
      >>> import approx
      >>> print(str(approx.report(approx.fit("exp", (-1, 1), degree=7))).splitlines()[0])
      exp on [-1, 1]: 3 levels, 5 products of two ciphertexts.
    """

    approximation: Polynomial | Composite
    samples: int
    outside: float
    furthest: float
    rms_inside: float
    worst_inside: float
    worst_outside: float
    growth: tuple[tuple[float, float], ...]
    blow_up: float | None
    data: np.ndarray
    target: Target
    magnification: float
    alternatives: tuple[tuple[str, int, int, float], ...]

    def _repr_html_(self) -> str:
        first, *rest = str(self).splitlines()
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in rest)
        return f"<b>{html.escape(first)}</b>{lines}"

    def __str__(self) -> str:
        p = self.approximation
        kind = "at most" if p.certified else "about (estimated)"
        spans = " and ".join(f"[{a:g}, {b:g}]" for a, b in p.intervals)
        lines = [
            f"{p.name} on {spans}: {p.depth} levels, {_products(p)} products of two ciphertexts.",
            f"Inside the domain the error is {kind} {p.max_error:.2e}.",
            f"The rounding of a rescale comes out {self.magnification:.3g} times as large.",
            *(
                f'With plan "{plan}" it is {depth} levels, {products} products and '
                f"{magnified:.3g} times."
                for plan, depth, products, magnified in self.alternatives
            ),
            "Outside, |p| reaches "
            + ", ".join(f"{size:.3g} within {margin:.0%}" for margin, size in self.growth)
            + " of the width.",
        ]
        if self.blow_up is None:
            lines.append("It stays below twice its largest value up to 25 % outside.")
        else:
            lines.append(
                f"It exceeds twice its largest value at {self.blow_up:.2%} of the width outside."
            )
        if self.samples:
            lines.append(
                f"Of {self.samples} samples {self.outside:.3%} lie outside"
                + (f", the furthest by {self.furthest:.1%} of the width." if self.outside else ".")
            )
            lines.append(
                f"Samples inside err by {self.rms_inside:.2e} (root mean square), "
                f"{self.worst_inside:.2e} at worst."
            )
            if self.outside:
                lines.append(
                    f"Samples outside err by up to {self.worst_outside:.2e}: widen the domain, "
                    "or keep the values inside it by a range penalty."
                )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Error of the samples over x, their density below, the domain shaded."""
        from approx.choice.plots import damage

        return damage(self)


def report(
    approximation: Polynomial | Composite, samples: Any = None, target: Any = None
) -> Report:
    """Describes an approximation and what it does to data.

    Args:
      approximation: a polynomial or a composite.
      samples: activations of any shape; None (or none) for the approximation alone.
      target: a name or callable; by default that which the approximation is named after.

    Returns:
      A Report: print it, read its figures, or ``.plot()`` it.

    Raises:
      ApproxError: samples that are NaN, or a target that the name does not tell.

    Examples:
      >>> import approx, numpy as np
      >>> told = approx.report(approx.fit("exp", (-1, 1), degree=7), np.array([0.0, 0.5, 1.2]))
      >>> told.samples, round(told.outside, 3), told.worst_inside < 1e-6
      (3, 0.333, True)
    """
    function = _target(approximation, target)
    x = np.zeros(0) if samples is None else np.asarray(samples, dtype=np.float64).ravel()
    if not np.all(np.isfinite(x)):
        raise ApproxError("Some samples are NaN or infinite; leave those out.")
    inside = np.zeros(len(x), dtype=bool)
    for a, b in approximation.intervals:
        inside |= (x >= a) & (x <= b)
    with np.errstate(all="ignore"):
        errors = np.abs(approximation(x) - function(x))
    errors = np.where(np.isfinite(function(x)), np.where(np.isnan(errors), np.inf, errors), 0.0)
    low, high = approximation.hull
    beyond = np.maximum(np.maximum(low - x, x - high), 0.0) / (high - low)
    within, out = errors[inside], errors[~inside]
    return Report(
        approximation,
        len(x),
        float(np.mean(~inside)) if len(x) else 0.0,
        float(np.max(beyond, initial=0.0)),
        float(np.sqrt(np.mean(within**2))) if len(within) else 0.0,
        float(np.max(within, initial=0.0)),
        float(np.max(out, initial=0.0)),
        tuple((m, approximation.growth(m)) for m in MARGINS),
        exceeds(approximation, 2.0 * approximation.growth(0.0)),
        x,
        function,
        amplification(approximation),
        _alternatives(approximation),
    )


def _alternatives(
    approximation: Polynomial | Composite,
) -> tuple[tuple[str, int, int, float], ...]:
    if not isinstance(approximation, Polynomial):
        return ()
    known, found = {approximation.plan}, []
    for planning in PLANNINGS:
        other = approximation.with_plan(planning)
        if other.plan not in known:
            known.add(other.plan)
            magnified = amplification(other)
            found.append((planning, other.depth, other.plan.nonscalar_mults, magnified))
    return tuple(found)


def exceeds(approximation: Polynomial | Composite, bound: float) -> float | None:
    """The smallest margin, by the width of the hull, at which |p| exceeds ``bound``.

    None if it does not within 25 %; found to a tenth of a per cent of itself.
    """
    if approximation.growth(MARGINS[-1]) <= bound:
        return None
    low, high = 0.0, MARGINS[-1]
    for _ in range(24):
        middle = 0.5 * (low + high)
        if approximation.growth(middle) > bound:
            high = middle
        else:
            low = middle
        if high - low < 1e-3 * high:
            break
    return high


def _products(approximation: Polynomial | Composite) -> int:
    if isinstance(approximation, Polynomial):
        return approximation.plan.nonscalar_mults
    return approximation.products


def _target(approximation: Polynomial | Composite, target: Any) -> Target:
    if target is not None:
        return find(target)
    name = _TARGET_OF.get(approximation.name, approximation.name)
    if name not in NAMED:
        raise ApproxError(
            f"The target of {approximation.name!r} is not known by name; pass target=."
        )
    return NAMED[name]
