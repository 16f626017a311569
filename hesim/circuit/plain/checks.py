"""The rules that every machine enforces before it computes: levels, scales, magnitudes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.circuit.plain.errors import BackendError, CircuitError, EncodeError, ValueRangeError
from hesim.params import CKKSParams, larger_capacity

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "SCALE_TOLERANCE",
    "check_range",
    "checked_values",
    "components_are",
    "fits_level",
    "product_fits",
    "same_level",
    "same_scale",
    "tile",
]

SCALE_TOLERANCE = 2.0**-40
"""Relative difference of two scales that floating point alone can cause."""


def same_level(ciphers: Sequence[Any]) -> int:
    """The common level. Raises CircuitError if there is none."""
    levels = {c.level for c in ciphers}
    if len(levels) != 1:
        raise CircuitError(
            f"operands are at different levels {sorted(levels)}; drop the higher ones"
        )
    return levels.pop()


def same_scale(first: float, second: float) -> None:
    """Raises CircuitError if two scales differ by more than floating-point dust."""
    if not abs(first / second - 1.0) <= SCALE_TOLERANCE:
        bits = math.log2(first / second)
        raise CircuitError(
            f"scales differ: 2^{math.log2(first):.6f} and 2^{math.log2(second):.6f} "
            f"({bits:+.2e} bits); multiply by a plaintext at the correcting scale"
        )


def components_are(cipher: Any, allowed: tuple[int, ...], doing: str) -> None:
    """Raises CircuitError if `cipher` has another number of components than `doing` takes."""
    if cipher.components not in allowed:
        raise CircuitError(
            f"{doing} takes {' or '.join(map(str, allowed))} components, not {cipher.components}; "
            f"relinearize first"
        )


def fits_level(params: CKKSParams, level: int, scale: float) -> None:
    """Raises CircuitError if `level` does not exist or a scale reaches its modulus."""
    if not 0 <= level <= params.levels:
        raise CircuitError(f"level {level} does not exist: there are levels 0 to {params.levels}")
    if not (math.isfinite(scale) and scale >= 1.0):
        raise CircuitError(f"scale {scale} is not a finite number of at least 1")
    if math.log2(scale) >= params.log_q(level):
        raise CircuitError(
            f"scale 2^{math.log2(scale):.1f} is out of bounds at level {level}, whose modulus has "
            f"{params.log_q(level):.1f} bits; refresh, or multiply at a higher level"
        )


def product_fits(params: CKKSParams, level: int, left: float, right: float) -> float:
    """The scale of a product. Raises CircuitError if it reaches the modulus at `level`."""
    fits_level(params, level, left * right)
    return left * right


def tile(
    values: Float[np.ndarray, " slots"], slots: int, total: int
) -> Float[np.ndarray, " total"]:
    """A vector of `slots` values repeated."""
    return np.tile(values, total // slots) if slots != total else values


def checked_values(
    params: CKKSParams,
    slots: int,
    values: Float[np.ndarray, " slots"] | float,
    level: int,
    scale: float,
) -> Float[np.ndarray, " slots"]:
    """`values` as float64[slots] or float64[], checked.

    A coefficient of the encoding is at most scale · mean|value|, so that product is held against
    half the modulus at `level`: what passes cannot wrap.

    Raises:
      EncodeError: NaN, infinity, wrong length, or values too large for the level.
    """
    fits_level(params, level, scale)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim and array.shape != (slots,):
        raise EncodeError(f"a vector of shape {array.shape} does not fill {slots} slots")
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise EncodeError(
            f"{bad} of {array.size} values are NaN or infinite; clean the input first"
        )
    _check_magnitude(params, array, level, scale, EncodeError)
    return array


def check_range(
    params: CKKSParams, values: Float[np.ndarray, " slots"], level: int, scale: float
) -> None:
    """Raises ValueRangeError if a ciphertext's `values` are NaN or may have wrapped."""
    if not np.all(np.isfinite(values)):
        error = ValueRangeError("a value is NaN or infinite")
        error.slots = tuple(np.flatnonzero(~np.isfinite(values)).tolist())
        raise error
    _check_magnitude(params, values, level, scale, ValueRangeError)


def _check_magnitude(
    params: CKKSParams, array: np.ndarray, level: int, scale: float, error: type[BackendError]
) -> None:
    mean = float(np.mean(np.abs(array))) if array.size else 0.0
    if mean > 0 and math.log2(mean) + math.log2(scale) >= params.log_q(level) - 1:
        limit = 2.0 ** (params.log_q(level) - 1 - math.log2(scale))
        bits = math.log2(mean) + math.log2(scale) - (params.log_q(level) - 1)
        found = error(
            f"values of mean magnitude {mean:.4g} are too large for level {level} at scale "
            f"2^{math.log2(scale):.1f}, which holds less than {limit:.4g}: "
            f"{larger_capacity(params, bits, level, scale)}"
        )
        found.slots = tuple(np.flatnonzero(np.abs(np.atleast_1d(array)) >= limit).tolist())
        raise found
