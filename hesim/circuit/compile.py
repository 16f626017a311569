"""`compile`: chooses layouts, levels, refreshes and keys, and writes the Circuit."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hesim.circuit import emission, levels, sizes
from hesim.circuit.batching import batch_axes, candidates
from hesim.circuit.builder import Builder, Overspent
from hesim.circuit.circuit import Circuit, PlaintextFamily, TensorLocation
from hesim.circuit.context import Context
from hesim.circuit.layout import Tensor, input_count, input_tables, stripped
from hesim.circuit.ledger import ledger
from hesim.circuit.lower import lower
from hesim.circuit.publics import Publics
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.errors import LayoutError, ParameterError, TraceError
from hesim.params import CKKSParams
from hesim.program import Program, Var
from hesim.progress import CompileProgress, CompileWatch, Reporter, watching

__all__ = ["Candidate", "compile", "planned"]

_MOST_INPUTS = 20_000
"""Input ciphertexts beyond which a layout is not tried."""


@dataclass(frozen=True)
class _Choice:
    """A layout of the inputs: columns in use, and per encrypted input the axes on columns."""

    axes: dict[int, int | None]
    batch: int
    width: int
    columns: int
    slot_axes: tuple[tuple[int, ...], ...]
    ciphers: int


def compile(
    program: Program,
    params: CKKSParams,
    *,
    refresh_price: float | str | None = None,
    refresher: Refresher = KEY_HOLDER,
    batch: bool = True,
    layouts: Sequence[Sequence[int]] | None = None,
    progress: bool | Callable[[CompileProgress], None] | Reporter | None = None,
) -> Circuit:
    """Plans an encrypted run of `program`.

    Args:
      program: from `hesim.trace`.
      params: ring and prime chain.
      refresh_price: what a refresh of one ciphertext counts while planning, in seconds: None for
        the refresher's own cost, "bootstrap" for 10 s, a number, or `math.inf` to forbid them.
        `hesim.refresh` in the program is always obeyed.
      refresher: who refreshes, from which level, to which, how well and at what cost: the key
        holder, or `hesim.bootstrap(law, ...)`.
      batch: lay the members of a batch side by side in the slots where nothing mixes them.
      layouts: per encrypted input, the axes (without the batch axis) that go on slots, outermost
        first; chosen by predicted cost if None.
      progress: True for a bar on the terminal, in the notebook or in the log; or a function that is
        called with a `CompileProgress` for every operation of every layout that is tried.

    Returns:
      The cheapest Circuit found, by predicted seconds at that price.

    Raises:
      LevelError: levels run out and refreshes are forbidden. LayoutError: nothing fits the slots.
      TraceError: not a Program, or not CKKSParams. ParameterError: such a refresh_price.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(8)), params)
      >>> circuit.ledger.products, circuit.ledger.refreshes, circuit.ledger.rotation_keys
      (1, 0, 0)
    """
    with watching(progress) as watch:
        plan = planned(
            program,
            params,
            refresh_price=refresh_price,
            refresher=refresher,
            batch=batch,
            layouts=layouts,
            watch=watch,
        )
        watch.writing()
        return plan.circuit(params)


def planned(
    program: Program,
    params: CKKSParams,
    *,
    refresh_price: float | str | None = None,
    refresher: Refresher = KEY_HOLDER,
    batch: bool = True,
    layouts: Sequence[Sequence[int]] | None = None,
    watch: CompileWatch | None = None,
) -> Candidate:
    """What `compile` decides before it writes instructions: layouts and levels, which serve all
    parameters with this ring and as many levels. Arguments and errors are those of `compile`;
    `watch` is told of every layout and operation.
    """
    if not isinstance(program, Program) or not isinstance(params, CKKSParams):
        raise TraceError(
            f"compile takes a Program and CKKSParams, not a {type(program).__name__} and a "
            f"{type(params).__name__}: program = hesim.trace(fn, *example_args)."
        )
    price = _price(refresh_price)
    best: tuple[float, Candidate] | None = None
    failure: Exception | None = None
    choices = sorted(_choices(program, params, batch, layouts), key=lambda choice: choice.ciphers)
    for number, choice in enumerate(choices, 1):
        if watch is not None:
            watch.layout(number, len(choices))
        try:
            budget = best[0] if best else math.inf
            plan = Candidate(program, params, choice, price, budget, watch, refresher)
        except Overspent:
            continue
        except LayoutError as error:
            failure = error.with_traceback(None)  # its frames hold the tables
            continue
        filled = choice.columns * choice.width
        if plan.schedule.refreshed and filled > (refresher.slots or filled):
            failure = LayoutError(
                f"{program.name} fills {filled:,} slots, and the {refresher.name} refreshes "
                f"{refresher.slots:,}: use more levels, so that nothing is refreshed, or split it"
            )
            continue
        if best is None or plan.schedule.seconds < best[0]:
            best = (plan.schedule.seconds, plan)
    if best is None and batch and layouts is None and any(v.encrypted for v in program.inputs):
        # What cannot be laid out for one member at a time may be for all of them as one tensor.
        return planned(
            program,
            params,
            refresh_price=refresh_price,
            refresher=refresher,
            batch=False,
            watch=watch,
        )
    if best is None:
        raise failure or _nothing_to_lay_out(program, params)
    return best[1]


def _nothing_to_lay_out(program: Program, params: CKKSParams) -> LayoutError:
    secret = [v for v in program.inputs if v.encrypted]
    if not secret:
        return LayoutError(
            f"{program.name} has no encrypted input to lay out: name some in "
            "hesim.trace(..., encrypted=...)."
        )
    elements = sum(v.size for v in secret)
    return LayoutError(
        f"the {elements:,} encrypted elements of {program.name} need more than {_MOST_INPUTS:,} "
        f"ciphertexts of {params.slots:,} slots in every layout: use a larger ring, or split the "
        f"inputs into several runs."
    )


def _price(refresh_price: float | str | None) -> float | None:
    if refresh_price is None:
        return None
    if refresh_price == "bootstrap":
        return BOOTSTRAP_SECONDS
    if isinstance(refresh_price, str):
        raise ParameterError(
            f"refresh_price must be None, 'bootstrap' or seconds, not {refresh_price!r}"
        )
    if not refresh_price >= 0:
        raise ParameterError("refresh_price is seconds per refreshed ciphertext, at least 0")
    return float(refresh_price)


def _choices(
    program: Program, params: CKKSParams, batch: bool, layouts: Sequence[Sequence[int]] | None
) -> Iterator[_Choice]:
    secret = [v for v in program.inputs if v.encrypted]
    if not secret:
        return
    found = False
    if batch:
        for start in candidates(program):
            size = next(v.shape[0] for v in secret if start[v.id] == 0)
            if size > params.slots:
                continue
            axes = batch_axes(program, start, size)
            if axes is not None:
                found = True
                yield from _layouts(secret, params, axes, size, layouts)
                break
    if not found:
        yield from _layouts(secret, params, {v.id: None for v in secret}, 1, layouts)


def _layouts(
    secret: list[Var],
    params: CKKSParams,
    axes: dict[int, int | None],
    size: int,
    layouts: Sequence[Sequence[int]] | None,
) -> Iterator[_Choice]:
    width = 1 << (size - 1).bit_length()
    room = params.slots // width
    shapes = [stripped(v.shape, axes[v.id]) for v in secret]
    if layouts is not None:
        chosen = [_checked(layouts, shapes)]
    else:
        chosen = list(
            dict.fromkeys(tuple(policy(s) for s in shapes) for policy in _policies(shapes))
        )
    seen: set[tuple] = set()
    for slot_axes in chosen:
        # Axes of one element lie nowhere in particular.
        useful = tuple(
            tuple(a for a in on_slots if shape[a] > 1)
            for shape, on_slots in zip(shapes, slot_axes, strict=True)
        )
        extents = [
            math.prod(1 << (shape[a] - 1).bit_length() for a in on_slots)
            for shape, on_slots in zip(shapes, useful, strict=True)
        ]
        columns = min(room, max(extents))
        ciphers = sum(
            input_count(shape, on_slots, columns)
            for shape, on_slots in zip(shapes, useful, strict=True)
        )
        if ciphers > _MOST_INPUTS or (columns, useful) in seen:
            continue
        seen.add((columns, useful))
        yield _Choice(axes, size, width, columns, useful, ciphers)


def _checked(
    layouts: Sequence[Sequence[int]], shapes: list[tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    chosen = tuple(tuple(int(a) for a in axes) for axes in layouts)
    if len(chosen) != len(shapes):
        raise LayoutError(
            f"layouts has {len(chosen)} entries, but {len(shapes)} inputs are encrypted."
        )
    for axes, shape in zip(chosen, shapes, strict=True):
        if len(set(axes)) != len(axes) or not all(0 <= a < len(shape) for a in axes):
            raise LayoutError(
                f"layouts names axes {axes} of an encrypted input whose shape, without a batch "
                f"axis, is {shape}; name each axis once, from 0 to {len(shape) - 1}."
            )
    return chosen


def _policies(shapes: list[tuple[int, ...]]):
    """Ways to pick slot axes, the same for every input: subsets of axes counted from either end."""
    rank = max((len(s) for s in shapes), default=0)

    def policy(axes: tuple[int, ...]):
        def of(shape: tuple[int, ...]) -> tuple[int, ...]:
            offset = len(shape) - rank  # align trailing axes, as broadcasting does
            return tuple(a + offset for a in axes if a + offset >= 0)

        return of

    for count in range(min(rank, 3) + 1):
        for axes in itertools.permutations(range(rank), count):
            yield policy(axes)


class Candidate:
    """One layout choice, lowered and scheduled. From `planned`."""

    def __init__(
        self,
        program: Program,
        params: CKKSParams,
        choice: _Choice,
        price: float | None,
        budget: float,
        watch: CompileWatch | None = None,
        refresher: Refresher = KEY_HOLDER,
    ):
        self.program, self.choice, self.price = program, choice, price
        self.refresher = refresher
        self._ring = params.log_n, params.levels
        self.publics = Publics(program)
        self.builder = b = Builder(
            choice.columns, choice.width, choice.batch, log_n=params.log_n, budget=budget
        )
        self.context = Context(program, self.publics, b, choice.axes)
        self.inputs = self._place_inputs()
        lower(self.context, watch)
        self.unit = b.pack(
            PlaintextFamily(
                -1,
                np.zeros((1, 1), np.int32),
                0,
                choice.batch,
                choice.width,
                choice.columns,
                1.0,
                np.ones(1),
            )
        )
        self.results = [v for v in program.outputs if isinstance(v, Var) and v.encrypted]
        nodes = {int(n) for v in self.results for n in self.context.values[v.id].nodes}
        ops = program.ops
        self.planner = levels.LevelPlanner(
            b,
            params,
            nodes,
            lambda s: f"{ops[s].name} at {ops[s].source}" if s >= 0 else "an input",
            price,
            refresher,
        )
        self.schedule = self.planner.greedy()

    def _place_inputs(self) -> tuple[PlaintextFamily, ...]:
        b, choice = self.builder, self.choice
        packs = []
        row = 0
        secret = [v for v in self.program.inputs if v.encrypted]
        for number, (var, slot_axes) in enumerate(zip(secret, choice.slot_axes, strict=True)):
            axis = choice.axes[var.id]
            shape = stripped(var.shape, axis)
            b.reserve(sizes.INDEX_BYTES * (var.size + math.prod(shape)))
            cipher, column, count = input_tables(shape, slot_axes, choice.columns)
            if not count and var is secret[-1] and not b.nodes:
                count = 1  # nothing is encrypted but zeros, of which all results are made
            flat = np.arange(var.size).reshape(var.shape)
            first = flat if axis is None else flat.take(0, axis=axis)
            stride = 0 if axis is None else int(np.prod(var.shape[axis + 1 :], dtype=np.int64))
            table = np.full((count, choice.columns), -1, np.int32)
            table[cipher.reshape(-1), column.reshape(-1)] = first.reshape(-1)
            if choice.columns == 1 and axis is None:
                stride = 0
            packs.append(
                PlaintextFamily(number, table, stride, choice.batch, choice.width, choice.columns)
            )
            b.begin(-1)
            nodes = b.end([b.input(row + k, table[k] >= 0) for k in range(count)])
            row += count
            self.context.values[var.id] = Tensor(
                np.asarray(nodes, np.int32)[cipher], column, 1.0, axis, var.shape
            )
        return tuple(packs)

    @functools.cached_property
    def _settled(self) -> levels.Schedule:
        return self.planner.improved(self.schedule)

    def fits(self, params: CKKSParams) -> bool:
        """Whether these parameters have the ring and the levels that it was made for."""
        return self._ring == (params.log_n, params.levels)

    def circuit(self, params: CKKSParams) -> Circuit:
        """Settles the levels and emits the instructions, for parameters that it `fits`."""
        if not self.fits(params):
            raise ParameterError(
                f"planned for log2 N and levels {self._ring}, not for {params}: plan again"
            )
        b, choice, program = self.builder, self.choice, self.program
        schedule = self._settled
        emitted = emission.emit(b, params, schedule, self.planner.live, self.unit)
        data = emission.arrays(emitted)
        packs, data = _used_packs(tuple(b.packs), data)
        where = np.full(len(b.nodes) + 1, -2, np.int32)  # not computed
        where[-1] = -1
        for node, cipher in emitted.made.items():
            where[node] = cipher
        ops = program.ops
        number = {v.id: k for k, eqn in enumerate(ops) for v in eqn.outputs}

        def tap(var: Var) -> TensorLocation:
            x = self.context.values[var.id]
            return TensorLocation(
                number.get(var.id, -1),
                var.shape,
                -1 if x.batch_axis is None else x.batch_axis,
                where[x.node].reshape(-1),
                x.column.reshape(-1).astype(np.int32),
                x.gain,
                choice.batch,
                choice.width,
            )

        taps = []
        for eqn in ops:
            x = self.context.values.get(eqn.outputs[0].id)
            if x is not None and (not len(x.nodes) or np.any(where[x.nodes] >= 0)):
                taps.append(tap(eqn.outputs[0]))
        outputs = tuple(
            tap(v) if isinstance(v, Var) and v.encrypted else None for v in program.outputs
        )
        decrypted = {int(c) for t in outputs if t is not None for c in t.ciphers}
        labels = [
            label for v, label in zip(program.inputs, program.labels, strict=True) if v.encrypted
        ]
        names = tuple(eqn.name for eqn in ops)
        sources = tuple(str(eqn.source) for eqn in ops)
        return Circuit(
            params=params,
            slots=choice.columns * choice.width,
            packs=packs,
            inputs=self.inputs,
            operand_count=len(self.publics),
            op_names=names,
            op_sources=sources,
            outputs=outputs,
            taps=tuple(taps),
            input_labels=tuple(labels),
            ledger=ledger(
                params, data, packs, len(decrypted), self.price, names, sources, self.refresher
            ),
            refresher=self.refresher,
            program=program,
            publics=self.publics,
            **data,
        )


def _used_packs(packs: tuple[PlaintextFamily, ...], data: dict[str, np.ndarray]):
    """Leaves out packs that no plaintext uses (of dead stages), renumbering the rest."""
    used = np.unique(data["plain_pack"])
    number = np.full(len(packs) + 1, -1, np.int32)
    number[used] = np.arange(len(used))
    return tuple(packs[k] for k in used), {**data, "plain_pack": number[data["plain_pack"]]}
