"""What the instructions of a Circuit add to the noise of each program operation.

Between the operands and the result of one operation lie rescales, rotations and refreshes whose
number depends on the layout. Their variances are followed through the operation's own
instructions: errors made before its products, or before a sum of two tensors, count as errors of
the operands, errors made after them as errors of the result. Slots are taken as independent, so
sums add variances.

Where a small operand of a sum is spread over many slots by x + rotated x, again and again, its
copies have most of their error in common: T copies get the sum of T slots' errors, and of a
rotation's own errors each is in as many copies as there were doublings after it. The part of their
variance that is in the mean over all copies counts as the operand's, the rest as the result's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from hesim.circuit.circuit import Circuit, Kind, Pack, Tap
from hesim.noise import slots_read
from hesim.noise.circuit_plans import CircuitPlan, circuit_plan
from hesim.noise.dc_products import SlotValues
from hesim.noise.dc_slots import RELINEARIZED, Amplitudes, Factor, Origin, Peaks, at_elements
from hesim.noise.dc_slots import variance as peak_variance
from hesim.noise.instructions import InstructionNoise
from hesim.noise.profiles import NoiseProfile

__all__ = ["OperationNoise"]

_TINY = 1e-300
"""Under every variance that is not zero."""


class OperationNoise:
    """Noise of each operation's own instructions, in slot values (tensor values without gains).

    Attributes:
      variance: per ciphertext, of errors made in its own operation since the last product, without
        those of `peaks`.
      peaks: by ciphertext, the errors in single slots that have far more, beside `variance`.
      operands: per operation, mean variance that its own instructions add before they compute
        anything, by moves, masks and refreshes, by the ciphertext of a whole tensor that is moved.
      rescales: per operation, number of rescales, those that only correct a scale left out.
      inner_refreshes: per operation, refreshes between its operands and its result over rescales,
        by how many rescales lie between the operands and what is refreshed.
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
        self._largest = [_largest(p) for p in circuit.packs]
        refreshes = np.flatnonzero(kind == Kind.REFRESH)
        self.refreshed = {int(self._first[r]): int(r) for r in refreshes}
        results = {int(c) for tap in circuit.taps for c in tap.ciphers}
        self._holds_tensor = kind == Kind.INPUT
        copies = [after for before, after in self.refreshed.items() if before in results]
        self._holds_tensor[[*results, *copies]] = True
        counted = (kind == Kind.RESCALE) & (circuit.source >= 0)
        counted[self._corrections] = False
        self.rescales = np.bincount(circuit.source[counted], minlength=count)
        self.lowered = self._find_lowered()
        self.variance = np.zeros(len(kind))
        self.peaks: dict[int, Amplitudes] = {}
        self._used: dict[int, np.ndarray] = {}  # bool[slots] that masks have left, all if absent
        self.operands: list[dict[int, float]] = [{} for _ in range(count)]
        self._events = InstructionNoise(circuit.params, profile)
        self._tensor = self._tensors()
        self._values = SlotValues(circuit, self._tensor)
        self._follow(self._events)
        inner = [int(r) for r in refreshes if int(self._first[r]) not in results]
        self.inner_refreshes = self._by_depth(inner)

    def result(self, tap: Tap, held: Collection[int] = ()) -> tuple[float, Peaks | None]:
        """Mean variance over a result's elements, and what single slots have besides.

        held: ciphertexts of it that operands lie in as well, whose errors come with these.
        """
        if not len(tap.ciphers):
            return 0.0, None
        computed = tap.cipher[tap.cipher > -2]
        made = (computed >= 0) & ~np.isin(computed, list(held))
        flat = float(np.where(made, self.variance[computed], 0.0).mean())
        if not self.peaks:
            return flat, None
        return flat, at_elements(tap, self.peaks, self._in_use(tap), flat, self._values.element)

    def plan(self, ciphers: np.ndarray, operand_gain: float) -> CircuitPlan | None:
        """The arithmetic between an operand and a result that these ciphertexts hold, if it is one
        ciphertext's; `operand_gain` is the operand's value over its slot value.
        """
        c, events = self._circuit, self._events

        def added(i: int) -> float:
            return events.variance(int(c.kind[i]), int(c.level[i]), float(c.scale[i]))

        return circuit_plan(c, int(ciphers[0]), self._holds_tensor, added, operand_gain)

    def _find_corrections(self) -> np.ndarray:
        """Rescales of products by a plaintext that is 1 everywhere and corrects the scale."""
        c = self._circuit
        one = np.array([_is_unit(p) for p in c.packs], dtype=bool)
        single = np.flatnonzero((c.kind == Kind.DOT_PLAIN) & (np.diff(c.arg_ptr) == 1))
        if not len(one) or not len(single):
            return np.zeros(0, np.int64)
        units = single[one[c.plain_pack[c.arg2[c.arg_ptr[single]]]]]
        return np.flatnonzero((c.kind == Kind.RESCALE) & np.isin(self._first, units))

    def _products(self) -> set[int]:
        """Operations that multiply two ciphertexts once; a scalar in them only applies a gain."""
        c = self._circuit
        dots = {int(op) for op in c.source[c.kind == Kind.DOT] if op >= 0}
        return {op for op in dots if c.op_names[op] not in ("polynomial", "integer_pow")}

    def _doubles(self, terms: np.ndarray) -> bool:
        """Whether a sum is that of a ciphertext and itself rotated."""
        one, other = (int(terms[0]), int(terms[-1]))
        rotated = len(terms) == 2 and self._circuit.kind[other] == Kind.ROTATE
        return bool(rotated and self._first[other] == one)

    def _sums(self) -> set[int]:
        """Operations that add two tensors."""
        names = self._circuit.op_names
        return {op for op, name in enumerate(names) if name in ("add", "add_any", "sub")}

    def _tensors(self) -> np.ndarray:
        """By ciphertext, a number of the first tensor that it holds; -1 if none."""
        c = self._circuit
        tensor = np.full(len(c.kind), -1)
        for i in np.flatnonzero(c.kind == Kind.INPUT):
            tensor[i] = len(c.taps) + c.input_rows[int(c.param[i])][0]
        for k, tap in enumerate(c.taps):
            own = tap.ciphers[tensor[tap.ciphers] < 0]
            tensor[own] = k
        for before, after in self.refreshed.items():
            if tensor[after] < 0:
                tensor[after] = tensor[before]
        return tensor

    def _by_depth(self, refreshes: list[int]) -> list[tuple[float, ...]]:
        """Per operation, refreshes at each depth inside it over rescales there, from depth 0 on."""
        c = self._circuit
        rescales = np.flatnonzero((c.kind == Kind.RESCALE) & (c.source >= 0) & (self._depth > 0))
        rescales = np.setdiff1d(rescales, self._corrections)
        found: list[tuple[float, ...]] = [()] * len(self.operands)
        for op in {int(c.source[r]) for r in refreshes}:
            made = np.bincount(self._depth[rescales[c.source[rescales] == op]])
            own = [int(self._first[r]) for r in refreshes if c.source[r] == op]
            again = np.bincount(self._depth[own], minlength=len(made))[: len(made)]
            found[op] = tuple((again / np.maximum(made, 1) * (made > 0)).tolist())
        return found

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

    def _follow(self, events: InstructionNoise) -> None:
        c, variance = self._circuit, self.variance
        corrections = set(self._corrections.tolist())
        # What is rotated or masked for one operation may serve others too: whatever holds no whole
        # tensor counts as made by the operation that uses it.
        inside = ~self._holds_tensor
        root = np.arange(len(c.kind))
        computed = np.zeros(len(c.kind), bool)
        depth = np.zeros(len(c.kind), np.int64)
        applied = np.ones(len(c.kind))
        # Of the errors summed over all copies of a tensor: variance over the number of copies.
        common, copies = np.zeros(len(c.kind)), np.ones(len(c.kind))
        products, sums = self._products(), self._sums()
        tensor = self._tensor
        factors: list[dict[int, list[float]]] = [{} for _ in self.operands]
        for i in range(len(c.kind)):
            op = int(c.source[i])
            kind, where = int(c.kind[i]), c.args(i)
            arg = c.arg[where]
            if inside[i] and len(arg):
                root[i], applied[i] = root[arg[0]], applied[arg[0]]
            below = depth[arg][c.source[arg] == op]
            depth[i] = below.max(initial=0)
            made = computed[arg] & (c.source[arg] == op)
            computed[i] = bool(np.any(made))
            if op < 0 or i in corrections:
                continue
            near = inside[arg] | (c.source[arg] == op)
            peaks = [self.peaks.get(a, {}) if held else {} for a, held in zip(arg.tolist(), near)]
            own = np.where(near, variance[arg], 0.0)
            whole = own + self._means(arg, peaks)
            alike = np.where(inside[arg], common[arg], 0.0)
            spread = np.where(inside[arg], copies[arg], 1.0)
            copies[i] = spread.max(initial=1.0)
            if events.peaked:
                self._use(i, near)
            depth[i] += kind == Kind.RESCALE and computed[i]
            if kind == Kind.DOT:
                depth[i] = max(depth[i], depth[c.arg2[where]].max())
            if kind == Kind.ADD and op in sums and len(set(tensor[root[arg]].tolist())) > 1:
                # Peaks stay where they are: those of one key are alike in all copies as it is.
                shared = np.where(made, 0.0, alike / spread) / np.maximum(whole, _TINY)
                # What masks and peaks leave is a mean over slots in use, and copies may be few.
                shared = np.minimum(shared, 1.0)
                _note(factors[op], root[arg], shared * own / applied[arg] ** 2, ~made)
                variance[i] = np.dot(c.factor[where].astype(float) ** 2 * (1.0 - shared), own)
                self._gather(i, c.factor[where].astype(float), peaks)
                computed[i] = True
            elif kind == Kind.ADD:
                squares = c.factor[where].astype(float) ** 2
                variance[i] = np.dot(squares, own)
                self._gather(i, c.factor[where].astype(float), peaks)
                common[i] = np.dot(squares, alike)
                if self._doubles(arg):
                    common[i], copies[i] = 3.0 * alike[0] + alike[1], 2.0 * spread[0]
            elif kind == Kind.DOT:
                other = c.arg2[where]
                held = inside[other] | (c.source[other] == op)
                theirs = [self.peaks.get(b, {}) if h else {} for b, h in zip(other.tolist(), held)]
                moved = ~(computed[other] & inside[other])
                errors = self._multiply(i, [*peaks, *theirs], np.append(~made, moved))
                whole = own + self._means(arg, errors[: len(arg)])
                beside = np.where(held, variance[other], 0.0)
                beside += self._means(other, errors[len(arg) :])
                _note(factors[op], root[arg], whole / applied[arg] ** 2, ~made)
                _note(factors[op], root[other], beside / applied[other] ** 2, moved)
                computed[i] = True
            elif kind == Kind.DOT_PLAIN:
                packs = c.plain_pack[c.arg2[where]]
                weights = np.array([self._packs[p] for p in packs])
                unknown = np.any(np.isnan(weights))
                scalars = all(c.packs[p].scalar for p in packs)
                if unknown or (scalars and op not in products and op not in sums):
                    _note(factors[op], root[arg], whole / applied[arg] ** 2, ~made)
                    computed[i] = True
                if not unknown:
                    largest = max(self._largest[p] for p in packs) or 1.0
                    weights = weights / largest**2
                    variance[i] = np.dot(weights, own) / min(1.0, max(weights.sum(), 1e-9))
                    variance[i] *= largest**2
                    applied[i] *= largest
                    self._gather(i, np.ones(len(arg)), self._masked(c.arg2[where], peaks))
                    common[i] = variance[i] + self._mean(i, self.peaks.get(i, {}))
            else:
                added = events.variance(kind, int(c.level[i]), float(c.scale[i]))
                key = int(c.param[i]) % c.slots if kind == Kind.ROTATE else RELINEARIZED
                near_one = events.peaks(kind, int(c.level[i]), float(c.scale[i]), key)
                moved = [self._rotated(p, int(c.param[i])) for p in peaks]
                self._gather(
                    i, np.ones(len(arg) + 1), [*(moved if kind == Kind.ROTATE else peaks), near_one]
                )
                variance[i] = own.sum() + added
                common[i] = alike.sum() + added + self._mean(i, near_one)
        for op, found in enumerate(factors):
            self.operands[op] = {cipher: float(np.mean(v)) for cipher, v in found.items()}
        self._depth = np.where(computed, depth, 0)

    def _use(self, i: int, near: np.ndarray) -> None:
        """Slots in use of instruction i: those of any argument, where masks leave them; of an
        argument that is not `near`, a whole tensor, all slots.
        """
        c = self._circuit
        every = np.ones(c.slots, bool)
        arg = c.arg[c.args(i)].tolist()
        found = [self._used.get(a, every) if n else every for a, n in zip(arg, near)]
        if c.kind[i] == Kind.ROTATE:
            found = [np.roll(used, -int(c.param[i])) for used in found]
        elif c.kind[i] == Kind.DOT_PLAIN:
            found = [u & m for u, m in zip(found, slots_read.masks(c, i), strict=True)]
        if found and not np.all(used := np.any(found, axis=0)):
            self._used[i] = used

    def _in_use(self, tap: Tap) -> dict[int, np.ndarray]:
        """bool[slots] by ciphertext of a tensor."""
        every = np.ones(self._circuit.slots, bool)
        return {c: self._used.get(c, every) for c in tap.ciphers.tolist()}

    def _mean(self, cipher: int, peaks: Amplitudes) -> float:
        """Mean variance of these errors over the slots in use of a ciphertext."""
        slots, used = self._circuit.slots, self._used.get(cipher)
        if used is None:
            return sum(peak_variance(v) for j, v in peaks.items() if j < slots) / slots
        total = sum(peak_variance(v) for j, v in peaks.items() if j < slots and used[j])
        return total / max(used.sum(), 1)

    def _means(self, ciphers: np.ndarray, peaks: Sequence[Amplitudes]) -> np.ndarray:
        return np.array([self._mean(c, p) for c, p in zip(ciphers.tolist(), peaks, strict=True)])

    def _rotated(self, peaks: Amplitudes, step: int) -> Amplitudes:
        ring = self._circuit.params.slots
        return {(j - step) % ring: v for j, v in peaks.items()}

    def _masked(self, plains: np.ndarray, peaks: Sequence[Amplitudes]) -> list[Amplitudes]:
        """Peaks after products by plaintexts of known numbers."""
        c, found = self._circuit, []
        for p, own in zip(plains.tolist(), peaks, strict=True):
            pack = c.packs[int(c.plain_pack[p])]
            vector = pack.vector(int(c.plain_row[p]), ()) if own else 0.0
            factors = np.broadcast_to(vector, c.slots)
            found.append(
                {j: _times(float(factors[j % c.slots]), errors) for j, errors in own.items()}
            )
        return found

    def _multiply(
        self, i: int, peaks: Sequence[Amplitudes], followed: np.ndarray
    ) -> list[Amplitudes]:
        """Peaks of instruction i, a sum of products, from those of its factors that are `followed`,
        the left ones first. Returns what is left out of each factor's.
        """
        part = self._circuit.args(i)
        left, right = self._circuit.arg[part].tolist(), self._circuit.arg2[part].tolist()
        factors = np.tile(self._circuit.factor[part].astype(float), 2)
        met, rest = [], []
        for own, other, follow in zip(peaks, [*right, *left], followed.tolist(), strict=True):
            one, two = self._values.product(own, other) if follow else ({}, own)
            met.append(one)
            rest.append(two)
        self._gather(i, factors, met)
        return rest

    def _gather(self, i: int, factors: np.ndarray, peaks: Sequence[Amplitudes]) -> None:
        """Peaks of instruction i: a sum of errors times these factors."""
        found: dict[int, dict[tuple[Origin, Factor], float]] = {}
        for factor, own in zip(factors.tolist(), peaks, strict=True):
            for slot, errors in own.items():
                total = found.setdefault(slot, {})
                for origin, amplitude in errors.items():
                    total[origin] = total.get(origin, 0.0) + factor * amplitude
        found = {slot: errors for slot, errors in found.items() if any(errors.values())}
        if found:
            self.peaks[i] = found

    def made_of(self, tap: Tap) -> dict[int, np.ndarray]:
        """bool[slots] by ciphertext of whole tensors: those in use of which the slots that a result
        is read in are made.
        """
        found = slots_read.sources(self._circuit, tap, self._holds_tensor)
        return {c: held & self._used[c] if c in self._used else held for c, held in found.items()}


def _times(
    factor: float, errors: Mapping[tuple[Origin, Factor], float]
) -> dict[tuple[Origin, Factor], float]:
    return {term: factor * amplitude for term, amplitude in errors.items()}


def _note(
    found: dict[int, list[float]], roots: np.ndarray, variances: np.ndarray, moved: np.ndarray
) -> None:
    """Notes variances by root, of those that were only moved: what was computed is the plan's."""
    for root, variance in zip(roots[moved].tolist(), variances[moved].tolist(), strict=True):
        found.setdefault(root, []).append(variance)


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


def _largest(pack: Pack) -> float:
    """Largest absolute value of a plaintext of known numbers, 1 if unknown."""
    if pack.operand >= 0 or pack.literal is None:
        return 1.0
    used = pack.literal[pack.index[pack.index >= 0]]
    return float(np.max(np.abs(used), initial=0.0) * abs(pack.gain))
