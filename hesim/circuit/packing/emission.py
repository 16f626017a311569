"""Emission: what a plan has chosen, written into a Builder."""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hesim.circuit import gains
from hesim.circuit.builder import Builder, Plain
from hesim.circuit.circuit import PlaintextFamily, TensorLocation
from hesim.circuit.layout import linear_index, stripped
from hesim.circuit.packing.arrangement import Reduction, Relay, relay
from hesim.circuit.packing.contractions import Contraction
from hesim.circuit.packing.layout import Layout, grid, places
from hesim.circuit.packing.maps import MapPlan, copies, keys_and_parts
from hesim.circuit.plain_rows import LiteralRows, MapRows, MaskRows
from hesim.circuit.publics import Publics
from hesim.errors import LayoutError
from hesim.program import Equation, Literal, Program, Var

__all__ = ["Emission", "Packed", "PublicPart", "chain", "reduced_groups", "spread"]


_MASKS = 2**10
"""Masks of one family of plaintexts, at most."""


@dataclass(frozen=True, eq=False)
class Packed:
    """An encrypted tensor on the builder's nodes, in a layout.

    Attributes:
      layout: of one member of the batch. nodes: in order of its ciphertexts.
      gain: the tensor's value is gain times what the slots hold.
    """

    layout: Layout
    nodes: tuple[int, ...]
    gain: float = 1.0


@dataclass(frozen=True, eq=False)
class PublicPart:
    """Elements of a public operand, seen by one member of the batch.

    Attributes:
      operand: its number. index: int64, flat places. stride: elements between batch members.
    """

    operand: int
    index: np.ndarray
    stride: int


