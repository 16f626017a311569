"""OpenFHE's bootstrap, slots to coefficients first; what would kill the process is checked before.

OpenFHE ends the process where a context is too shallow, where nothing was prepared, or where keys
are missing. So it is prepared once, from the Refresher that the Circuit was planned with, and each
call is held against that.
"""

from __future__ import annotations

import math
from typing import Any

from he_backend.errors import BackendError, CircuitError
from he_backend.machines.openfhe.library import openfhe
from hesim.circuit.refresher import Refresher
from hesim.noise.bootstrap import law
from hesim.params import CKKSParams

__all__ = ["Bootstraps"]

_MODULAR = 10
"""Levels that OpenFHE's modular reduction takes with a sparse secret, besides the way up."""


class Bootstraps:
    """The bootstraps of one machine.

    Args:
      cc: its context.
      params: its ring.
      refresher: levels, law and slots that the Circuit was planned with.

    Raises:
      BackendError: it is no bootstrap of OpenFHE's, or of another chain.
    """

    def __init__(self, cc: Any, params: CKKSParams, refresher: Refresher):
        self._cc = cc
        self.refresher = refresher
        self.slots = refresher.slots or params.slots
        self.highest = refresher.highest(params.levels)
        self.keyed = False
        self._budget = [refresher.depth - _MODULAR, refresher.min_input_level - 1]
        correction = None if refresher.error is None else law(refresher.error).sine_bits
        if correction is None or min(self._budget) < 1:
            raise BackendError(
                f"{refresher.name!r} is no bootstrap of OpenFHE's: take one that "
                "hesim.openfhe_bootstrap makes"
            )
        needed = cc.GetBootstrapDepth([self._budget[0], 0], openfhe.SPARSE_ENCAPSULATED)
        if needed != refresher.depth or self.highest <= refresher.min_input_level:
            raise BackendError(
                f"a bootstrap that uses up {needed} levels and begins at level "
                f"{refresher.min_input_level} gains none in a chain of {params.levels}: take "
                f"levels={needed + refresher.min_input_level + 1} at least"
            )
        self._correction = round(correction)
        self._params = params
        cc.EvalBootstrapSetup(self._budget, [0, 0], self.slots, self._correction, True, True)

    def make_keys(self, secret: Any) -> None:
        """Make the rotation keys that a bootstrap uses."""
        self._cc.EvalBootstrapKeyGen(secret, self.slots)
        self.keyed = True

    def check(self, cipher: Any, level: int) -> None:
        """Raises CircuitError or BackendError where OpenFHE would end the process, or go wrong."""
        least = self.refresher.min_input_level
        if not self.keyed:
            raise BackendError(
                "there are no keys to bootstrap with: load the evaluation keys first"
            )
        if cipher.components != 2:
            raise CircuitError("a bootstrap takes 2 components; relinearize first")
        if cipher.level < least:
            raise CircuitError(f"a bootstrap begins at level {least}, not at {cipher.level}")
        if not 0 <= level <= self.highest:
            raise CircuitError(f"a bootstrap ends at level {self.highest} at most, not at {level}")
        canonical = self._params.scale(cipher.level)
        if not math.isclose(cipher.scale, canonical, rel_tol=2.0**-40):
            raise CircuitError(
                f"a bootstrap takes the canonical scale of level {cipher.level}, not "
                f"2^{math.log2(cipher.scale):.2f}; rescale first"
            )

    def run(self, handle: Any) -> Any:
        """The refreshed ciphertext, at the highest level and its canonical scale, of one that was
        checked and is at the least level.
        """
        found = self._cc.EvalBootstrap(handle)
        return self._cc.Compress(found, self.highest + 1, 1)
