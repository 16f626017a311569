"""approx.choose: the Pareto front of error against levels and products for a target and its data.

The error that counts is what the encrypted evaluation does to the data: the approximation's error
on the samples inside the range, the damage of those outside, and the rounding of CKKS, magnified
by the form of evaluation (``approx.noise``). A narrow range fits better and loses more samples; a
high degree fits better and costs levels; squaring and composites reach wide ranges and magnify
noise; a quiet plan magnifies less and costs products. So they are searched together.

What a candidate costs is known before it is fitted and its error before its noise is measured, so
one that is beaten already is left as early as that; bounds are proven when they are asked for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from approx import certify
from approx.choice.candidates import candidates, ranges
from approx.composites.graph import Composite
from approx.errors import ApproxError, ToleranceError
from approx.noise import amplification
from approx.polynomial import Polynomial
from approx.targets import Target, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORTH = 0.98  # of an error: what does not improve it by that much is no better


@dataclass(frozen=True)
class Choice:
    """One way to approximate, and what it costs and does.

    Attributes:
      draft: the approximation with an estimate of its error.
      target: what it approximates.
      method: "minimax", "chebyshev", "least_squares", or the kind of composite.
      error: root mean square on all samples, CKKS rounding included.
      damage: largest error of a sample, without the rounding (infinite where it overflows).
      magnification: of CKKS rounding, by the form of evaluation, on the samples inside.
      outside: share of the samples outside the range.

    Examples:
      >>> import approx, numpy as np
      >>> best = approx.choose("tanh", np.linspace(-2, 2, 200), max_levels=4).best
      >>> best.levels, best.outside, best.approximation.name
      (4, 0.0, 'tanh')
    """

    draft: Polynomial | Composite
    target: Target
    method: str
    error: float
    damage: float
    magnification: float
    outside: float

    @cached_property
    def approximation(self) -> Polynomial | Composite:
        """Ready to use; its error is proven, where it can be, when this is first read."""
        if isinstance(self.draft, Polynomial):
            bound = certify.certify(self.draft, self.target)
            if bound is not None:
                return dataclasses.replace(self.draft, max_error=bound, certified=True)
        return self.draft

    @property
    def levels(self) -> int:
        """Levels consumed."""
        return self.draft.depth

    @property
    def products(self) -> int:
        """Products of two ciphertexts."""
        return _products(self.draft)

    @property
    def plan(self) -> str:
        """How a polynomial is evaluated: "fewest", "quiet" or "deeper"; "graph" for composites."""
        return self.draft.planning if isinstance(self.draft, Polynomial) else "graph"

    @property
    def form(self) -> str:
        """What it is, as the table calls it: a method and degree, or a composite and its knobs."""
        if isinstance(self.draft, Polynomial):
            return f"{self.method.replace('_', ' ')}, degree {self.draft.degree}"
        knobs = []
        for name, value in self.draft.knobs:
            if name in ("degrees", "degree", "squarings", "steps"):
                shown = "+".join(map(str, value)) if isinstance(value, tuple) else value
                knobs.append(f"{name} {shown}")
        return f"{self.method}, {', '.join(knobs)}"

    def _cells(self) -> tuple[str, ...]:
        spans = " ".join(f"[{a:.3g}, {b:.3g}]" for a, b in self.draft.intervals)
        return (
            str(self.levels),
            str(self.products),
            f"{self.error:.1e}",
            f"{self.damage:.1e}",
            f"{self.magnification:.3g}",
            spans,
            f"{self.outside:.2%}",
            self.plan,
            self.form,
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {cell}" for name, cell in zip(_HEADER, self._cells(), strict=True)
        )


_HEADER = (
    "levels",
    "products",
    "rms error",
    "worst",
    "noise x",
    "range",
    "outside",
    "plan",
    "form",
)


@dataclass(frozen=True)
class Front:
    """Pareto-optimal choices by levels, then products; ``str`` is a table, ``best`` the answer.

    Attributes:
      target: its name.
      choices: each better than all others in levels, products or error.
      best: the answer to the request, starred in the table.
      noise_bits: the rounding of one rescale is 2^-noise_bits, in bits.

    Examples:
      >>> import approx, numpy as np
      >>> front = approx.choose("tanh", np.linspace(-2, 2, 200), max_levels=4)
      >>> [choice.levels for choice in front.choices] == sorted(c.levels for c in front.choices)
      True
    """

    target: str
    choices: tuple[Choice, ...]
    best: Choice
    noise_bits: float = 30.0

    def __str__(self) -> str:
        rows = [_HEADER, *(c._cells() for c in self.choices)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(_HEADER))]
        marks = ["  ", *("* " if c is self.best else "  " for c in self.choices)]
        lines = [
            mark
            + "  ".join(
                cell.ljust(w) if k in (5, 7, 8) else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for mark, row in zip(marks, rows, strict=True)
        ]
        title = f"{self.target}: error on the samples, a rescale rounding by 2^-{self.noise_bits:g}"
        return "\n".join([title, *lines])

    def plot(self) -> Figure:
        """Error against levels, a mark a choice."""
        from approx.choice.plots import pareto

        return pareto(self)


def choose(
    target: str | Callable[[Any], Any],
    samples: Any,
    *,
    max_levels: int | None = None,
    max_error: float | None = None,
    noise_bits: float = 30.0,
) -> Front:
    """Searches range, degree, method, form and plan for a target and samples of its input.

    Args:
      target: a name or a callable, as for ``approx.fit``.
      samples: activations, of any shape.
      max_levels: of the best choice, and of the front.
      max_error: root mean square wanted; the best choice reaches it at the fewest levels, then
        products. Without it the best choice is the most accurate.
      noise_bits: the rounding of one rescale is 2^-noise_bits, some 10 bits below the scale.

    Returns:
      A Front; ``front.best.approximation`` is ready to use, ``print(front)`` a table.

    Raises:
      ApproxError: no samples, samples that are not finite or all alike, or a malformed request.
      ToleranceError: max_error is out of reach; the message says what is reached.

    Examples:
      >>> import approx, numpy as np
      >>> activations = np.random.default_rng(0).normal(size=400)
      >>> front = approx.choose("gelu", activations, max_levels=4, max_error=0.1)
      >>> front.best.levels <= 4, front.best.error <= 0.1
      (True, True)
    """
    known = find(target)
    x, wanted = _data(known, samples)
    limit = _limit(max_levels, max_error, noise_bits)
    search = _Search(known, x, wanted, limit, 2.0**-noise_bits)
    for k, domain in enumerate(ranges(known, x)):
        search.range(domain, k == 0)
    front = _front(search.tried)
    if not front:
        raise ToleranceError(
            f"Nothing approximates {known.name} within {limit} levels; allow more."
        )
    if max_error is None:
        best = min(front, key=lambda c: c.error)
    else:
        enough = [c for c in front if c.error <= max_error]
        if not enough:
            least = min(c.error for c in front)
            raise ToleranceError(
                f"max_error={max_error:g} is out of reach: {least:.2e} within {limit} levels at "
                f"{noise_bits:g} noise bits. Allow more levels, a larger scale, a narrower range."
            )
        best = enough[0]
    return Front(known.name, tuple(front), best, noise_bits)


def _data(target: Target, samples: Any) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(samples, dtype=np.float64).ravel()
    if len(x) == 0 or not np.all(np.isfinite(x)):
        raise ApproxError("choose needs at least one sample, and finite ones.")
    wanted = target(x)
    if not np.all(np.isfinite(wanted)):
        raise ApproxError(
            f"{target.name} is not finite on some samples, such as {x[~np.isfinite(wanted)][0]:g}; "
            "leave those out."
        )
    if np.ptp(x) <= 1e-9 * np.max(np.abs(x)):
        raise ApproxError(
            f"All samples are {x[0]:g}, which tells no range; pass samples that vary, or use "
            "approx.fit with a domain."
        )
    return x, wanted


def _limit(max_levels: int | None, max_error: float | None, noise_bits: float) -> int:
    if max_levels is None and max_error is None:
        raise ApproxError(
            "Ask for max_levels= or max_error=, as in choose('gelu', x, max_levels=6)."
        )
    if max_levels is not None and (max_levels != int(max_levels) or max_levels < 1):
        raise ApproxError(f"max_levels must be a whole number of at least 1, not {max_levels}.")
    if max_error is not None and not (math.isfinite(max_error) and max_error > 0.0):
        raise ApproxError(f"max_error must be finite and positive, not {max_error}.")
    if not math.isfinite(noise_bits):
        raise ApproxError(f"noise_bits must be finite, not {noise_bits}.")
    return 20 if max_levels is None else int(max_levels)


class _Search:
    """Measures candidates, and drops those that what is known already beats.

    Args:
      wanted: the target at x.
      limit: levels.
      rounding: of one rescale.
    """

    def __init__(
        self, target: Target, x: np.ndarray, wanted: np.ndarray, limit: int, rounding: float
    ) -> None:
        self.target, self.x, self.wanted = target, x, wanted
        self.limit, self.rounding = limit, rounding
        self.tried: list[Choice] = []

    def beaten(self, levels: int, products: int, error: float) -> bool:
        """Whether a choice that costs no more errs no more."""
        return any(
            c.error * _WORTH <= error and c.levels <= levels and c.products <= products
            for c in self.tried
        )

    def range(self, domain: tuple[tuple[float, float], ...], widest: bool) -> None:
        """Tries every candidate on one domain."""
        inside = np.zeros(len(self.x), dtype=bool)
        for a, b in domain:
            inside |= (self.x >= a) & (self.x <= b)
        lost = float(np.mean(~inside))
        data = self.x[inside]
        if len(data) == 0:
            return
        points = data[:: max(1, len(data) // 256)]
        found = candidates(self.target, domain, data, self.limit, self.rounding, widest)
        for method, made in found:
            with np.errstate(all="ignore"):
                errors = np.abs(made(self.x) - self.wanted)
                errors = np.where(np.isnan(errors), np.inf, errors)
                rms = math.sqrt(float(np.mean(errors * errors)))
            if not math.isfinite(rms):
                continue
            for form in _forms(made):
                levels, products = form.depth, _products(form)
                least = math.hypot(rms, self.rounding)
                if levels > self.limit or self.beaten(levels, products, least):
                    continue
                magnified = amplification(form, points)
                error = math.hypot(rms, magnified * self.rounding)
                if math.isfinite(error) and not self.beaten(levels, products, error):
                    worst = float(np.max(errors))
                    self.tried.append(
                        Choice(form, self.target, method, error, worst, magnified, lost)
                    )


def _forms(made: Polynomial | Composite) -> list[Polynomial | Composite]:
    """A polynomial under each plan that costs differently; a composite as it is."""
    if not isinstance(made, Polynomial):
        return [made]
    forms: dict[tuple[int, int], Polynomial | Composite] = {}
    for planning in ("fewest", "quiet", "deeper"):
        form = made.with_plan(planning)
        forms.setdefault((form.depth, _products(form)), form)
    return list(forms.values())


def _products(made: Polynomial | Composite) -> int:
    return made.plan.nonscalar_mults if isinstance(made, Polynomial) else made.products


def _front(tried: list[Choice]) -> list[Choice]:
    """Those that no other beats in levels, products and error."""
    front: list[Choice] = []
    for choice in sorted(tried, key=lambda c: (c.levels, c.products, c.error)):
        if all(choice.error < _WORTH * c.error for c in front if c.products <= choice.products):
            front.append(choice)
    return front