class Emission:
    """Writes stages.

    Attributes:
      b: the stages so far. values: by value id. source: index of the operation at hand.
    """

    def __init__(
        self,
        program: Program,
        publics: Publics,
        b: Builder,
        axes: Mapping[int, int | None],
        wishes: Mapping[int, float],
    ):
        self.program, self.publics, self.b, self.axes = program, publics, b, axes
        self.wishes = wishes
        self.values: dict[int, Packed] = {}
        self.source = -1
        self._relaid: dict[tuple[tuple[int, ...], Layout, Layout], tuple[int, ...]] = {}

    def at(self, number: int, eqn: Equation) -> None:
        """Goes on to an operation of the Program."""
        self.source, self.publics.user = number, eqn
        self.b.operation = lambda: f"`{eqn.name}` at {eqn.source}"

    def wished(self, var: Var, gain: float) -> float:
        """The gain that a public product gives its result: the one wished for, else the operand's.

        Args:
          gain: of the operand.
        """
        return self.wishes.get(var.id, gain)

    def axis(self, var: Var) -> int | None:
        return self.axes.get(var.id)

    def shape(self, var: Var) -> tuple[int, ...]:
        """Of one member of the batch."""
        return stripped(var.shape, self.axis(var))

    def location(self, x: Packed, var: Var, op: int, where: np.ndarray) -> TensorLocation:
        """Where x, the value of `var`, lies; `where` has the ciphertext of each node."""
        axis = self.axis(var)
        cipher, column = places(x.layout)
        return TensorLocation(
            op,
            var.shape,
            -1 if axis is None else axis,
            where[np.asarray(x.nodes)][cipher].reshape(-1),
            column.reshape(-1),
            x.gain,
            self.b.batch,
            self.b.width,
        )

    # --- plaintexts -----------------------------------------------------------------------------

    def literals(self, values: Sequence[float]) -> list[Plain]:
        """Numbers, the same in every slot."""
        index = np.arange(len(values), dtype=np.int32)[:, None]
        return self._rows(-1, index, literal=np.asarray(values, np.float64))

    def masks(self, rows: np.ndarray, value: float = 1.0) -> list[Plain]:
        """bool (rows, columns): `value` where they are set, else zero."""
        return self._rows(-1, MaskRows(rows), literal=np.array([value]))

    def _rows(
        self,
        operand: int,
        rows: np.ndarray | LiteralRows | MapRows | MaskRows,
        *,
        stride: int = 0,
        gain: float = 1.0,
        literal: np.ndarray | None = None,
    ) -> list[Plain]:
        b = self.b
        family = PlaintextFamily(operand, rows, stride, b.batch, b.width, b.columns, gain, literal)
        number = b.pack(family)
        return [(number, k) for k in range(len(family))]

    def public(
        self, value: Var | Literal, shape: tuple[int, ...], axis: int | None, kind: str = "value"
    ) -> PublicPart:
        """A public value spread over the full `shape`, as one member along `axis` sees it."""
        view = self.publics.view(value, shape, kind)
        found = linear_index(view.index, axis)
        if found is None:
            raise LayoutError(
                "a public operand is laid out irregularly along the batch axis; compile with "
                "batch=False"
            )
        return PublicPart(view.operand, *found)

    def elementwise(
        self, part: PublicPart, layout: Layout, gain: float
    ) -> tuple[list[Plain], bool]:
        """A plaintext for each ciphertext of a layout, from a public tensor of its shape.

        Returns:
          (plaintexts, whether they are numbers).
        """
        table = spread(layout, np.broadcast_to(part.index, layout.shape))
        live = table >= 0
        first = table.max(axis=1, keepdims=True)
        if part.stride == 0 and live.all() and np.all(table == first):
            return self._rows(part.operand, first, gain=gain), True
        return self._rows(part.operand, table, stride=part.stride, gain=gain), False

    # --- stages ---------------------------------------------------------------------------------

    def scaled(self, nodes: Sequence[int], factor: float) -> tuple[int, ...]:
        """Nodes times a number: one level, unless it is 1 or -1."""
        if factor == 1.0:
            return tuple(nodes)
        self.b.begin(self.source)
        if factor == -1.0:
            return tuple(self.b.end([self.b.add([(-1, n)]) for n in nodes]))
        (plain,) = self.literals([factor])
        return tuple(self.b.end([self.b.rescale(self.b.dot_plain([(n, plain)])) for n in nodes]))

    def with_gain(self, x: Packed, gain: float) -> Packed:
        if x.gain == gain:
            return x
        nodes = self.scaled(x.nodes, x.gain / gain)
        for given, made in zip(x.nodes, nodes, strict=True):
            stages = self.b.nodes[given].stage, self.b.nodes[made].stage
            self.b.scalings[stages[1]] = stages[0], abs(x.gain / gain)
        return Packed(x.layout, nodes, gain)

    def bounded(self, x: Packed) -> Packed:
        """x with a pending gain that is far from 1 applied: one level."""
        return x if gains.stays_pending(x.gain) else self.with_gain(x, math.copysign(1.0, x.gain))

    def open_to(self, x: Packed, magnitude: float) -> Packed:
        """x as public values of some magnitude can be added to it."""
        if magnitude > abs(x.gain) * 2.0**gains.GAIN_BITS:
            return self.with_gain(x, math.copysign(1.0, x.gain))
        return x

    def times(self, x: Packed, number: float) -> Packed:
        """x times a number other than 0, kept as a gain."""
        if not gains.representable(x.gain * number):
            x = self.with_gain(x, math.copysign(1.0, x.gain))
        return replace(x, gain=x.gain * number)

    def reduced(self, node: int, steps: Sequence[int]) -> int:
        """Rotate-and-add, inside an open stage."""
        for step in steps:
            node = self.b.add([(1, node), (1, self.b.rotate(node, step))])
        return node

    def turned(self, parts: Mapping[int, int]) -> int:
        """The sum of nodes, each rotated by its step, inside an open stage.

        Steps at equal distances are made one after another by the same rotation of what is summed
        so far: one key, and no more rotations or noise than one for each.
        """
        b, columns = self.b, self.b.columns
        about = {(s + columns // 2) % columns - columns // 2: n for s, n in parts.items()}
        sums = []
        for sign in (1, -1):
            sizes = sorted(abs(s) for s in about if (s >= 0) == (sign > 0))
            for run in _runs(sizes):
                total = about[sign * run[-1]]
                for low, high in zip(reversed(run[:-1]), reversed(run[1:]), strict=True):
                    turned = b.rotate(total, sign * (high - low))
                    total = b.add([(1, turned), (1, about[sign * low])])
                sums.append(b.rotate(total, sign * run[0]))
        return sums[0] if len(sums) == 1 else b.add([(1, n) for n in sums])

    def relaid(self, x: Packed, target: Layout | None) -> Packed:
        """x in another layout; the same move of the same ciphertexts is made once."""
        if target is None or target == x.layout:
            return x
        key = x.nodes, x.layout, target
        if key not in self._relaid:
            way = relay(x.layout, target)
            assert way is not None, "a plan moves tensors by ways that exist"
            self._relaid[key] = self._moved(x, way)
        return Packed(target, self._relaid[key], x.gain)

    def _moved(self, x: Packed, way: Relay) -> tuple[int, ...]:
        if way.plan is None:
            return x.nodes
        if not way.works:
            out = np.empty(way.plan.outs, np.int64)
            out[way.plan.terms.out] = way.plan.terms.into
            return tuple(x.nodes[k] for k in out)
        self.b.begin(self.source)
        if not way.masked:
            made = [0] * way.plan.outs
            t = way.plan.terms
            for o, i, s in zip(t.out.tolist(), t.into.tolist(), t.shift.tolist(), strict=True):
                turned = self.b.rotate(x.nodes[i], s)
                made[o] = self._own(self.reduced(turned, [-f for f in way.fills]), x.nodes[i])
            return tuple(self.b.end(made))
        plains = self.map_rows(
            way.plan, x.layout, way.middle, tuple((a, a) for a in x.layout.axes), {}, {}, -1
        )
        made = self.mapped(way.plan, x.nodes, plains)
        filled = [self.reduced(n, [-s for s in way.fills]) for n in made]
        return tuple(self.b.end(filled))

    def _own(self, node: int, operand: int) -> int:
        """A node of the open stage; an operand as it is becomes one."""
        return self.b.add([(1, node)]) if node == operand else node

    def map_rows(
        self,
        plan: MapPlan,
        source: Layout,
        target: Layout,
        kept: Sequence[tuple[int, int]],
        in_strides: Mapping[int, int] | None = None,
        out_strides: Mapping[int, int] | None = None,
        operand: int = -1,
        *,
        weight: np.ndarray | None = None,
        offset: int = 0,
        stride: int = 0,
        gain: float = 1.0,
    ) -> list[Plain | None]:
        """A plaintext for each term of a map, None for those that are zero.

        weight: the place of the coefficient by the sum of strides, and of `offset`.
        """
        both = [(a, b) for a, b in kept if source.pieces(a) and target.pieces(b)]
        extents = [source.shape[a] for a, _ in both]
        x, y = source, target
        again = copies(x)
        in_key, in_part = keys_and_parts(
            x, [(a, e) for (a, _), e in zip(both, extents, strict=True)], in_strides or {}, again
        )
        out_key, out_part = keys_and_parts(
            y, [(b, e) for (_, b), e in zip(both, extents, strict=True)], out_strides or {}, again
        )
        t = plan.terms
        rows = MapRows(
            out_key,
            out_part + np.int32(offset),
            in_key,
            in_part,
            t.out.astype(np.int32),
            t.into.astype(np.int32),
            t.shift,
            plan.giant,
            None if weight is None else weight.astype(np.int32),
        )
        literal = np.ones(1) if operand < 0 else None
        plains = self._rows(operand, rows, stride=stride, gain=gain, literal=literal)
        if not (x.padded or y.padded):
            return list(plains)
        return [p if there else None for p, there in zip(plains, rows.rows_any(), strict=True)]

    def looked_up(
        self,
        plan: MapPlan,
        source: Layout,
        target: Layout,
        kept: Sequence[tuple[int, int]],
        in_strides: Mapping[int, int],
        out_strides: Mapping[int, int],
        offset: int,
        table: np.ndarray,
        operand: int,
        gain: float,
        *,
        numbers: bool,
    ) -> list[Plain | None]:
        """A plaintext for each term of a map whose coefficients a table gives.

        Args:
          in_strides, out_strides: what an index along each axis adds to the place in the table.
          offset: what is added to every place. table: int32, flat element of the operand, or -1.
          numbers: whether each is one number in all slots.
        """
        if not numbers:
            return self.map_rows(
                *(plan, source, target, kept, in_strides, out_strides, operand),
                weight=table,
                offset=offset,
                gain=gain,
            )
        _, into = keys_and_parts(source, [], in_strides, [])
        _, out = keys_and_parts(target, [], out_strides, [])
        at = into[plan.terms.into, 0].astype(np.int64) + out[plan.terms.out, 0] + offset
        return list(self._rows(operand, table[at][:, None], gain=gain))

    def mapped(
        self, plan: MapPlan, nodes: Sequence[int], plains: Sequence[Plain | None]
    ) -> list[int]:
        """The rescaled results of a map, inside an open stage."""
        b = self.b
        t = plan.terms
        sums: list[dict[int, list[tuple[int, Plain]]]] = [{} for _ in range(plan.outs)]
        rows = zip(
            t.out.tolist(),
            t.into.tolist(),
            t.shift.tolist(),
            plan.giant.tolist(),
            plains,
            strict=True,
        )
        for o, i, shift, giant, plain in rows:
            if plain is None:
                continue
            turned = b.rotate(nodes[i], shift - giant)
            sums[o].setdefault(giant, []).append((turned, plain))
        made = []
        for groups in sums:
            if not groups:
                made.append(self._zero(nodes[0]))
                continue
            partial = {g: b.dot_plain(terms) for g, terms in sorted(groups.items())}
            made.append(b.rescale(self.turned(partial)))
        return made

    def _zero(self, node: int) -> int:
        (plain,) = self.literals([0.0])
        return self.b.rescale(self.b.dot_plain([(node, plain)]))

    def matrix(
        self,
        plan: MapPlan,
        x: Packed,
        target: Layout,
        kept: Sequence[tuple[int, int]],
        in_strides: Mapping[int, int],
        out_strides: Mapping[int, int],
        public: PublicPart,
        gain: float,
    ) -> list[int]:
        """The results of a product by a public tensor, inside an open stage."""
        weight = public.index.reshape(-1)
        regular = np.array_equal(weight, np.arange(weight.size))
        plains: list[Plain | None]
        if self._numbers(plan, x.layout, target, in_strides, out_strides, public):
            _, into = keys_and_parts(x.layout, [], in_strides, [])
            _, out = keys_and_parts(target, [], out_strides, [])
            at = into[plan.terms.into, 0].astype(np.int64) + out[plan.terms.out, 0]
            index = (at if regular else weight[at]).astype(np.int32)[:, None]
            plains = list(self._rows(public.operand, index, gain=gain))
        else:
            plains = self.map_rows(
                plan,
                x.layout,
                target,
                kept,
                in_strides,
                out_strides,
                public.operand,
                weight=None if regular else weight,
                stride=public.stride,
                gain=gain,
            )
        return self.mapped(plan, x.nodes, plains)

    def _numbers(
        self,
        plan: MapPlan,
        source: Layout,
        target: Layout,
        in_strides: Mapping[int, int],
        out_strides: Mapping[int, int],
        public: PublicPart,
    ) -> bool:
        """Whether every plaintext of a map is one number in all slots."""
        if public.stride or plan.terms.shift.any():
            return False
        sides = ((source, in_strides), (target, out_strides))
        return not any(layout.along_slots & set(strides) for layout, strides in sides)

    def contracted(self, plan: Contraction, left: Packed, right: Packed) -> list[int]:
        """A stage: the results of an encrypted contraction."""
        b = self.b
        b.begin(self.source)
        one = self.literals([1.0])[0] if plan.masked else None
        rows = self._maskings(plan) if plan.masked else []
        versions = _Versions(b, (left.nodes, plan.left, plan.left_step), 1)
        others = _Versions(b, (right.nodes, plan.right, plan.right_step), 2)
        groups: dict[tuple[int, int], list[int]] = {}
        for k, key in enumerate(zip(plan.out.tolist(), plan.turn.tolist(), strict=True)):
            groups.setdefault(key, []).append(k)
        masked: dict[tuple[int, Plain], int] = {}
        parts: dict[int, dict[int, int]] = {}
        # One sum after the other, so that few rotated and masked ciphertexts are alive at a time.
        for repeat, ((out, turn), members) in itertools.product(plan.repeats, groups.items()):
            terms: list[tuple[int, int, int]] = []
            meet: dict[int, list[tuple[int, Plain]]] = {}
            for k in members:
                x, y = versions.get(k, repeat), others.get(k, repeat)
                if not plan.masked:
                    terms.append((1, x, y))
                    continue
                plain = rows[k] if rows[k] is not None else one
                assert plain is not None
                own, other = (x, y) if plan.mask_left else (y, x)
                if plan.merged:
                    meet.setdefault(other, []).append((own, plain))
                    continue
                if (own, plain) not in masked:
                    masked[own, plain] = b.dot_plain([(own, plain)])
                terms.append((1, masked[own, plain], other))
            terms += [(1, b.dot_plain(pairs), other) for other, pairs in meet.items()]
            parts.setdefault(out + repeat[0], {})[turn] = b.rescale(b.dot(terms))
        made = [self.turned(parts[o]) for o in range(plan.layout.ciphertexts)]
        return b.end(made)

    def _maskings(self, plan: Contraction) -> list[Plain | None]:
        """The mask of each term, None where it leaves everything; equal ones are one."""
        assert plan.shown is not None, "a plan that was counted by samples is not emitted"
        keys = list(zip(plan.shown.number.tolist(), plan.turn.tolist(), strict=True))
        row: dict[tuple[int, int], int | None] = {}
        known: dict[bytes, int] = {}
        for k, key in enumerate(keys):
            if key not in row:
                mask = plan.mask(k)
                bits = np.packbits(mask).tobytes()
                row[key] = None if mask.all() else known.setdefault(bits, len(known))
        packed = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
        plains: list[Plain] = []
        for start in range(0, len(packed), _MASKS):
            held = np.unpackbits(packed[start : start + _MASKS], axis=1, count=self.b.columns)
            plains += self.masks(held.astype(bool))
        found = (row[key] for key in keys)
        return [None if r is None else plains[r] for r in found]


class _Versions:
    """Rotated ciphertexts of an operand, each made when it is asked for, in chains: few steps, so
    few keys.

    A chain needs as many rotations as one from the ciphertext itself for each version.
    """

    def __init__(
        self, b: Builder, operand: tuple[Sequence[int], np.ndarray, np.ndarray], which: int
    ):
        self.b, self.which = b, which
        self.nodes, self.cipher, self.step = operand
        self._made: dict[tuple[int, int], int] = {}
        self._before: dict[int, dict[int, int]] = {}
        for cipher in np.unique(self.cipher).tolist():
            steps = set(self.step[self.cipher == cipher].tolist())
            self._before[cipher] = dict(chain(frozenset(steps - {0}), b.columns))

    def get(self, k: int, repeat: tuple[int, int, int]) -> int:
        cipher, step = int(self.cipher[k]), int(self.step[k])
        node = self.nodes[cipher + repeat[self.which]]
        way: list[int] = []
        while step and (node, step) not in self._made:
            way.append(step)
            step = self._before[cipher][step]
        made = self._made[node, step] if step else node
        for after in reversed(way):
            made = self._made[node, after] = self.b.rotate(made, after - step)
            step = after
        return made


def _runs(steps: Sequence[int]) -> list[list[int]]:
    """Ascending steps cut into runs of equal distance; a step by itself is a run."""
    out: list[list[int]] = []
    for step in steps:
        run = out[-1] if out else None
        if run and (len(run) == 1 or step - run[-1] == run[1] - run[0]):
            run.append(step)
        else:
            out.append([step])
    return out


@functools.lru_cache(maxsize=256)
def chain(steps: frozenset[int], columns: int) -> tuple[tuple[int, int], ...]:
    """An order to make rotations in, each from one made before: (step, the step it is made from).

    Steps between them are few: the most frequent differences are taken, until all are reached.
    """
    if len(steps) < 4:
        return tuple((s, 0) for s in sorted(steps))
    points = np.array(sorted(steps | {0}), np.int64)
    differences = (points[:, None] - points[None, :]) % columns
    found, counts = np.unique(differences[differences != 0], return_counts=True)
    left = np.zeros(columns, bool)
    left[points[points != 0]] = True
    made = [0]
    taken: list[int] = []
    out: list[tuple[int, int]] = []
    for extra in found[np.argsort(-counts, kind="stable")].tolist():
        if not left[(np.array(made) + extra) % columns].any():
            continue
        taken.append(extra)
        # What was made before is closed under the steps before: only the new one leads on.
        queue: deque[tuple[int, tuple[int, ...]]] = deque((here, (extra,)) for here in made)
        while queue:
            here, tried = queue.popleft()
            for step in tried:
                there = (here + step) % columns
                if left[there]:
                    left[there] = False
                    out.append((there, here))
                    made.append(there)
                    queue.append((there, tuple(taken)))
        if len(made) == len(points):
            break
    return tuple(out)


def spread(layout: Layout, index: np.ndarray) -> np.ndarray:
    """int32 (ciphertexts, columns): `index` of the element that each position holds, else -1."""
    found, live = grid(layout)
    pick = []
    for axis, extent in enumerate(layout.shape):
        if axis in found:
            pick.append(np.minimum(found[axis], extent - 1))
        else:
            pick.append(np.zeros((1, 1), np.int32))
    if not pick:
        value = np.broadcast_to(index, live.shape)
    else:
        value = np.broadcast_to(index[tuple(pick)], live.shape)
    return np.where(live, value, -1).astype(np.int32)


def reduced_groups(em: Emission, x: Packed, plan: Reduction) -> list[int]:
    """A stage: sums over ciphertexts and columns."""
    b = em.b
    b.begin(em.source)
    made = []
    for group in plan.groups:
        nodes = [x.nodes[k] for k in group]
        total = b.add([(1, n) for n in nodes])
        made.append(em.reduced(total, plan.steps))
    return b.end(made)
