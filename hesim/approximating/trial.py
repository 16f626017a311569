"""Runs of a function on calibration batches, with errors of given sizes and shapes in its places.

One compiled function serves them all: the exact run, those that show how much each place matters,
and those with the errors of chosen polynomials, which are read from tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hesim.approximating.evaluate import exactly
from hesim.approximating.places.search import Found, Key, Place

__all__ = ["Met", "Trial", "distance", "largest"]

POINTS = 4096
"""Entries of a table of errors over a domain."""

_SAMPLE = 1024
"""Values of a place that are kept from each batch."""


@dataclass
class Met:
    """What the values at one place were.

    Attributes:
      low, high: smallest and largest. outside: how many lay outside of the domain. count: of all.
      samples: some of them.
    """

    low: float = np.inf
    high: float = -np.inf
    outside: float = 0.0
    count: float = 0.0
    samples: tuple[np.ndarray, ...] = ()

    def add(self, stats: Any) -> None:
        """Takes in what a run returned of the place."""
        low, high, outside, count, sample = stats
        self.low = float(np.minimum(self.low, low))  # NaN stays NaN
        self.high = float(np.maximum(self.high, high))
        self.outside += float(outside)
        self.count += float(count)
        self.samples = (*self.samples, np.asarray(sample, np.float64))


def statistics(x: Any, low: Any, high: Any) -> tuple[Any, ...]:
    """Of the values at a place, to be taken in by `Met.add`."""
    flat = jnp.ravel(x)
    step = max(1, flat.size // _SAMPLE)
    outside = jnp.sum((flat < low) | (flat > high))
    return jnp.min(flat), jnp.max(flat), outside, flat.size, flat[::step][:_SAMPLE]


class Trial:
    """Runs on one structure of arguments.

    Attributes:
      keys: of the places, in the order in which tables come.
    """

    def __init__(self, found: Found):
        self.found = found
        self.keys: tuple[Key, ...] = tuple(dict.fromkeys(p.key for p in found.places.values()))
        self._number = {key: k for k, key in enumerate(self.keys)}
        self._run = jax.jit(self._traced)

    def __call__(
        self,
        leaves: Sequence[Any],
        domains: Mapping[Key, tuple[float, float]] | None = None,
        tables: Mapping[Key, np.ndarray] | None = None,
        met: dict[Key, Met] | None = None,
    ) -> list[np.ndarray]:
        """The results for argument leaves.

        Args:
          domains: over which the tables go. tables: errors; none where there is none.
          met: takes in what was met at each place.
        """
        count = len(self.keys)
        lows, highs = np.full(count, -np.inf), np.full(count, np.inf)
        errors = np.zeros((count, POINTS))
        for k, key in enumerate(self.keys):
            if domains is not None:
                lows[k], highs[k] = domains[key]
            if tables is not None and key in tables:
                errors[k] = tables[key]
        given = [np.asarray(a, np.float32) for a in (lows, highs, errors)]
        out, stats = self._run(list(leaves), *given)
        if met is not None:
            for key, rows in stats.items():
                for row in zip(*rows, strict=True):
                    met.setdefault(self.keys[key], Met()).add(row)
        return [np.asarray(x) for x in out]

    def _traced(self, leaves: Any, lows: Any, highs: Any, errors: Any) -> Any:
        stats: dict[int, list[Any]] = {}
        places = self.found.places

        def hook(eqn: Any, read: Any, out: list[Any]) -> list[Any]:
            place = places.get(eqn.outvars[0]) if len(eqn.outvars) == 1 else None
            if place is None:
                return out
            k = self._number[place.key]
            root = read(place.root)
            stats.setdefault(k, []).append(statistics(root, lows[k], highs[k]))
            return [out[0] + _looked_up(root, lows[k], highs[k], errors[k])]

        out = exactly(self.found.flat, leaves, hook)
        return out, {k: list(zip(*rows, strict=True)) for k, rows in stats.items()}


def _looked_up(x: Any, low: Any, high: Any, table: Any) -> Any:
    """A table over [low, high] at x, between its entries by straight lines."""
    width = jnp.where(jnp.isfinite(high - low), high - low, 1.0)
    at = jnp.clip((x - jnp.where(jnp.isfinite(low), low, 0.0)) / width, 0.0, 1.0) * (POINTS - 1)
    left = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, POINTS - 2)
    part = at - left
    return ((1.0 - part) * table[left] + part * table[left + 1]).astype(x.dtype)


def table_of(domain: tuple[float, float], error: Any) -> np.ndarray:
    """A function of float64 arrays over a domain, as a table."""
    values = np.asarray(error(np.linspace(*domain, POINTS)), np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def largest(values: Sequence[Any]) -> float:
    """The largest absolute value among floats."""
    return max((float(np.max(np.abs(a), initial=0.0)) for a in _floats(values)), default=0.0)


def distance(values: Sequence[Any], others: Sequence[Any]) -> float:
    """The largest difference of results."""
    pairs = zip(_floats(values), _floats(others), strict=True)
    gaps = [float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs]
    return max((np.inf if np.isnan(g) else g for g in gaps), default=0.0)


def _floats(values: Sequence[Any]) -> list[np.ndarray]:
    return [
        np.asarray(x, np.float64)
        for x in values
        if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)
    ]


def places_of(found: Found) -> dict[Key, Place]:
    """One place for each key."""
    return {place.key: place for place in found.places.values()}
