"""What the instructions of a Circuit add to the noise of each program operation.

Between the operands and the result of one operation lie rescales, rotations and refreshes whose
number depends on the layout. Their variances are followed through the operation's own
instructions: errors made before its products count as errors of the operands, errors made after
them as errors of the result. Slots are taken as independent, so sums add variances.
"""

from __future__ import annotations

import numpy as np

from hesim import noise as formulas
from hesim.circuit.circuit import Circuit, Kind, Pack
from hesim.params import CKKSParams
from hesim.profiles import NoiseProfile

__all__ = ["OperationNoise"]


class OperationNoise:
    """Noise of each operation's own instructions, in slot values (tensor values without gains).

    Attributes:
      variance: per ciphertext, of errors made in its own operation since the last product.
      operands: per operation, mean variance that its own instructions add to operands of products.
      rescales: per operation, number of rescales, those that only correct a scale left out.
      inner_refreshes: per operation, refreshes of anything but its result, over `rescales`.
      lowered: per operation, ciphertexts that it uses after a product with 1 and a rescale.
      refreshed: from a ciphertext to its refreshed copy.
    """

    def __init__(self, circuit: Circuit, profile: NoiseProfile) -> None:
        self._circuit = circuit
        kind = circuit.kind
        count = len(circuit.op_names)
        self._first = np.append(circuit.arg, -1)[circuit.arg_ptr[:-1]]
        self._corrections = self._find_corrections()
        self._packs = [_weight(p) for p in circuit.packs]
        refreshes = np.flatnonzero(kind == Kind.REFRESH)
        self.refreshed = {int(self._first[r]): int(r) for r in refreshes}
        results = {int(c) for tap in circuit.taps for c in tap.ciphers}
        counted = (kind == Kind.RESCALE) & (circuit.source >= 0)
        counted[self._corrections] = False
        self.rescales = np.bincount(circuit.source[counted], minlength=count)
        inner = [r for r in refreshes if int(self._first[r]) not in results]
        self.inner_refreshes = np.bincount(circuit.source[inner], minlength=count)
        self.inner_refreshes = self.inner_refreshes / np.maximum(self.rescales, 1)
        self.lowered = self._find_lowered()
        self.variance = np.zeros(len(kind))
        self.operands = np.zeros(count)
        self._follow(_Events(circuit.params, profile))

    def result(self, ciphers: np.ndarray) -> float:
        """Mean variance over ciphertexts that hold a result."""
        return float(self.variance[ciphers].mean()) if len(ciphers) else 0.0

    def _find_corrections(self) -> np.ndarray:
        """Rescales of products by a plaintext that is 1 everywhere and corrects the scale."""
        c = self._circuit
        one = np.array([_is_unit(p) for p in c.packs], dtype=bool)
        single = np.flatnonzero((c.kind == Kind.DOT_PLAIN) & (np.diff(c.arg_ptr) == 1))
        if not len(one) or not len(single):
            return np.zeros(0, np.int64)
        units = single[one[c.plain_pack[c.arg2[c.arg_ptr[single]]]]]
        return np.flatnonzero((c.kind == Kind.RESCALE) & np.isin(self._first, units))

    def _find_lowered(self) -> dict[int, set[int]]:
        c, first = self._circuit, self._first
        root: dict[int, int] = {}
        for rescale in self._corrections:
            before = int(first[first[rescale]])
            root[int(rescale)] = int(first[before]) if c.kind[before] == Kind.DROP else before
        consumer = np.repeat(c.source, np.diff(c.arg_ptr))
        second = np.where(np.repeat(c.kind == Kind.DOT, np.diff(c.arg_ptr)), c.arg2, -1)
        lowered: dict[int, set[int]] = {}
        for argument in (c.arg, second):
            for place in np.flatnonzero(np.isin(argument, self._corrections)):
                cipher = root[int(argument[place])]
                lowered.setdefault(int(consumer[place]), set()).add(cipher)
        return lowered

    def _follow(self, events: _Events) -> None:
        c, variance = self._circuit, self.variance
        corrections = set(self._corrections.tolist())
        sums = np.zeros(len(self.operands))
        terms = np.zeros(len(self.operands))
        for i in range(len(c.kind)):
            op = int(c.source[i])
            if op < 0 or i in corrections:
                continue
            kind, where = int(c.kind[i]), c.args(i)
            arg = c.arg[where]
            own = np.where(c.source[arg] == op, variance[arg], 0.0)
            if kind == Kind.ADD:
                variance[i] = np.dot(c.factor[where].astype(float) ** 2, own)
            elif kind == Kind.DOT:
                other = c.arg2[where]
                sums[op] += own.sum() + variance[other][c.source[other] == op].sum()
                terms[op] += 2 * len(arg)
            elif kind == Kind.DOT_PLAIN:
                packs = c.plain_pack[c.arg2[where]]
                weights = np.array([self._packs[p] for p in packs])
                if np.any(np.isnan(weights)):
                    sums[op] += own.sum()
                    terms[op] += len(arg)
                else:
                    variance[i] = np.dot(weights, own) / min(1.0, max(weights.sum(), 1e-9))
            else:
                added = events.variance(kind, int(c.level[i]), float(c.scale[i]))
                variance[i] = own.sum() + added
        self.operands = sums / np.maximum(terms, 1.0)


class _Events:
    """Slot variances of single instructions, in slot values squared."""

    def __init__(self, params: CKKSParams, profile: NoiseProfile) -> None:
        self._coefficients = {
            (Kind.RESCALE, level): formulas.rescale(profile) for level in range(params.levels + 1)
        }
        for level in range(params.levels + 1):
            switch = formulas.key_switch(params, level, profile)
            self._coefficients[Kind.ROTATE, level] = switch
            self._coefficients[Kind.RELINEARIZE, level] = switch
            self._coefficients[Kind.REFRESH, level] = formulas.fresh(params.n, profile)
        self._slots = {
            key: formulas.slot_std(noise, params.n, profile) ** 2
            for key, noise in self._coefficients.items()
        }

    def variance(self, kind: int, level: int, scale: float) -> float:
        return self._slots.get((kind, level), 0.0) / scale**2


def _is_unit(pack: Pack) -> bool:
    literal = pack.literal
    one = literal is not None and bool(np.all(literal == 1.0))
    return pack.operand < 0 and pack.index.shape == (1, 1) and one


def _weight(pack: Pack) -> float:
    """Mean square of a plaintext of known numbers over all slots; NaN for public operands."""
    if pack.operand >= 0 or pack.literal is None:
        return float("nan")
    asked = pack.index >= 0
    values = np.where(asked, pack.literal[np.where(asked, pack.index, 0)] * pack.gain, 0.0)
    return float(np.mean(values**2))
