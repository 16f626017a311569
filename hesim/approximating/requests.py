"""What a caller asks of `hesim.approximate`: batches, encrypted arguments, overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import approx
from hesim.approximating.places.search import Place
from hesim.errors import ArgumentError

__all__ = ["Asked", "Override", "arguments", "encrypted_arguments", "override_of"]

_KNOBS = ("degree", "depth", "tol", "domain", "margin")
Override = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """How approximations are chosen.

    Attributes:
      tol, degree, levels: one of them, as of `hesim.approximate`.
      margin: part of a range's width, or None.
      overrides: by name, line or number.
    """

    tol: float | None
    degree: int | None
    levels: int | None
    margin: float | None
    overrides: Mapping[str | int, Any]

    def __post_init__(self) -> None:
        given = [n for n in ("tol", "degree", "levels") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ArgumentError(
                f"approximate takes one of tol=, degree= and levels=, not {' and '.join(given)}: "
                "the others follow."
            )
        if self.tol is not None and not (np.isfinite(self.tol) and self.tol > 0):
            raise ArgumentError(f"tol={self.tol!r} is no error: give a positive number.")
        for name in ("degree", "levels"):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if value is not None and (not whole or value < 1):
                raise ArgumentError(f"{name}={value!r} is not a whole number from 1.")
        if self.margin is not None and not (np.isfinite(self.margin) and self.margin >= 0):
            raise ArgumentError(f"margin={self.margin!r} is not a part of a width: 0 or more.")
        for name, value in self.overrides.items():
            _check_override(name, value)


def _check_override(name: str | int, value: Any) -> None:
    if isinstance(value, (approx.Polynomial, approx.Composite)):
        return
    if not isinstance(value, Mapping):
        raise ArgumentError(
            f"overrides[{name!r}] is a {type(value).__name__}: give an approx object, or a "
            f"dictionary of {', '.join(_KNOBS)}."
        )
    strange = [knob for knob in value if knob not in _KNOBS]
    if strange:
        raise ArgumentError(
            f"overrides[{name!r}] has {', '.join(map(repr, strange))}; use {', '.join(_KNOBS)}."
        )
    chosen = [k for k in ("degree", "depth", "tol") if k in value]
    if len(chosen) > 1:
        raise ArgumentError(f"overrides[{name!r}] gives {' and '.join(chosen)}: give one of them.")


def arguments(batches: Any) -> list[tuple[Any, ...]]:
    """The arguments of each batch.

    Args:
      batches: of tuples of arguments, or of single arguments; one array is one batch.

    Raises:
      ArgumentError: there is none, or they differ in how many arguments they have.
    """
    if isinstance(batches, (np.ndarray, jax.Array)):
        batches = [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, Mapping)):
        raise ArgumentError(
            f"batches is a {type(batches).__name__}: give a list of arrays, or of tuples of "
            "arguments."
        )
    found = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not found:
        raise ArgumentError("batches is empty: give at least one batch to take ranges from.")
    if len({len(batch) for batch in found}) > 1:
        raise ArgumentError(
            "batches have different numbers of arguments: a tuple is the arguments of one call."
        )
    return found


def encrypted_arguments(encrypted: Any, args: Sequence[Any]) -> Any:
    """Which arguments are encrypted, as `hesim.trace` takes it: by default all real numbers. The
    integers beside them, as the count in an optimizer's state, stay public.
    """
    if encrypted is not None:
        return encrypted
    flags = tuple(jax.tree.map(_is_real, arg) for arg in args)
    of_each = [jax.tree.leaves(flag) for flag in flags]
    if not any(map(any, of_each)):
        raise ArgumentError(
            "no argument of a batch holds real numbers: say which are encrypted, as (0,)."
        )
    if any(any(own) and not all(own) for own in of_each):
        return flags
    return tuple(k for k, own in enumerate(of_each) if own and all(own))


def _is_real(leaf: Any) -> bool:
    return bool(jnp.issubdtype(getattr(leaf, "dtype", np.asarray(leaf).dtype), jnp.floating))


def override_of(
    overrides: Mapping[str | int, Any], place: Place, number: int
) -> tuple[str | int, Any] | None:
    """The (name, value) that is about a place: by its number, its line or its name."""
    if number in overrides:
        return number, overrides[number]
    brief = "" if place.source is None else place.source.brief
    lines = {brief, brief.rsplit("/", 1)[-1]}
    if place.source is not None:
        lines.add(f"{place.source.file.rsplit('/', 1)[-1]}:{place.source.line}")
    for name, value in overrides.items():
        if name in lines:
            return name, value
    return (place.name, overrides[place.name]) if place.name in overrides else None
