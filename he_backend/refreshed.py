"""What a bootstrap is given, held against what it is made for. Imports no JAX."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np

from he_backend.errors import ValueRangeError
from hesim.circuit.circuit import Circuit, Kind
from hesim.errors import ValueOverflowWarning
from hesim.noise.bootstrap import law

__all__ = ["check_refreshed"]


def check_refreshed(circuit: Circuit, found: Mapping[int, tuple[float, float]]) -> str | None:
    """Hold the slots of what is bootstrapped against what the bootstrap is made for.

    found: smallest and largest slot of ciphertexts, by number.

    Returns:
      Which of them is the furthest beyond that, and by how much it is bent: a ValueOverflowWarning
      has said it, too. None if all lie where they should.

    Raises:
      ValueRangeError: the sine of its law bends them by a sixth or more.
    """
    refresher = circuit.bootstrap
    if refresher is None:
        return None
    refreshed = [
        (int(i), circuit.operands(int(i))[0]) for i in np.flatnonzero(circuit.kind == Kind.REFRESH)
    ]
    sizes = {i: max(map(abs, found[c])) for i, c in refreshed if c in found}
    worst = max(sizes, key=lambda i: sizes[i], default=-1)
    if worst < 0 or sizes[worst] <= refresher.value_range:
        return None
    size = sizes[worst]
    chosen = None if refresher.error is None else law(refresher.error)
    text = (
        f"{circuit.describe(worst)}: the {refresher.name} refreshes slots of up to {size:.4g} and "
        f"is made for {refresher.value_range:g}. Scale the values down before"
    )
    if chosen is None or chosen.sine_bits is None:
        warnings.warn(text, ValueOverflowWarning, stacklevel=2)
        return text
    bent = abs(float(chosen.deviation(size)))
    more = f"; its sine is off by {bent:.2g} there, less with a larger correction"
    if size >= 2.0**chosen.sine_bits / (2.0 * math.pi):
        raise ValueRangeError(text + more)
    warnings.warn(text + more, ValueOverflowWarning, stacklevel=2)
    return text + more
