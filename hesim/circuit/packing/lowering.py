"""A Program lowered by a plan of the search."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hesim.circuit.aims.aim import SPARE
from hesim.circuit.aims.carried import HandedOn, Pair
from hesim.circuit.batching.axes import batch_axes, candidates
from hesim.circuit.builder import Builder
from hesim.circuit.circuit import PlaintextFamily, TensorLocation
from hesim.circuit.layout import stripped
from hesim.circuit.packing.costs import Prices
from hesim.circuit.packing.emission import Emission, Packed, spread
from hesim.circuit.packing.inputs import factors
from hesim.circuit.packing.offers.offer import Offer, Setting, of_one_member
from hesim.circuit.packing.operations import Operation, operations
from hesim.circuit.packing.ranges import fitted_wishes
from hesim.circuit.packing.search import NoPlan, Plan, search
from hesim.circuit.packing.wishes import expected_gains, wishes
from hesim.circuit.publics import Publics
from hesim.circuit.refresher import Refresher
from hesim.errors import LayoutError
from hesim.params import CKKSParams
from hesim.program import Program, Var
from hesim.progress import CompileWatch

__all__ = ["PackedLowering", "lowerings"]

_NEAR = 1.5
"""Times the best plan's seconds beyond which others are not followed."""

_LARGE_BATCH = 32
"""Members of a batch that always lie side by side in the columns: with fewer, each may have
ciphertexts of its own.
"""

_MOST_INPUTS = 20_000
"""Ciphertexts of one input beyond which a layout is not tried."""

_FINALISTS = 3
"""Plans of one batch axis that are written, to be compared by their levels."""

_MOST_WRITTEN = 50_000
"""Terms of all plans that are written to be compared, about a second; larger ones go by what the
search predicts.
"""


