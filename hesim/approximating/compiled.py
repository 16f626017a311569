"""A function in the form in which its places are known, for each structure of arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jax.core import Tracer

from hesim.approximating.places.search import Found, found_in
from hesim.approximating.rewritings.masks import masks_after_functions
from hesim.approximating.rewritings.observing import decided
from hesim.approximating.rewritings.rewriting import Decisions, rewritten
from hesim.errors import NotHomomorphicError
from hesim.tracing.flat import Flat, flattened

__all__ = ["Compiled"]


class Compiled:
    """A function to be made polynomial.

    Attributes:
      fn, name: it. encrypted: which arguments are encrypted.
      decisions: on its comparisons and maxima; made once, on calibration batches.
    """

    def __init__(self, fn: Callable[..., Any], name: str, encrypted: Any):
        self.fn, self.name, self.encrypted = fn, name, encrypted
        self.decisions = Decisions({}, {})
        self._flats: dict[Any, Flat] = {}
        self._found: dict[Any, Found] = {}

    def decide(self, batches: Sequence[tuple[Any, ...]], margin: float | None) -> None:
        """Looks at what calibration batches tell of comparisons and maxima.

        Raises:
          TraceError: as `hesim.trace`.
        """
        groups: dict[Any, list[Any]] = {}
        for args in batches:
            groups.setdefault(self._key(args), []).append(args)
        made = [
            decided(self.flat(group[0]), [self.leaves(args) for args in group], margin)
            for group in groups.values()
        ]
        first, *rest = made
        agreed = {p: n for p, n in first.chosen.items() if all(d.chosen.get(p) == n for d in rest)}
        shifts = {p: s for p, s in first.shifts.items() if all(p in d.shifts for d in rest)}
        masks = frozenset().union(*(d.masks for d in made))
        self.decisions = Decisions(shifts, agreed, masks)

    def flat(self, args: Sequence[Any]) -> Flat:
        """The function as it is, for arguments of this structure."""
        key = self._key(args)
        if key in self._flats:
            return self._flats[key]
        flat = flattened(self.fn, args, self.encrypted, self.name, both_ways=True)
        if not any(isinstance(c, Tracer) for c in flat.closed.consts):
            self._flats[key] = flat
        return flat

    def found(self, args: Sequence[Any]) -> Found:
        """The function with its places, for arguments of this structure.

        Raises:
          NotHomomorphicError: what no polynomial can replace. TraceError: as `hesim.trace`.
        """
        key = self._key(args)
        if key in self._found:
            return self._found[key]
        flat = self.flat(args)
        found = found_in(masks_after_functions(rewritten(flat, self.decisions)))
        if found.obstacles:
            raise NotHomomorphicError.of(found.obstacles)
        if key in self._flats:
            self._found[key] = found
        return found

    def leaves(self, args: Sequence[Any]) -> list[Any]:
        """The leaves of arguments, as JAX values."""
        return [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in jax.tree.leaves(args)]

    def _key(self, args: Sequence[Any]) -> Any:
        leaves, tree = tree_util.tree_flatten(tuple(args))
        shapes = tuple((np.shape(x), str(jnp.result_type(x))) for x in leaves)
        return tree, shapes, jax.config.read("jax_enable_x64")
