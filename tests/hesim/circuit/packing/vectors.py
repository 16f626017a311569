"""Kernels on slot vectors: random layouts, what they hold, and what a Builder's nodes compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Kind
from hesim.circuit.packing.emission import Emission, Packed
from hesim.circuit.packing.layout import GAP, REPLICATED, Coordinate, Layout, Roll, grid
from hesim.circuit.packing.offers.offer import Rule, Setting
from hesim.circuit.packing.operations import operations
from hesim.circuit.publics import Publics
from hesim.circuit.shape import StageShape
from hesim.program import Program

COUNTED = {
    Kind.ROTATE: "rotations",
    Kind.DOT: "products",
    Kind.DOT_PLAIN: "plain products",
    Kind.RELINEARIZE: "relinearizations",
    Kind.RESCALE: "rescales",
}


class Machine:
    """An Emission whose nodes are run on NumPy vectors."""

    def __init__(self, columns: int, rng: np.random.Generator):
        self.rng = rng
        self.b = Builder(columns, 1, 1)
        self.em = Emission(None, None, self.b, {}, {})  # type: ignore[arg-type]
        self.vectors: list[np.ndarray] = []

    def pack(self, layout: Layout, tensor: np.ndarray) -> Packed:
        """A tensor in fresh ciphertexts; what is no element is zero, or anything."""
        live = grid(layout)[1]
        anything = 0.0 if layout.zeros else 100 * self.rng.normal(size=live.shape)
        first = len(self.vectors)
        self.vectors += list(np.where(live, spread(layout, tensor), anything))
        b = self.b
        b.begin(-1)
        everywhere = np.ones(b.columns, bool)
        nodes = b.end([b.input(k, everywhere) for k in range(first, len(self.vectors))])
        return Packed(layout, tuple(nodes))

    def read(self, nodes: Iterable[int], publics: Sequence[np.ndarray] = ()) -> np.ndarray:
        """What nodes hold: (nodes, columns)."""
        made: list[np.ndarray] = []
        for node in self.b.nodes:
            terms = list(node.terms)
            match node.kind:
                case Kind.INPUT:
                    made.append(self.vectors[node.param])
                case Kind.ADD:
                    made.append(sum(f * made[n] for f, n, _ in terms))  # type: ignore[arg-type]
                case Kind.DOT:
                    made.append(sum(f * made[n] * made[m] for f, n, m in terms))  # type: ignore
                case Kind.DOT_PLAIN:
                    made.append(sum(made[n] * self._plain(p, publics) for _, n, p in terms))  # type: ignore
                case Kind.ROTATE:
                    made.append(np.roll(made[terms[0][1]], -node.param))
                case _:
                    made.append(made[terms[0][1]])
        return np.stack([made[n] for n in nodes])

    def _plain(self, plain: tuple[int, int], publics: Sequence[np.ndarray]) -> np.ndarray | float:
        return self.b.packs[plain[0]].vector(plain[1], publics)

    def spent(self) -> dict[str, int]:
        """Instructions so far; products by their terms."""
        out = dict.fromkeys(COUNTED.values(), 0)
        for node in self.b.nodes:
            if node.kind in COUNTED:
                product = node.kind in (Kind.DOT, Kind.DOT_PLAIN)
                out[COUNTED[node.kind]] += len(node.terms) if product else 1
        return out


def foretold(works: Iterable[StageShape]) -> dict[str, int]:
    """Instructions of stages."""
    out = dict.fromkeys(COUNTED.values(), 0)
    for work in works:
        for row, number in work.rows.items():
            if row.kind in COUNTED:
                product = row.kind in (Kind.DOT, Kind.DOT_PLAIN)
                out[COUNTED[row.kind]] += number * (row.terms if product else 1)
    return out


def spread(layout: Layout, tensor: np.ndarray) -> np.ndarray:
    """The element at each position, whichever where there is none."""
    index, live = grid(layout)
    shape = layout.shape
    pick = tuple(
        np.minimum(index[a], shape[a] - 1) if a in index else np.zeros((1, 1), int)
        for a in range(len(shape))
    )
    return np.broadcast_to(tensor[pick] if shape else tensor, live.shape)


def holds(layout: Layout, found: np.ndarray, tensor: np.ndarray) -> None:
    """Asserts that vectors hold a tensor, and zeros where they are promised."""
    live = grid(layout)[1]
    assert found.shape == live.shape
    error = np.abs(found - spread(layout, tensor))[live].max()
    assert error < 1e-9 * max(1.0, np.abs(tensor).max()), f"{error:.2g} in {layout}"
    if layout.zeros and not live.all():
        assert np.abs(found[~live]).max() < 1e-9, f"no zeros in {layout}"


def random_layout(
    rng: np.random.Generator, shape: Sequence[int], columns: int, *, rolled: bool = True
) -> Layout:
    """Any layout of a tensor: pieces of axes in any order on columns and ciphertexts, padded,
    replicated, with gaps, rolled by other axes and by replicated coordinates.
    """
    pieces: list[Coordinate] = []
    for axis, extent in enumerate(shape):
        if extent > 1:
            pieces += _pieces(rng, axis, extent)
    slots: list[Coordinate] = []
    ciphers: list[Coordinate] = []
    room = columns
    for k in rng.permutation(len(pieces)).tolist():
        c = pieces[k]
        if c.size & (c.size - 1) or c.size > room or rng.random() < 0.3:
            ciphers.append(c._replace(size=min(c.size, -(-shape[c.axis] // c.stride))))
        else:
            slots.append(c)
            room //= c.size
    while room > 1:
        size = 2 ** int(rng.integers(1, room.bit_length()))
        kind = GAP if rng.random() < 0.25 else REPLICATED
        slots.insert(int(rng.integers(0, len(slots) + 1)), Coordinate(kind, size))
        room //= size
    rolls: list[Roll] = []
    if rolled:
        slots, rolls = _rolls(rng, shape, slots, ciphers)
    zeros = bool(rng.random() < 0.6)
    return Layout(tuple(shape), tuple(slots), tuple(ciphers), tuple(sorted(rolls)), zeros)


def _pieces(rng: np.random.Generator, axis: int, extent: int) -> list[Coordinate]:
    out = []
    stride = 1
    size = extent
    while size > 1:
        divisors = [d for d in range(2, size) if size % d == 0]
        if divisors and rng.random() < 0.5:
            taken = int(rng.choice(divisors))
        else:
            taken = size if rng.random() < 0.3 else 1 << (size - 1).bit_length()
        out.append(Coordinate(axis, taken, stride))
        stride, size = stride * taken, -(-size // taken)
    return out


def _rolls(
    rng: np.random.Generator,
    shape: Sequence[int],
    slots: list[Coordinate],
    ciphers: list[Coordinate],
) -> tuple[list[Coordinate], list[Roll]]:
    slots = [
        c._replace(stride=k + 1) if c.axis == REPLICATED and rng.random() < 0.2 else c
        for k, c in enumerate(slots)
    ]
    whole = Layout(tuple(shape), tuple(slots), tuple(ciphers))
    free = [a for a in whole.axes if whole.extent(a) == shape[a]]
    out = []
    rng.shuffle(free)
    rolled = set(free[: int(rng.integers(0, len(free) + 1))])
    for axis in rolled:
        for c in (*slots, *ciphers):
            by = c.axis not in rolled if c.axis >= 0 else c.axis == REPLICATED and c.stride > 0
            if by and rng.random() < 0.3:
                out.append(Roll(axis, c.axis, c.stride, int(rng.choice([-1, 1]))))
    marks = {r.by_stride for r in out if r.by_axis == REPLICATED}
    slots = [
        c._replace(stride=0) if c.axis == REPLICATED and c.stride not in marks else c for c in slots
    ]
    return slots, out


def elements(layout: Layout) -> Mapping[tuple[int, ...], list[tuple[int, int]]]:
    """(ciphertext, column) of all places of each element, by the definition, one at a time."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for cipher in range(math.prod(c.size for c in layout.ciphers)):
        for column in range(math.prod(c.size for c in layout.slots)):
            index = [0] * len(layout.shape)
            position = {}
            live = True
            for group, number in ((layout.slots, column), (layout.ciphers, cipher)):
                for c in group:
                    number, p = divmod(number, c.size)
                    position[c.axis, c.stride] = p
                    live = live and not (c.axis == GAP and p)
                    if c.axis >= 0:
                        index[c.axis] += p * c.stride
            for r in layout.rolls:
                index[r.axis] += r.factor * position[r.by_axis, r.by_stride]
            for axis in {r.axis for r in layout.rolls}:
                index[axis] %= layout.shape[axis]
            if live and all(i < d for i, d in zip(index, layout.shape, strict=True)):
                found.setdefault(tuple(index), []).append((cipher, column))
    return found


def checked_offers(
    rules: Sequence[Rule], program: Program, layout: Layout, x: np.ndarray, wanted: np.ndarray
) -> int:
    """Offers of a program of one operation on x, each written, run and counted; how many.

    wanted: what the operation gives.
    """
    rng = np.random.default_rng(0)
    axes = dict.fromkeys(v.id for v in (*program.inputs, *program.ops[0].outputs))
    publics = Publics(program)
    setting = Setting(program, publics, axes, layout.columns, {}, {}, {})
    (op,) = operations(program, axes)
    count = 0
    for offer in (o for rule in rules for o in rule(setting, op, (layout,))):
        machine = Machine(layout.columns, rng)
        machine.em.publics = publics
        ((_, brought),) = offer.moves((layout,))
        (made,) = offer.emit(machine.em, op, (machine.pack(brought or layout, x),))
        assert made.layout == offer.outs[0]
        holds(made.layout, machine.read(made.nodes, publics.evaluate([None])), wanted)
        assert machine.spent() == foretold(offer.works)
        count += 1
    return count