class PackedLowering:
    """A Program as stages, by a plan.

    Attributes:
      builder: its stages. publics: its public operands. inputs: its encrypted inputs.
      plan: layouts and choices. carried: results as they are arguments at the next run.
    """

    def __init__(
        self,
        setting: Setting,
        plan: Plan,
        log_n: int,
        batch: int,
        width: int,
    ):
        self.setting, self._made_for = setting, (log_n, batch, width)
        self.program, self.plan, self.publics = setting.program, plan, setting.publics
        self.builder = Builder(setting.columns, width, batch, log_n=log_n)
        self.emission = Emission(
            self.program, self.publics, self.builder, setting.axes, setting.wishes
        )
        self.inputs = tuple(self._place_inputs())
        for op, offer, _ in plan.steps:
            self.emission.at(op.numbers[0], op.equations[0])
            made = offer.emit(self.emission, op, self._brought(op, offer))
            for v, x in zip(op.outputs, made, strict=True):
                gain = setting.applied.get(v.id, x.gain)
                self.emission.values[v.id] = self.emission.with_gain(x, gain)
        self.carried = {pair: self._handed_on(pair) for pair in plan.carried}

    def refitted(
        self, values: Mapping[int, float], most: float, refreshed: Collection[int]
    ) -> PackedLowering | None:
        """The same plan with other gains, where these make slots that are refreshed hold `most` at
        most, and half of it at least; None if there are none.

        Args:
          values: largest absolute values of results, by number of the operation.
          refreshed: ids of the values that are.
        """
        program, publics, s = self.program, self.publics, self.setting
        wished = fitted_wishes(
            *(program, publics, wishes(program, publics), _sizes(program, values), most),
            start=s.wishes,
            refreshed=refreshed,
        )
        if wished == s.wishes:
            return None
        return self._with(wished, s.applied)

    def scaled(
        self, values: Mapping[int, float], most: float, refreshed: Collection[int]
    ) -> PackedLowering | None:
        """The same plan with slots that are refreshed brought to `most` by a product where they
        hold more; None if none do. Arguments as for `refitted`.
        """
        sizes, applied = _sizes(self.program, values), dict(self.setting.applied)
        for v in refreshed:
            gain = self.emission.values[v].gain
            over = sizes.get(v, 0.0) / abs(gain) / most
            if over > 1.0:
                applied[v] = gain * 2.0 ** math.ceil(math.log2(over))
        if applied == self.setting.applied:
            return None
        return self._with(self.setting.wishes, applied)

    def _with(self, wished: Mapping[int, float], applied: Mapping[int, float]) -> PackedLowering:
        found = expected_gains(self.program, self.publics, {**wished, **applied})
        setting = replace(self.setting, wishes=wished, applied=applied, gains=found)
        return PackedLowering(setting, self.plan, *self._made_for)

    def _handed_on(self, pair: Pair) -> HandedOn:
        """A carried result as its argument lies, refreshed to where that starts from."""
        em = self.emission
        x = em.values[pair.result.id]
        if pair.result is not pair.argument:
            x = em.with_gain(em.relaid(x, self.plan.inputs[pair.argument.id]), 1.0)
            em.b.begin(em.source)
            nodes = em.b.end([em.b.refresh(n) for n in x.nodes], refreshed=True)
            x = replace(x, nodes=tuple(nodes))
        return HandedOn(x.nodes, functools.partial(em.location, x, pair.result))

    def _brought(self, op: Operation, offer: Offer) -> tuple[Packed, ...]:
        """The operands where an offer wants them."""
        xs = [self.emission.values[v.id] for v in op.operands]
        whole = tuple(x.layout for x in xs)
        seen = of_one_member(self.setting, op, whole) or whole  # tables see whole operands, too
        xs = [replace(x, layout=layout) for x, layout in zip(xs, seen, strict=True)]
        moves = offer.moves(seen)
        return tuple(
            self.emission.relaid(xs[min(k, len(xs) - 1)], to) for k, (_, to) in enumerate(moves)
        )

    def _place_inputs(self) -> Iterator[PlaintextFamily]:
        b, em = self.builder, self.emission
        row = 0
        for number, var in enumerate(v for v in self.program.inputs if v.encrypted):
            axis = em.axis(var)
            layout = self.plan.inputs.get(var.id)
            flat = np.arange(var.size).reshape(var.shape)
            stride = 0 if axis is None else int(np.prod(var.shape[axis + 1 :], dtype=np.int64))
            if layout is None:  # nothing reads it
                yield PlaintextFamily(
                    number, np.zeros((0, b.columns), np.int32), stride, b.batch, b.width, b.columns
                )
                continue
            table = spread(layout, np.asarray(flat if axis is None else flat.take(0, axis=axis)))
            yield PlaintextFamily(number, table, stride, b.batch, b.width, b.columns)
            b.begin(-1)
            nodes = b.end([b.input(row + k, table[k] >= 0) for k in range(len(table))])
            row += len(table)
            em.values[var.id] = Packed(layout, tuple(nodes))

    def nodes(self, var: Var) -> tuple[int, ...]:
        """Nodes that hold a value; none if it has no place of its own."""
        found = self.emission.values.get(var.id)
        return () if found is None else found.nodes

    def gain(self, var: Var) -> float:
        """A value is its gain times what slots hold; 1 if it has no place of its own."""
        found = self.emission.values.get(var.id)
        return 1.0 if found is None else found.gain

    def layout(self, var: Var) -> str:
        """Where a value lies in its ciphertexts; empty if it has no place of its own."""
        found = self.emission.values.get(var.id)
        return "" if found is None else str(found.layout)

    def location(self, var: Var, op: int, where: np.ndarray) -> TensorLocation | None:
        """Where a value lies, None if it has no place of its own."""
        x = self.emission.values.get(var.id)
        return None if x is None else self.emission.location(x, var, op, where)


def lowerings(
    program: Program,
    params: CKKSParams,
    price: float | None,
    refresher: Refresher,
    batch: bool,
    beam: int = 32,
    bound: float = math.inf,
    watch: CompileWatch | None = None,
    most: int = _MOST_INPUTS,
    carried: Sequence[Pair] = (),
    refused: list[Exception] | None = None,
    values: Mapping[int, float] | None = None,
) -> Iterator[PackedLowering]:
    """The best plans, lowered: those with the batch along the width of the columns, then those that
    treat it as any other axis.

    most: ciphertexts that an input is laid out in. carried: results handed to the next run.
    refused: gets what stood in the way, if it is given: of searches a `NoPlan`, of what could not
    be written a LayoutError. values: largest absolute values of results, by number of the
    operation, which a refresher with a range wants slots to hold within it.
    """
    refused = [] if refused is None else refused
    secret = [v for v in program.inputs if v.encrypted]
    if not secret or any(0 in v.shape for e in program.ops for v in (*e.inputs, *e.outputs)):
        return
    found: list[_Found] = []
    for axes, size in _batches(program, secret, params.slots, batch):
        if any(axes.get(pair.result.id) != axes.get(pair.argument.id) for pair in carried):
            continue  # members of a batch at one end, and not at the other
        columns = params.slots // _width(size)
        setting = _setting(program, axes, columns, values or {}, refresher.value_range)
        prices = _prices(params, price, refresher.in_slots(setting.columns * _width(size)))
        ops = operations(program, axes)
        if watch is not None:
            watch.searching()
        try:
            plans = search(
                *(setting, ops, prices),
                beam=beam,
                most=most,
                bound=bound,
                watch=watch,
                carried=carried,
            )
        except NoPlan as none:
            refused.append(none.with_traceback(None))  # its frames hold the states
            continue
        bound = min(bound, _NEAR * plans[0].seconds)
        found += [_Found(setting, plan, size) for plan in plans[:_FINALISTS]]
    near = [f for f in found if f.plan.seconds <= bound]
    yield from _written(near, params.log_n, watch, refused)


