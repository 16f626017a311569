"""What the instructions of a Circuit add to the noise of each program operation.

Between the operands and the result of one operation lie rescales, rotations and refreshes whose
number depends on the layout. Their variances are followed through the operation's own
instructions: errors made before its products, or before a sum of two tensors, count as errors of
the operands, errors made after them as errors of the result. Slots are taken as independent, so
sums add variances, column by column where masks have kept some of them.

A small tensor that larger ones meet lies in many slots, and what copies of an element share depends
on how they came about. Made by x + rotated x, again and again, T copies get the sum of T slots'
errors, and of a rotation's own errors each is in as many copies as there were doublings after it;
what a rescale or a refresh then rounds, it rounds in every copy by itself. The part of the variance
that is in the mean over all copies counts as the tensor's, the rest as each copy's own.

What this leaves out: where the effective slots are fewer than the ring's, a rotation across their
end reads the next of their copies in the ring, whose errors are others. So the copies that a sum
over a whole cycle makes are sums over different windows of errors. A tensor's errors are taken as
the same in all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hesim.circuit import plain_rows
from hesim.circuit.circuit import Circuit, Kind, PlaintextFamily, TensorLocation
from hesim.noise import slots_read
from hesim.noise.circuit_plans import CircuitPlan, circuit_plan
from hesim.noise.columns import Columns, factors
from hesim.noise.dc_products import SlotValues
from hesim.noise.dc_slots import RELINEARIZED, Amplitudes, DCErrors, Factor, Origin, at_elements
from hesim.noise.dc_slots import variance as dc_variance
from hesim.noise.instructions import InstructionNoise
from hesim.noise.profiles import NoiseProfile
from hesim.noise.slot_errors import NO_ERRORS, SlotErrors, mean, summed

__all__ = ["OperationNoise", "Result"]

_TINY = 1e-300
"""Under every variance that is not zero."""


class Result(NamedTuple):
    """What the instructions of one operation add to its result, in slot values squared.

    Attributes:
      variance: in the mean over elements, without `dc_errors`.
      apart: the part of it that is each copy's own where elements are held in several.
      copies: columns in which an element is needed, in the mean.
      dc_errors: what single slots have besides.
    """

    variance: float
    apart: float
    copies: float
    dc_errors: DCErrors | None


class OperationNoise:
    """Noise of each operation's own instructions, in slot values (tensor values without gains).

    Attributes:
      variance: per ciphertext, of errors made in its own operation since the last product, without
        those of `dc_errors`.
      dc_errors: by ciphertext, the errors in single slots that have far more, beside `variance`.
      operands: per operation, mean variance that its own instructions add before they compute
        anything, by moves, masks and refreshes, by the ciphertext of a whole tensor that is moved;
        where several copies of an element are read, of what they have in common.
      copied: likewise, of what each copy has of its own.
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
        self.dc_errors: dict[int, Amplitudes] = {}
        self._used: dict[int, np.ndarray] = {}  # bool[slots] that masks have left, all if absent
        self.operands: list[dict[int, float]] = [{} for _ in range(count)]
        self.copied: list[dict[int, float]] = [{} for _ in range(count)]
        self._events = InstructionNoise(circuit.params, profile)
        self._tensor = self._tensors()
        self._values = SlotValues(circuit, self._tensor)
        self._columns = Columns(circuit)
        self._errors: dict[int, SlotErrors] = {}
        self._follow()
        inner = [int(r) for r in refreshes if int(self._first[r]) not in results]
        self.inner_refreshes = self._by_depth(inner)

    def result(self, tap: TensorLocation, held: Collection[int] = ()) -> Result:
        """What a result's own instructions add, in the mean over its elements.

        held: ciphertexts of it that operands lie in as well, whose errors come with these.
        """
        variances = apart = copies = 0.0
        elements = tap.cipher[tap.cipher > -2]
        for cipher in tap.ciphers.tolist():
            columns = tap.column[tap.cipher == cipher]
            times = max(self._columns.needed[cipher].sum() / len(np.unique(columns)), 1.0)
            copies += times * len(columns)
            if cipher in held or cipher not in self._errors:
                continue
            errors = self._errors[cipher]
            own = (
                errors.variance[columns].sum()
                if np.ndim(errors.variance)
                else errors.variance * len(columns)
            )
            variances += own
            if times > 1.0:
                common = mean(errors.total, self._columns.needed[cipher]) / times
                apart += max(own - common * len(columns), 0.0)
        count = max(len(elements), 1)
        flat, dc_errors = variances / count, None
        if self.dc_errors and len(tap.ciphers):
            dc_errors = at_elements(
                tap, self.dc_errors, self._in_use(tap), flat, self._values.element
            )
        return Result(flat, apart / count, max(copies / count, 1.0), dc_errors)

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

    def _find_products(self) -> set[int]:
        """Operations that multiply two ciphertexts once; a scalar in them only applies a gain."""
        c = self._circuit
        dots = {int(op) for op in c.source[c.kind == Kind.DOT] if op >= 0}
        return {op for op in dots if c.op_names[op] not in ("polynomial", "integer_pow")}

    def _doubles(self, terms: np.ndarray) -> bool:
        """Whether a sum is that of a ciphertext and itself rotated."""
        one, other = (int(terms[0]), int(terms[-1]))
        rotated = len(terms) == 2 and self._circuit.kind[other] == Kind.ROTATE
        return bool(rotated and self._first[other] == one)

    def _find_sums(self) -> set[int]:
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

    def _follow(self) -> None:
        c, whole = self._circuit, self._holds_tensor
        # What is rotated or masked for one operation may serve others too: whatever holds no whole
        # tensor counts as made by the operation that uses it.
        self._root = np.arange(len(c.kind))
        self._computed = np.zeros(len(c.kind), bool)
        self._depth = np.zeros(len(c.kind), np.int64)
        self._applied = np.ones(len(c.kind))
        self._products, self._sums = self._find_products(), self._find_sums()
        self._noted = [_Noted() for _ in self.operands]
        last = c.last_uses
        corrections = set(self._corrections.tolist())
        for i in range(len(c.kind)):
            op, arg = int(c.source[i]), c.arg[c.args(i)]
            if not whole[i] and len(arg):
                self._root[i], self._applied[i] = self._root[arg[0]], self._applied[arg[0]]
            self._depth[i] = self._depth[arg][c.source[arg] == op].max(initial=0)
            made = self._computed[arg] & (c.source[arg] == op)
            self._computed[i] = bool(np.any(made))
            if op >= 0 and not (i in corrections and whole[self._before(i)]):
                self._errors[i] = self._step(i, arg, made)
            for a in c.operands(i):
                if last[a] == i and not whole[a]:
                    self._errors.pop(a, None)
        self._depth = np.where(self._computed, self._depth, 0)
        for i, errors in self._errors.items():
            self.variance[i] = mean(errors.variance, self._columns.needed[i])
        self.operands = [noted.means(noted.common) for noted in self._noted]
        self.copied = [noted.means(noted.apart) for noted in self._noted]

    def _step(self, i: int, arg: np.ndarray, made: np.ndarray) -> SlotErrors:
        """Errors of instruction i; `made`: which of its arguments its operation computed."""
        c, op, kind = self._circuit, int(self._circuit.source[i]), int(self._circuit.kind[i])
        near = ~self._holds_tensor[arg] | (c.source[arg] == op)
        own = [
            self._errors.get(a, NO_ERRORS) if n else NO_ERRORS for a, n in zip(arg.tolist(), near)
        ]
        dc_errors = [self.dc_errors.get(a, {}) if n else {} for a, n in zip(arg.tolist(), near)]
        if self._events.has_dc_errors:
            self._use(i, near)
        self._depth[i] += kind == Kind.RESCALE and self._computed[i]
        if kind == Kind.DOT:
            return self._product(i, arg, made, own, dc_errors)
        if kind == Kind.DOT_PLAIN:
            return self._plain_product(i, arg, made, own, dc_errors)
        if kind == Kind.ADD:
            return self._sum(i, arg, made, own, dc_errors)
        level, scale, step = int(c.level[i]), float(c.scale[i]), int(c.param[i])
        added = self._events.variance(kind, level, scale)
        key = step % c.slots if kind == Kind.ROTATE else RELINEARIZED
        near_one = self._events.dc_errors(kind, level, scale, key)
        if kind == Kind.ROTATE:
            dc_errors = [self._rotated(p, step) for p in dc_errors]
            own = [own[0].rotated(step * self._columns.count // c.slots)]
        self._gather(i, np.ones(len(arg) + 1), [*dc_errors, near_one])
        return own[0].plus(added, added + self._mean(i, near_one))

    def _sum(
        self,
        i: int,
        arg: np.ndarray,
        made: np.ndarray,
        own: list[SlotErrors],
        dc_errors: list[Amplitudes],
    ) -> SlotErrors:
        c, op, needed = self._circuit, int(self._circuit.source[i]), self._columns.needed[i]
        factors = c.factor[c.args(i)].astype(float)
        self._gather(i, factors, dc_errors)
        tensors = set(self._tensor[self._root[arg]].tolist())
        if op not in self._sums or len(tensors) < 2:
            return summed(own, factors, doubled=self._doubles(arg))
        # DC errors stay where they are: those of one key are alike in all copies as it is.
        self._computed[i] = True
        left = []
        for a, errors, m, more in zip(
            arg.tolist(), own, made, self._means(arg, dc_errors), strict=True
        ):
            variance = mean(errors.variance, needed)
            copies = errors.copies(needed, self._elements(a))
            # What masks and DC errors leave is a mean over slots in use, and copies may be few.
            common = (
                0.0
                if m
                else min(mean(errors.total, needed) / copies / max(variance + more, _TINY), 1.0)
            )
            if not m:
                self._noted[op].add(self._root[a], common * variance / self._applied[a] ** 2)
            left.append(errors.scaled(1.0 - common))
        return summed(left, factors, doubled=False).alone()

    def _product(
        self,
        i: int,
        arg: np.ndarray,
        made: np.ndarray,
        own: list[SlotErrors],
        dc_errors: list[Amplitudes],
    ) -> SlotErrors:
        c, op = self._circuit, int(self._circuit.source[i])
        other = c.arg2[c.args(i)]
        held = ~self._holds_tensor[other] | (c.source[other] == op)
        beside = [
            self._errors.get(b, NO_ERRORS) if h else NO_ERRORS for b, h in zip(other.tolist(), held)
        ]
        theirs = [self.dc_errors.get(b, {}) if h else {} for b, h in zip(other.tolist(), held)]
        done = self._computed[other] & ~self._holds_tensor[other]
        rest = self._multiply(i, [*dc_errors, *theirs], ~np.append(made, done))
        self._depth[i] = max(self._depth[i], self._depth[other].max())
        for ciphers, errors, m, more in (
            (arg, own, made, rest[: len(arg)]),
            (other, beside, done, rest[len(arg) :]),
        ):
            self._note(i, ciphers, errors, m, self._means(ciphers, more))
        self._computed[i] = True
        return NO_ERRORS

    def _plain_product(
        self,
        i: int,
        arg: np.ndarray,
        made: np.ndarray,
        own: list[SlotErrors],
        dc_errors: list[Amplitudes],
    ) -> SlotErrors:
        c, op = self._circuit, int(self._circuit.source[i])
        plains = c.arg2[c.args(i)]
        packs = [c.packs[p] for p in c.plain_pack[plains].tolist()]
        rows = c.plain_row[plains].tolist()
        known = [factors(p, r, self._columns.count) for p, r in zip(packs, rows, strict=True)]
        scalars = all(p.scalar for p in packs)
        unknown = any(k is None for k in known)
        if unknown or scalars and op not in self._products and op not in self._sums:
            self._note(i, arg, own, made, self._means(arg, dc_errors))
            self._computed[i] = True
        if unknown:
            return NO_ERRORS
        self._applied[i] *= max(self._largest[p] for p in c.plain_pack[plains]) or 1.0
        self._gather(i, np.ones(len(arg)), self._masked(plains, dc_errors))
        masked = [errors.times(k) for errors, k in zip(own, known, strict=True) if k is not None]
        found = summed(masked, np.ones(len(arg)), doubled=False)
        more = self._mean(i, self.dc_errors.get(i, {}))
        return found if scalars else found.alone(more)

    def _note(
        self,
        i: int,
        ciphers: np.ndarray,
        own: list[SlotErrors],
        made: np.ndarray,
        more: np.ndarray,
    ) -> None:
        """Notes errors of factors that were only moved, what was computed being the plan's: what
        all copies of an element have in common, and what each has besides.
        """
        op, needed = int(self._circuit.source[i]), self._columns.needed[i]
        for a, errors, m, dc in zip(ciphers.tolist(), own, made, more, strict=True):
            if m:
                continue
            variance = mean(errors.variance, needed)
            copies = errors.copies(needed, self._elements(a))
            common = min(mean(errors.total, needed) / copies, variance)
            size = self._applied[a] ** 2
            self._noted[op].add(self._root[a], (common + dc) / size, (variance - common) / size)

    def _elements(self, cipher: int) -> int:
        """Columns in which elements of the tensor lie that a ciphertext is made of."""
        root = int(self._root[cipher])
        read = self._columns.read.get(root, self._columns.read.get(int(self._first[root])))
        return self._columns.count if read is None else int(read.sum())

    def _before(self, correction: int) -> int:
        """The ciphertext that a rescale of `_corrections` brings down."""
        before = int(self._first[self._first[correction]])
        return int(self._first[before]) if self._circuit.kind[before] == Kind.DROP else before

    def _use(self, i: int, near: np.ndarray) -> None:
        """Slots in use of instruction i: those of any argument, where masks leave them; of an
        argument that is not `near`, a whole tensor, all slots.
        """
        c, part = self._circuit, self._circuit.args(i)
        used = np.zeros(c.slots, bool)
        for a, p, n in zip(c.arg[part].tolist(), c.arg2[part].tolist(), near, strict=True):
            held = self._used.get(a) if n else None
            if c.kind[i] == Kind.ROTATE and held is not None:
                held = np.roll(held, -int(c.param[i]))
            elif c.kind[i] == Kind.DOT_PLAIN:
                left = slots_read.mask(c, p)
                held = left if held is None else held & left
            if held is None:
                return
            used |= held
            if used.all():
                return  # whatever the other arguments have
        if part.stop > part.start:
            self._used[i] = used

    def _in_use(self, tap: TensorLocation) -> dict[int, np.ndarray]:
        """bool[slots] by ciphertext of a tensor."""
        every = np.ones(self._circuit.slots, bool)
        return {c: self._used.get(c, every) for c in tap.ciphers.tolist()}

    def _mean(self, cipher: int, dc_errors: Amplitudes) -> float:
        """Mean variance of these errors over the slots in use of a ciphertext."""
        slots, used = self._circuit.slots, self._used.get(cipher)
        if used is None:
            return sum(dc_variance(v) for j, v in dc_errors.items() if j < slots) / slots
        total = sum(dc_variance(v) for j, v in dc_errors.items() if j < slots and used[j])
        return total / max(used.sum(), 1)

    def _means(self, ciphers: np.ndarray, dc_errors: Sequence[Amplitudes]) -> np.ndarray:
        return np.array(
            [self._mean(c, p) for c, p in zip(ciphers.tolist(), dc_errors, strict=True)]
        )

    def _rotated(self, dc_errors: Amplitudes, step: int) -> Amplitudes:
        ring = self._circuit.params.slots
        return {(j - step) % ring: v for j, v in dc_errors.items()}

    def _masked(self, plains: np.ndarray, dc_errors: Sequence[Amplitudes]) -> list[Amplitudes]:
        """DC errors after products by plaintexts of known numbers."""
        c, found = self._circuit, []
        for p, own in zip(plains.tolist(), dc_errors, strict=True):
            pack = c.packs[int(c.plain_pack[p])]
            vector = pack.vector(int(c.plain_row[p]), ()) if own else 0.0
            factors = np.broadcast_to(vector, c.slots)
            found.append(
                {j: _times(float(factors[j % c.slots]), errors) for j, errors in own.items()}
            )
        return found

    def _multiply(
        self, i: int, dc_errors: Sequence[Amplitudes], followed: np.ndarray
    ) -> list[Amplitudes]:
        """DC errors of instruction i, a sum of products, from those of its factors that are
        `followed`, the left ones first. Returns what is left out of each factor's.
        """
        part = self._circuit.args(i)
        left, right = self._circuit.arg[part].tolist(), self._circuit.arg2[part].tolist()
        factors = np.tile(self._circuit.factor[part].astype(float), 2)
        met, rest = [], []
        for own, other, follow in zip(dc_errors, [*right, *left], followed.tolist(), strict=True):
            one, two = self._values.product(own, other) if follow else ({}, own)
            met.append(one)
            rest.append(two)
        self._gather(i, factors, met)
        return rest

    def _gather(self, i: int, factors: np.ndarray, dc_errors: Sequence[Amplitudes]) -> None:
        """DC errors of instruction i: a sum of errors times these factors."""
        found: dict[int, dict[tuple[Origin, Factor], float]] = {}
        for factor, own in zip(factors.tolist(), dc_errors, strict=True):
            for slot, errors in own.items():
                total = found.setdefault(slot, {})
                for origin, amplitude in errors.items():
                    total[origin] = total.get(origin, 0.0) + factor * amplitude
        found = {slot: errors for slot, errors in found.items() if any(errors.values())}
        if found:
            self.dc_errors[i] = found

    def made_of(self, tap: TensorLocation) -> dict[int, np.ndarray]:
        """bool[slots] by ciphertext of whole tensors: those in use of which the slots that a result
        is read in are made.
        """
        found = slots_read.sources(self._circuit, tap, self._holds_tensor)
        return {c: held & self._used[c] if c in self._used else held for c, held in found.items()}


def _times(
    factor: float, errors: Mapping[tuple[Origin, Factor], float]
) -> dict[tuple[Origin, Factor], float]:
    return {term: factor * amplitude for term, amplitude in errors.items()}


class _Noted:
    """Variances of operands of one operation, by the ciphertext of a whole tensor."""

    def __init__(self) -> None:
        self.common: dict[int, list[float]] = {}
        self.apart: dict[int, list[float]] = {}

    def add(self, root: Any, common: Any, apart: Any = 0.0) -> None:
        self.common.setdefault(int(root), []).append(float(common))
        self.apart.setdefault(int(root), []).append(float(apart))

    @staticmethod
    def means(found: dict[int, list[float]]) -> dict[int, float]:
        return {root: float(np.mean(values)) for root, values in found.items()}


def _is_unit(pack: PlaintextFamily) -> bool:
    literal = pack.literal
    one = literal is not None and bool(np.all(literal == 1.0))
    return pack.operand < 0 and len(pack) == pack.rows.columns == 1 and one


def _largest(pack: PlaintextFamily) -> float:
    """Largest absolute value of a plaintext of known numbers, 1 if unknown."""
    if pack.operand >= 0 or pack.literal is None:
        return 1.0
    used = pack.literal[plain_rows.entries(pack.rows)]
    return float(np.max(np.abs(used), initial=0.0) * abs(pack.weight))
