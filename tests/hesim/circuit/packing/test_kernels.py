"""Kernels between random layouts: values on slot vectors, and as many instructions as foretold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hesim.circuit.packing.arrangement import (
    cipher_table,
    cleared,
    joined,
    like,
    reduction,
    relay,
    shears,
)
from hesim.circuit.packing.contractions import Labels, contraction, results
from hesim.circuit.packing.costs import contraction_work, map_work, shaped
from hesim.circuit.packing.emission import reduced_groups
from hesim.circuit.packing.gathering import gathering
from hesim.circuit.packing.layout import GAP, REPLICATED, Coordinate, Layout, Roll, grid, places
from hesim.circuit.packing.maps import map_plan
from hesim.circuit.packing.offers.movement import reshaped
from tests.hesim.circuit.packing.vectors import Machine, elements, foretold, holds, random_layout

Case = Callable[[np.random.Generator], bool]
"""Checks one random case; whether there was anything to check."""

SIZES = (1, 2, 3, 4, 4, 5, 6, 8, 8, 12)
LETTERS = "abcdefghijkl"


def some_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """One to three axes of different sizes or of one."""
    count = int(rng.integers(1, 4))
    while True:
        alike = [int(rng.choice([2, 4]))] * count
        sizes = alike if rng.random() < 0.3 else rng.choice(SIZES, count).tolist()
        if np.prod(sizes) <= 200:
            return tuple(sizes)


def some_columns(rng: np.random.Generator) -> int:
    return int(rng.choice([16, 32, 64]))


def element_places(rng: np.random.Generator) -> bool:
    layout = random_layout(rng, some_shape(rng), some_columns(rng) // 2)
    found = elements(layout)
    cipher, column = places(layout)
    assert len(found) == np.prod(layout.shape)
    assert grid(layout)[1].sum() == sum(map(len, found.values()))
    for index in np.ndindex(*layout.shape):
        assert (cipher[index], column[index]) == min(found[index])
    assert elements(layout.canonical()) == found
    return True


def relayout(rng: np.random.Generator) -> bool:
    shape, columns = some_shape(rng), some_columns(rng)
    source = random_layout(rng, shape, columns).canonical()
    target = random_layout(rng, shape, columns).canonical()
    if rng.random() < 0.3:
        target = next(shears(source), target)
    way = relay(source, target)
    assert way is not None
    machine = Machine(columns, rng)
    tensor = rng.normal(size=shape)
    x = machine.em.relaid(machine.pack(source, tensor), target)
    holds(target, machine.read(x.nodes), tensor)
    assert machine.spent() == foretold(way.works)
    return True


def public_map(rng: np.random.Generator) -> bool:
    """out[kept, fresh] = sum over contracted of weight * in[kept, contracted], in any order."""
    kept, summed, fresh = (int(rng.integers(low, 3)) for low in (0, 1, 0))
    sizes = [int(d) for d in rng.choice([2, 3, 4, 4, 5, 8], kept + summed + fresh)]
    if np.prod(sizes) > 800:
        return False
    columns = some_columns(rng) // 2
    own = rng.permutation(kept + summed).tolist()
    other = rng.permutation([*range(kept), *range(kept + summed, len(sizes))]).tolist()
    order = rng.permutation(len(sizes)).tolist()
    source, target = (
        random_layout(rng, [sizes[k] for k in names], columns).canonical() for names in (own, other)
    )
    same = tuple((own.index(k), other.index(k)) for k in range(kept))
    plan = map_plan(source, target, same)
    assert plan is not None
    stride = {k: int(np.prod([sizes[j] for j in order[i + 1 :]])) for i, k in enumerate(order)}
    machine = Machine(columns, rng)
    weight = rng.normal(size=[sizes[k] for k in order])
    tensor = rng.normal(size=source.shape)
    x = machine.pack(source, tensor)
    machine.b.begin(0)
    rows = machine.em.map_rows(
        plan,
        source,
        target,
        same,
        {own.index(k): stride[k] for k in own if k >= kept},
        {other.index(k): stride[k] for k in other},
        0,
    )
    made = machine.b.end(machine.em.mapped(plan, x.nodes, rows))
    terms = ",".join("".join(LETTERS[k] for k in names) for names in (own, order))
    wanted = np.einsum(f"{terms}->{''.join(LETTERS[k] for k in other)}", tensor, weight)
    holds(target, machine.read(made, [weight]), wanted)
    assert machine.spent() == foretold([map_work(plan)])
    return True


def table_move(rng: np.random.Generator) -> bool:
    """Elements of two operands, or zeros, anywhere."""
    columns = some_columns(rng)
    sources = [random_layout(rng, some_shape(rng), columns).canonical() for _ in range(2)]
    shape = some_shape(rng)
    target = random_layout(rng, shape, columns, rolled=False).canonical()
    tensors = [rng.normal(size=x.shape) for x in sources]
    every = np.concatenate([t.reshape(-1) for t in tensors])
    taken = rng.integers(-1, len(every), shape)
    plan = gathering(sources, target, taken, dirty=bool(rng.random() < 0.5))
    if plan is None:
        assert np.all(taken < 0)
        return False
    machine = Machine(columns, rng)
    packed = [machine.pack(x, t) for x, t in zip(sources, tensors, strict=True)]
    nodes = plan.emit(machine.em, [n for x in packed for n in x.nodes])
    wanted = np.where(taken < 0, 0.0, every[taken])
    holds(plan.layout, machine.read(nodes), wanted)
    spent, told = machine.spent(), foretold(plan.works)
    if len(np.unique(plan.plan.terms.out)) == plan.plan.outs:  # else some results are zero
        assert spent == told
    return True


def summed(rng: np.random.Generator) -> bool:
    shape, columns = some_shape(rng), some_columns(rng)
    layout = random_layout(rng, shape, columns).canonical()
    axes = tuple(k for k in range(len(shape)) if rng.random() < 0.5)
    names = tuple(k for k in range(len(shape)) if k not in axes)
    plan = reduction(layout, axes, names)
    if plan is None:
        return False
    machine = Machine(columns, rng)
    tensor = rng.normal(size=shape)
    made = reduced_groups(machine.em, machine.pack(layout, tensor), plan)
    constant = np.prod([shape[k] for k in axes if not layout.pieces(k)])
    holds(plan.layout, machine.read(made) * constant, tensor.sum(axes))
    assert machine.spent() == foretold([shaped(plan.rows(), 0, 1)])
    return True


def meeting(rng: np.random.Generator) -> bool:
    shape, columns = some_shape(rng), some_columns(rng)
    model = random_layout(rng, shape, columns).canonical()
    axes = [k for k in range(len(shape)) if rng.random() < 0.6 and shape[k] > 1]
    part = tuple(d if k in axes else 1 for k, d in enumerate(shape))
    other = like(model, axes, part, bool(rng.random() < 0.6))
    if other is None:
        return False
    if rng.random() < 0.3:
        model = random_layout(rng, shape, columns).canonical()
    both = joined(model, other, shape)
    if both is None:
        return False
    machine = Machine(columns, rng)
    x, y = rng.normal(size=shape), rng.normal(size=part)
    one, two = (
        machine.read(machine.pack(layout, t).nodes)[cipher_table(both, layout)]
        for layout, t in ((model, x), (other, y))
    )
    holds(both, one + two, x + y)
    holds(cleared(both, model, other), one * two, x * y)
    return True


def other_shape(rng: np.random.Generator) -> bool:
    shape, columns = some_shape(rng), some_columns(rng)
    layout = random_layout(rng, shape, columns, rolled=bool(rng.random() < 0.5)).canonical()
    if rng.random() < 0.3:
        constant = int(rng.integers(len(shape)))
        axes = [k for k in layout.axes if k != constant]
        layout = like(layout, axes, shape, layout.zeros) or layout
    ways = [(int(np.prod(shape)),)]
    for k, d in enumerate(shape):
        ways += [(*shape[:k], c, d // c, *shape[k + 1 :]) for c in range(1, d) if d % c == 0]
        if k + 1 < len(shape):
            ways.append((*shape[:k], d * shape[k + 1], *shape[k + 2 :]))
    wanted = ways[int(rng.integers(len(ways)))]
    found = reshaped(layout, wanted)
    if found is None:
        return False
    tensor = rng.normal(size=shape)
    for k in range(len(shape)):
        if not layout.pieces(k):
            tensor = np.broadcast_to(tensor.take([0], axis=k), shape)
    machine = Machine(columns, rng)
    after = tensor.reshape(wanted)
    holds(found, machine.read(machine.pack(layout, tensor).nodes), after)
    for k in range(len(wanted)):
        assert found.pieces(k) or np.all(after == after.take([0], axis=k))
    return True


def contracted(rng: np.random.Generator) -> bool:
    """All results of an encrypted contraction, of operands as they lie and sheared."""
    batch, free, other, summed = (int(n) for n in rng.integers([0, 0, 0, 0], 3, 4))
    axes = batch + free + other + summed
    sizes = [int(d) for d in rng.choice([2, 3, 4, 4, 5, 8], axes)]
    if rng.random() < 0.5:
        sizes = [int(rng.choice([2, 4]))] * axes
    if not 0 < axes < 5 or np.prod(sizes) > 1500:
        return False
    cuts = np.split(np.arange(axes), np.cumsum([batch, free, other]))
    shared, mine, others, gone = (c.tolist() for c in cuts)
    left = rng.permutation(shared + mine + gone).astype(int).tolist()
    right = rng.permutation(shared + others + gone).astype(int).tolist()
    labels = Labels(tuple(left), tuple(right), tuple(range(axes - summed)), tuple(sizes))
    columns = some_columns(rng)
    model = random_layout(rng, sizes, columns, rolled=False)
    again = _exchanged(model, mine, others, sizes) if rng.random() < 0.7 else model
    pair = [_restricted(rng, x, n, sizes) for x, n in ((model, left), (again, right))]
    ways = [[x, *shears(x)] for x in pair if x is not None]
    if len(ways) < 2:
        return False
    both = [(x, y) for x in ways[0] for y in ways[1]]
    rng.shuffle(both)
    checked = False
    for x, y in both[:12]:
        for out in results(x, y, labels):
            checked |= _one_contraction(rng, columns, (x, y), out, labels)
    return checked


def _exchanged(model: Layout, mine: list[int], others: list[int], sizes: list[int]) -> Layout:
    """The model with a digit of the right operand where the left one has one of its own."""
    if not (mine and others) or model.padded or sizes[mine[0]] != sizes[others[0]]:
        return model
    a, b = mine[0], others[0]
    names = {k: k for k in range(len(sizes))} | {a: b, b: a}
    return model.renamed(sizes, names)


def _restricted(
    rng: np.random.Generator, model: Layout, names: list[int], sizes: list[int]
) -> Layout | None:
    axes = [k for k in names if sizes[k] > 1]
    return like(model, axes, sizes, bool(rng.random() < 0.6))


def _one_contraction(
    rng: np.random.Generator,
    columns: int,
    pair: tuple[Layout, Layout],
    out: Layout,
    labels: Labels,
) -> bool:
    plan = contraction(*pair, out, labels)
    if plan is None:
        return False
    machine = Machine(columns, rng)
    tensors = []
    for names in (labels.left, labels.right):
        shape = [d if k in names else 1 for k, d in enumerate(labels.sizes)]
        tensors.append(np.broadcast_to(rng.normal(size=shape), labels.sizes))
    x, y = (machine.pack(layout, t) for layout, t in zip(pair, tensors, strict=True))
    made = machine.em.contracted(plan, x, y)
    wanted = (tensors[0] * tensors[1]).sum(labels.summed, keepdims=True)
    holds(out, machine.read(made), np.broadcast_to(wanted, labels.sizes))
    spent, told = machine.spent(), foretold([contraction_work(plan)])
    del spent["plain products"], told["plain products"]  # masks that are alike are one
    assert spent == told
    return True


CASES: dict[str, tuple[Case, int]] = {
    "places": (element_places, 15),
    "relay": (relayout, 40),
    "map": (public_map, 40),
    "move by a table": (table_move, 40),
    "reduction": (summed, 60),
    "joined": (meeting, 60),
    "reshaped": (other_shape, 60),
    "contraction": (contracted, 60),
}
"""Cases, and how many of them are tried by default."""


@pytest.mark.parametrize("name", CASES)
def test_random_layouts(name):
    case, count = CASES[name]
    checked = [case(np.random.default_rng(seed)) for seed in range(count)]
    assert sum(checked) >= count // 5


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 5000, 500))
@pytest.mark.parametrize("name", CASES)
def test_many_random_layouts(name, start):
    for seed in range(start, start + 500):
        CASES[name][0](np.random.default_rng(seed))


def test_marks_of_replicated_coordinates_are_told_apart():
    """Two tensors rolled by different replicated coordinates under one mark meet where they are."""
    rng = np.random.default_rng(0)
    row, column = Coordinate(0, 4, 1), Coordinate(1, 4, 1)
    plain, marked = Coordinate(REPLICATED, 4), Coordinate(REPLICATED, 4, 1)
    x = Layout((4, 1), (marked, plain), (row,), (Roll(0, REPLICATED, 1, 1),))
    y = Layout((1, 4), (plain, marked), (column,), (Roll(1, REPLICATED, 1, 1),))
    both = joined(x, y)
    assert both is not None
    machine = Machine(16, rng)
    a, b = rng.normal(size=(4, 1)), rng.normal(size=(1, 4))
    one, two = (
        machine.read(machine.pack(layout, t).nodes)[cipher_table(both, layout)]
        for layout, t in ((x, a), (y, b))
    )
    holds(both, one + two, a + b)


@pytest.mark.parametrize("seed", [4021, 1208])
def test_steps_that_do_the_same_are_one(seed):
    """Giant steps a whole turn apart, of operands that repeat; and moves without any."""
    assert table_move(np.random.default_rng(seed))


def test_ciphertexts_of_a_gap_are_found_without_dividing_by_its_stride():
    part = Layout((1, 4), (Coordinate(1, 4, 1),), (Coordinate(GAP, 2), Coordinate(0, 1, 1)))
    with np.errstate(all="raise"):
        assert cipher_table(part, part).tolist() == [0, 0]
