"""A function with polynomials in its places, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jaxtyping import PyTree

from hesim.approximating.choosing import Results
from hesim.approximating.compiled import Compiled
from hesim.approximating.evaluate import exactly, replaced
from hesim.approximating.places.search import Found, Key, Place
from hesim.approximating.trial import Met, distance, largest, statistics
from hesim.display import html_block, html_table, shown_as_text, text_table
from hesim.errors import TraceError
from hesim.source import Source
from hesim.tracing.flat import Flat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Approximated", "Check", "Site"]


@dataclass(frozen=True, eq=False)
class Site:
    """One place of a function that an approximation stands in.

    Attributes:
      number: in the order in which they are computed.
      operation: name of the function that is approximated.
      source: the caller's line; None if JAX kept none.
      met: range of its values on the calibration batches.
      approximation: the `approx` object.
      domain: (low, high) on which it was fitted.
      error: bound on its error on the domain. certified: whether the bound is proven.
      gain: error at the output by an error here, measured; 0 if it was not.
      outside: part of the values that lay outside of the domain.
    """

    number: int
    operation: str
    source: Source | None
    met: tuple[float, float]
    approximation: Any
    domain: tuple[float, float]
    error: float
    certified: bool
    gain: float
    outside: float
    _place: Place
    _samples: np.ndarray

    @property
    def degree(self) -> int:
        """Degree as one polynomial."""
        return self.approximation.degree

    @property
    def levels(self) -> int:
        """Levels that it takes."""
        return self.approximation.depth

    @classmethod
    def of(cls, number: int, key: Key, results: Results) -> Site:
        """The site of one key."""
        place, met = results.places[key], results.met[key]
        one = results.approximations[key]
        domain = getattr(one, "hull", None) or one.domain
        return cls(
            *(number, place.name, place.source, (met.low, met.high), one, tuple(domain)),
            *(float(one.max_error), bool(one.certified), results.gains.get(key, 0.0)),
            *(met.outside / max(met.count, 1.0), place, np.concatenate(met.samples)),
        )


@dataclass(frozen=True, eq=False)
class Check:
    """A function with polynomials against the function itself, on one batch.

    Attributes:
      error: largest difference at the output.
      met: range of the values at each site. outside: part of them outside of its domain.
      sites: of the function.
      assumed: of the difference, what comes of a clamp or a comparison that has acted here, and
        never did on the calibration batches; 0 if none has.
    """

    error: float
    met: tuple[tuple[float, float], ...]
    outside: tuple[float, ...]
    sites: tuple[Site, ...]
    assumed: float = 0.0

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [("site", "operation", "source", "met", "domain", "outside")]
        for site, met, outside in zip(self.sites, self.met, self.outside, strict=True):
            place = "" if site.source is None else site.source.brief
            row = (str(site.number), site.operation, place, _span(met), _span(site.domain))
            rows.append((*row, _share(outside)))
        return rows

    def _title(self) -> str:
        text = f"largest error at the output: {self.error:.3g}"
        if not self.assumed:
            return text
        return (
            f"{text}, {self.assumed:.3g} by a clamp or a comparison that acted here, and never on "
            "the calibration batches: calibrate on this batch, too"
        )

    def __str__(self) -> str:
        return f"{self._title()}\n{text_table(self._rows())}"

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        return html_block(self._title(), inner=html_table(self._rows()))


class Approximated:
    """A function made polynomial by `hesim.approximate`; called like the function itself.

    Attributes:
      sites: where approximations stand, in the order in which they are computed.
      output_error: largest difference from the exact function at the output, on the calibration
        batches, in the unit of the result. largest: absolute result of the exact function there.
      tol: error at the output that was asked for; None if degrees or levels were.
      encrypted: which arguments are encrypted, as `hesim.trace` takes it.
      exact: the function itself.
      batches: how many it was calibrated on.

    It is made by `hesim.approximate`, of what was compiled, the approximations by place and the
    results of the choice.

    Examples:
      >>> import hesim, jax.numpy as jnp, numpy as np
      >>> x = np.linspace(-2, 2, 32)
      >>> smooth = hesim.approximate(lambda x: jnp.tanh(2 * x), [x], tol=1e-3)
      >>> smooth.output_error <= 1e-3, smooth.sites[0].operation, len(smooth.sites)
      (True, 'tanh', 1)
      >>> smooth.check(np.linspace(-8, 8, 32)).outside[0] > 0.3
      True
    """

    def __init__(
        self,
        compiled: Compiled,
        approximations: Mapping[Key, Any],
        sites: tuple[Site, ...],
        results: Results,
        batches: int,
    ):
        self.__name__ = compiled.name
        self.exact: Callable[..., Any] = compiled.fn
        self.encrypted = compiled.encrypted
        self.sites = sites
        self.output_error, self.largest = results.output_error, results.largest
        self.tol, self.batches = results.tol, batches
        self._compiled = compiled
        self._approximations = dict(approximations)
        self._checks: dict[int, Any] = {}

    def __call__(self, *args: PyTree) -> PyTree:
        """The result of the function with polynomials in its places.

        Raises:
          TraceError: arguments of a structure in which the function has other places.
        """
        found = self._found(args)
        out = replaced(found, self._compiled.leaves(args), self._given)
        values = [jnp.asarray(x) for x in out]
        return tree_util.tree_unflatten(found.flat.out_tree, values)

    def _given(self, place: Place, root: Any) -> Any:
        return self._approximations[place.key](root)

    def _found(self, args: Sequence[Any]) -> Found:
        found = self._compiled.found(args)
        for place in found.places.values():
            if place.key not in self._approximations:
                raise TraceError(
                    f"{self.__name__} computes {place.name} at {place.source} for arguments of "
                    "this structure, which it did not on the calibration batches: approximate it "
                    "on batches of this structure too."
                )
        return found

    def check(self, *args: PyTree) -> Check:
        """Compares it with the exact function on a batch that it was not calibrated on.

        Args:
          args: as of the function itself, or one tuple of them.

        Returns:
          The largest difference at the output; range and share outside of the domain by site.
        """
        if len(args) == 1 and isinstance(args[0], tuple):
            args = args[0]
        found = self._found(args)
        if id(found) not in self._checks:
            flat = self._compiled.flat(args)
            self._checks[id(found)] = jax.jit(lambda leaves: self._compare(found, flat, leaves))
        exact, simpler, made, stats = self._checks[id(found)](self._compiled.leaves(args))
        assumed = distance(simpler, exact)
        met = {key: Met() for key in self._approximations}
        keys = list(self._approximations)
        for k, rows in stats.items():
            for row in rows:
                met[keys[k]].add(row)
        return Check(
            distance(made, exact),
            tuple((m.low, m.high) for m in met.values()),
            tuple(m.outside / max(m.count, 1.0) for m in met.values()),
            self.sites,
            assumed if assumed > _ROUNDED * largest(exact) else 0.0,
        )

    def _compare(self, found: Found, flat: Flat, leaves: Any) -> Any:
        stats: dict[int, list[Any]] = {}
        number = {key: k for k, key in enumerate(self._approximations)}

        def given(place: Place, root: Any) -> Any:
            k = number[place.key]
            stats.setdefault(k, []).append(statistics(root, *self.sites[k].domain))
            return self._given(place, root)

        made = replaced(found, leaves, given)
        return exactly(flat, leaves), exactly(found.flat, leaves), made, stats

    # --- what it looks like -----------------------------------------------------------------------

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [_HEAD]
        for site in self.sites:
            place = "" if site.source is None else site.source.brief
            row = (str(site.number), site.operation, place, _span(site.met), _span(site.domain))
            error = f"{site.error:.1e}{'' if site.certified or not site.error else ' (estimate)'}"
            sizes = str(site.degree), str(site.levels), error, f"{site.gain:.2g}"
            rows.append((*row, *sizes, _share(site.outside)))
        return rows

    def _title(self) -> str:
        count = len(self.sites)
        counted = f"{count or 'no'} place{'' if count == 1 else 's'}"
        relative = self.output_error / self.largest if self.largest else 0.0
        return (
            f"{self.__name__}: {counted} made polynomial; error at the output "
            f"{self.output_error:.2g} ({relative:.1e} of the largest result), on "
            f"{self.batches} batch{'' if self.batches == 1 else 'es'}"
        )

    def __repr__(self) -> str:
        return f"Approximated({self.__name__}, {len(self.sites)} sites)"

    def __str__(self) -> str:
        return f"{self._title()}\n{text_table(self._rows())}"

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        return html_block(self._title(), inner=html_table(self._rows()))

    def plot(self) -> Figure:
        """Each site: function and approximation above, their difference below, with the values that
        were met; a matplotlib Figure.
        """
        from hesim.approximating.plots import figure

        return figure([(site, site._place.function, site._samples) for site in self.sites])


_ROUNDED = 1e-4
"""Of the largest result: what another order of operations may differ by in float32."""

_HEAD: tuple[str, ...] = (
    *("site", "operation", "source", "met", "domain", "degree", "levels", "error", "gain"),
    "outside",
)


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}"


def _share(part: float) -> str:
    return f"{100 * part:.3g} %" if part else "0"
