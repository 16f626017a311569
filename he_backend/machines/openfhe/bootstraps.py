"""OpenFHE's bootstrap, slots to coefficients first; what would kill the process is checked before.

It works in a context of its own, on a chain that continues the Circuit's: only its own keys are
made over the long chain, those of the Circuit's rotations over the short one. A ciphertext goes
over by its residues, which are the same in both, and comes back so.

OpenFHE ends the process where a context is too shallow, where nothing was prepared, or where keys
are missing. So it is prepared once, from the Refresher that the Circuit was planned with, and each
call is held against that.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError, BlobError, CircuitError
from he_backend.machines.openfhe import files
from he_backend.machines.openfhe.contexts import context
from he_backend.machines.openfhe.library import openfhe
from he_backend.machines.openfhe.pairs import Pair
from he_backend.machines.openfhe.wire import Wire
from hesim.circuit.refresher import Refresher
from hesim.noise.bootstrap import law
from hesim.params import CKKSParams

__all__ = ["Bootstraps"]

_ZEROS = 4
"""Bootstraps of zero that the common error is the mean of. What they do not have in common stays
with it by a quarter of its variance, which makes other errors larger by 0.16 bit.
"""

_COMMON = "bootstrap-common.cipher"


class Bootstraps:
    """The bootstraps of one machine.

    Args:
      params: the ring of the Circuit.
      refresher: levels, law and slots that the Circuit was planned with.

    Attributes:
      cc: the context that they are made in.
      chain: its ring and primes.
      slots: that it was prepared for.

    Raises:
      BackendError: it is no bootstrap of OpenFHE's, or gains no level on these parameters.
    """

    def __init__(self, params: CKKSParams, refresher: Refresher):
        self.refresher = refresher
        self.slots = refresher.slots or params.slots
        self.highest = refresher.highest(params.levels)
        self.keyed = False
        self._public: Any = None
        self._common: Any = None
        self._params = params
        budget = list(refresher.transforms)
        known = None if refresher.error is None else law(refresher.error)
        correction = None if known is None else known.sine_bits
        gain = 0 if known is None else known.gain_bits
        if correction is None or min(budget) < 1 or (gain > 0) != (refresher.iterations > 1):
            raise BackendError(
                f"{refresher.name!r} is no bootstrap of OpenFHE's: take one that "
                "hesim.openfhe_bootstrap makes"
            )
        if self.highest <= refresher.min_input_level:
            raise BackendError(
                f"a bootstrap that begins at level {refresher.min_input_level} gains none in a "
                f"chain of {params.levels}: take levels={refresher.min_input_level + 1} at least"
            )
        self.chain = refresher.chain(params)
        self.cc = context(self.chain, encapsulated=True)
        needed = self.cc.GetBootstrapDepth([budget[0], 0], openfhe.SPARSE_ENCAPSULATED)
        expected = refresher.own_levels + 1 - refresher.iterations
        if needed != expected:
            raise BackendError(
                f"this OpenFHE's bootstrap uses up {needed} levels, not {expected}: is it the "
                "version that `make setup-openfhe` installs?"
            )
        self._gain = gain
        self._raised_to = self.highest + refresher.iterations - 1
        self._wire = Wire(self.chain, self._blank)
        self.cc.EvalBootstrapSetup(budget, [0, 0], self.slots, round(correction), True, True)

    def make_keys(self, pair: Pair) -> None:
        """Make the keys that a bootstrap uses."""
        self._public = pair.public
        self.cc.EvalMultKeyGen(pair.secret)
        self.cc.EvalBootstrapKeyGen(pair.secret, self.slots)
        self._common = self._common_error(pair)
        self.keyed = True

    def write_keys(self, folder: Path, tag: str) -> None:
        """Write what `make_keys` made with a secret of this tag."""
        files.write_public(folder / "bootstrap-public.key", self._public)
        files.write_relinearization(folder / "bootstrap-relin.key", tag, self.chain)
        files.write_rotations(folder / "bootstrap-rotation.key", tag)
        level = self._raised_to
        residues = self._wire.residues(self._common, level, 2)
        blob = self._wire.write(residues, level, self.chain.scale(level), self.slots)
        (folder / _COMMON).write_bytes(blob)

    def load_keys(self, folder: Path) -> None:
        """Read what `write_keys` wrote. Raises BlobError if it is malformed, or a file missing."""
        self._public = files.read_public(folder / "bootstrap-public.key")
        files.read_relinearization(folder / "bootstrap-relin.key")
        files.read_rotations(folder / "bootstrap-rotation.key")
        if not (folder / _COMMON).is_file():
            raise BlobError(f"the key file {_COMMON} is missing: make the keys anew")
        blob, level = (folder / _COMMON).read_bytes(), self._raised_to
        found = self._wire.read(blob, level, self.chain.scale(level), 2, self.slots)
        self._common = self._shown(found)
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

    def run(self, handle: Any, wire: Wire, scale: float) -> Any:
        """The refreshed ciphertext, at the highest level, of one that was checked and is at the
        least level and its canonical scale.

        wire: of the Circuit's context. scale: that the result is to have.
        """
        least = self.refresher.min_input_level
        low = self._wire.handle(wire.residues(handle, least, 2), self.slots)
        shown = self._params.scale(least)
        if self._gain:
            found = self._twice(low, shown, scale)
        else:
            found = self._once(low, shown, scale)
        return wire.handle(self._wire.residues(found, self.highest, 2), self.slots)

    def _once(self, low: Any, shown: float, scale: float) -> Any:
        """A bootstrap of a ciphertext of scale `shown`, at this scale."""
        # Its result is at the scale of its own level: it is shown values that make up for that.
        low.SetNoiseScaleDeg(1)
        low.SetScalingFactor(shown * (self.chain.scale(self._raised_to) / scale))
        found = self._raised(low)
        self.cc.EvalSubInPlace(found, self._common)
        return found

    def _raised(self, low: Any) -> Any:
        """OpenFHE's own bootstrap, at the chain's scale of its level."""
        found = self.cc.Compress(self.cc.EvalBootstrap(low), self._raised_to + 1, 1)
        return self._shown(found)

    def _shown(self, handle: Any) -> Any:
        handle.SetNoiseScaleDeg(1)
        handle.SetScalingFactor(self.chain.scale(self._raised_to))
        return handle

    def _common_error(self, pair: Pair) -> Any:
        """What all of OpenFHE's results under this key have in common, encrypted.

        It depends on the secret alone: the values that are bootstrapped make no difference.
        """
        ring, total = self._params.slots, np.zeros(self._params.slots)
        for _ in range(_ZEROS):
            found = self._raised(self._blank(self.refresher.min_input_level, 2))
            found.SetSlots(ring)  # copies of few slots have errors of their own
            total += self.cc.Decrypt(found, pair.secret).GetRealPackedValueArray()[:ring]
        above = self.chain.levels - self._raised_to
        plain = self.cc.MakeCKKSPackedPlaintext(total / _ZEROS, 1, above, None, ring)
        made = self.cc.Encrypt(pair.public, plain)
        made.SetSlots(self.slots)
        return self._shown(made)

    def _twice(self, low: Any, shown: float, scale: float) -> Any:
        """Two iterations: what a bootstrap errs by is known at the level it began at, where it is
        made 2^gain times as large, bootstrapped, and taken away.

        It is what EvalBootstrap does with numIterations=2 (Bae, Cheon, Cho, Kim, Kim, "META-BTS:
        Bootstrapping Precision Beyond the Limit", ePrint 2022/1167), but for two things: scales are
        exact, since a difference of them counts 2^gain times here; and the first result is made
        real, and the same in all copies of the slots, since in the rest it errs, too, and the
        second bootstrap does not see that.
        """
        above = self._raised_to
        first = self._once(low.Clone(), shown, shown)
        total, terms = self._folded(first)
        times = max((1 << self._gain) // terms, 1)
        again = self.cc.Compress(total, self.refresher.min_input_level + 1, 1)
        low.SetScalingFactor(shown)
        again.SetScalingFactor(shown)
        error = self.cc.EvalSub(self.cc.EvalMultNoCheck(low, terms), again)
        second = self._once(self.cc.EvalMultNoCheck(error, times), shown, shown)
        one = self.chain.primes[above] / self.chain.scale(above) * (scale / shown) / terms
        found = self.cc.EvalMult(total, one)
        found = self.cc.EvalAdd(found, self.cc.EvalMult(second, one / times))
        found.SetNoiseScaleDeg(2)
        return self.cc.Compress(found, self.highest + 1, 1)

    def _folded(self, handle: Any) -> tuple[Any, int]:
        """The sum of all copies of the slots and of their conjugates, and of how many it is."""
        keys = openfhe.CryptoContext.GetEvalAutomorphismKeyMap(handle.GetKeyTag())
        conjugate = self.cc.EvalAutomorphism(handle, 2 * self.chain.n - 1, keys)
        found, copies = self.cc.EvalAdd(handle, conjugate), self._params.slots // self.slots
        for k in range(copies.bit_length() - 1):
            found = self.cc.EvalAdd(found, self.cc.EvalRotate(found, self.slots << k))
        return found, 2 * copies

    def _blank(self, level: int, components: int) -> Any:
        """Some ciphertext of two components, for its form."""
        assert components == 2
        above = self.chain.levels - level
        zeros = [0.0] * self.slots
        plain = self.cc.MakeCKKSPackedPlaintext(zeros, 1, above, None, self.slots)
        return self.cc.Encrypt(self._public, plain)
