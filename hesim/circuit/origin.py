"""Digests of a Program, the same in every trace of the same function, in whatever process.

A Circuit that was loaded carries no Program. By these it knows its own again.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hesim.program import Equation, Literal, Program, Var

__all__ = ["PARTS", "digests"]

PARTS = {
    "arguments": "arguments or result of other shapes, dtypes or structure, or encrypted otherwise",
    "operations": "operations",
    "constants": "values that the function closes over",
}
"""What there is a digest of, and how to name it to whoever gives another Program."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digests(program: Program) -> dict[str, str]:
    """A digest of each of PARTS. Where in the source a Program comes from is none of them."""
    tree = (str(program.in_tree), str(program.out_tree), list(map(_value, program.outputs)))
    constants = [(v.id, _data(x)) for v, x in program.consts]
    parts = {
        "arguments": [*map(_var, program.inputs), *tree],
        "operations": [_equation(e) for e in program.equations],
        "constants": constants,
    }
    return {part: hashlib.sha256(_said(held).encode()).hexdigest() for part, held in parts.items()}


def _data(x: Any) -> np.ndarray:
    """An array as NumPy has it; of random keys, their data."""
    keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keys else x)


def _equation(e: Equation) -> tuple[Any, ...]:
    return (e.name, [_value(v) for v in e.inputs], [_var(v) for v in e.outputs], e.params)


def _var(v: Var) -> tuple[Any, ...]:
    return (v.id, v.shape, str(v.dtype), v.encrypted)


def _value(v: Var | Literal) -> Any:
    return v.id if isinstance(v, Var) else v.value


def _said(value: Any) -> str:
    """A text that is the same wherever the value is, and another for another value."""
    if value is None or isinstance(value, str | bytes | bool | int):
        return repr(value)
    if isinstance(value, np.bool | np.number):
        return repr(value.item())
    if isinstance(value, float | complex):
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_said(k)}:{_said(v)}" for k, v in value.items())) + "}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{type(value).__qualname__}{_said(held)}"
    if isinstance(value, Sequence):
        return f"({','.join(map(_said, value))})"
    if isinstance(value, frozenset | set):
        return "<" + ",".join(sorted(map(_said, value))) + ">"
    if hasattr(value, "__array__") and hasattr(value, "shape"):
        array = np.ascontiguousarray(value)
        return f"{array.dtype.str}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__qualname__} {_ADDRESS.sub('', repr(value))}"