def _prices(params: CKKSParams, price: float | None, refresher: Refresher) -> Prices:
    """What the search pays for a level, as a share of the refresh that gives it back, and the level
    at which stages are taken to end: the lowest, but for a bootstrap the middle of those between
    what it gives and what it takes.
    """
    highest, lowest = refresher.highest(params.levels), refresher.min_input_level
    cost = max(refresher.seconds(lowest, min(2, params.levels), params.log_n), price or 0.0)
    if not refresher.interactive:
        gained, nominal = highest - lowest, (highest + lowest) // 2
    else:
        gained, nominal = min(2, params.levels) if price is None else highest, 1
    level = cost / max(gained, 1)
    return Prices(params.log_n, level if math.isfinite(level) else 1.0, max(nominal, 1))


@dataclass(frozen=True, eq=False)
class _Found:
    """A plan, its setting, and the members of the batch along the width of a column."""

    setting: Setting
    plan: Plan
    size: int


def _written(
    found: Sequence[_Found], log_n: int, watch: CompileWatch | None, refused: list[Exception]
) -> Iterator[PackedLowering]:
    """Plans lowered, the best first: as many as take a second or so to write, at least one."""
    spent = 0
    for number, f in enumerate(sorted(found, key=lambda f: f.plan.seconds), 1):
        terms = _terms(f.plan)
        if spent and spent + terms > _MOST_WRITTEN:
            return
        if watch is not None:
            watch.emitting(number)
        try:
            yield PackedLowering(f.setting, f.plan, log_n, f.size, _width(f.size))
        except LayoutError as error:  # members see public values irregularly, or too large
            refused.append(error.with_traceback(None))
            continue
        spent += terms


def _terms(plan: Plan) -> int:
    """Operands and products of all instructions of a plan, but for moves of operands."""
    return sum(
        row.terms * number
        for _, offer, _ in plan.steps
        for work in offer.works
        for row, number in work.rows.items()
    )


def _width(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _setting(
    program: Program,
    axes: Mapping[int, int | None],
    columns: int,
    values: Mapping[int, float],
    most: float,
) -> Setting:
    def inner(v: Var, a: int) -> int | None:
        b = axes.get(v.id)
        return a if b is None else None if a == b else a - (a > b)

    split = factors(program, axes, inner)
    # No more columns than the largest value has elements: effective slots repeat.
    largest = max(
        math.prod(1 << max(d - 1, 0).bit_length() for d in stripped(v.shape, axes.get(v.id)))
        for v in (*program.inputs, *(v for e in program.ops for v in (*e.inputs, *e.outputs)))
        if isinstance(v, Var) and v.encrypted
    )
    publics = Publics(program)
    wished = wishes(program, publics)
    if values and math.isfinite(most):
        wished = fitted_wishes(program, publics, wished, _sizes(program, values), most)
    expected = expected_gains(program, publics, wished)
    return Setting(program, publics, axes, min(columns, largest), split, wished, expected)


def _sizes(program: Program, values: Mapping[int, float]) -> dict[int, float]:
    """By value id, what is planned for, of largest values by number of the operation."""
    ops = enumerate(program.ops)
    return {v.id: SPARE * values.get(k, 0.0) for k, eqn in ops for v in eqn.outputs}


def _batches(
    program: Program, secret: list[Var], slots: int, batch: bool
) -> Iterator[tuple[dict[int, int | None], int]]:
    if batch:
        for start in candidates(program):
            size = next(v.shape[0] for v in secret if start[v.id] == 0)
            axes = batch_axes(program, start, size) if size <= slots else None
            if axes is not None:
                yield axes, size
                if size >= _LARGE_BATCH:
                    return
                break
    none: dict[int, int | None] = {v.id: None for v in secret}
    yield none | {v.id: None for e in program.ops for v in e.outputs}, 1
