"""The canonical embedding in one library's slot order: real slots to coefficients and back.

Imports no JAX.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["coefficients", "roots", "slots"]


@lru_cache(maxsize=8)
def roots(n: int, generator: int) -> Int64[np.ndarray, " n//2"]:
    """The k of slot j's root exp(iπk/n), generator^j modulo 2n."""
    powers = np.empty(n // 2, np.int64)
    power = 1
    for j in range(n // 2):
        powers[j] = power
        power = power * generator % (2 * n)
    return powers


def coefficients(
    values: Float[np.ndarray, "... n//2"], generator: int
) -> Float[np.ndarray, "... n"]:
    """Coefficients of the real polynomials with these real slots, exactly.

    A constant vector has one, of its own size; n/2 independent values of one size share theirs
    evenly, so each is smaller by sqrt(n/2) or so.
    """
    n = 2 * values.shape[-1]
    powers = roots(n, generator)
    spectrum = np.zeros((*values.shape[:-1], n), complex)
    spectrum[..., powers // 2] = values
    spectrum[..., (2 * n - powers) // 2] = values
    # m_k = (1/n) Σ_p z_p exp(-iπkp/n) over odd p = 2r + 1.
    twist = np.exp(-1j * np.pi * np.arange(n) / n)
    return np.real(np.fft.fft(spectrum) * twist) / n


def slots(polynomials: Float[np.ndarray, "... n"], generator: int) -> Float[np.ndarray, "... n//2"]:
    """Real parts of the slots of real polynomials."""
    n = polynomials.shape[-1]
    twist = np.exp(1j * np.pi * np.arange(n) / n)
    values = np.fft.ifft(polynomials * twist) * n
    return np.real(values[..., roots(n, generator) // 2])
