"""Schedules: at which level each operation of a Program runs, and where noise enters.

Noise depends on how a tensor operation is carried out: on the rescales and rotations in it, and on
the refreshes before it. ``canonical`` decides that from the Program alone, one level per
multiplication and a refresh of whatever has too few levels left, so that a simulation needs no
compilation. ``of_circuit`` reads what a compiled Circuit does instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit import gains as pending
from hesim.circuit.aims.carried import carried_pairs
from hesim.circuit.circuit import Circuit, Kind, TensorLocation
from hesim.depth import operation_depth
from hesim.errors import LevelError, ParameterError
from hesim.noise.cancelled import hiding_variances
from hesim.noise.circuit import OperationNoise, Result
from hesim.noise.circuit_plans import CircuitPlan
from hesim.noise.dc_slots import DCErrors
from hesim.noise.profiles import NoiseProfile, refreshed_by
from hesim.noise.profiles import profile as find_profile
from hesim.noise.slots_read import within
from hesim.params import CKKSParams
from hesim.primitives import PRIMITIVES
from hesim.program import Literal, Var

if TYPE_CHECKING:
    from hesim.program import Equation, Program

__all__ = ["CircuitSchedule", "Placement", "Schedule", "canonical", "of_circuit", "transferred"]


@dataclass(frozen=True)
class Placement:
    """How one operation on encrypted values runs.

    A tensor's value is its gain times what the slots hold, and noise is made in the slots.

    Attributes:
      level: of the result.
      operand_level: common level of the encrypted operands, after refreshes and drops.
      rescaled: whether a rescale rounds the result.
      rotated: whether ciphertexts of the operands are rotated on the way.
      gain: of the result, without its sign.
      operand_gains: of each operand; 1 for public ones.
      refreshed: ids of the Vars that are refreshed before it.
      lowered: ids of the Vars brought down to `operand_level` by a product with 1 and a rescale.
      refreshed_after: whether the result is refreshed.
      shared: whether the result lies in ciphertexts of its operands, as they were before any
        refresh, so that the operation makes none of its own.
      inner_refreshes: refreshes within a polynomial over its rescales, by depth from the operand.
      operand_stds, added_std: standard deviation of what the operation's instructions add to each
        operand and to the result, in slots; None for what `rotated` and `rescaled` imply.
      dc_errors: what its instructions add to the result in single slots, beside `added_std`.
      aligned: for each operand, whether the result has the errors of the slots in which the operand
        is read; empty where no key switch has DC errors.
      copies: of each element of the result that are read, in the mean.
      apart_std, operand_apart_stds: standard deviation of what each copy of an element has of its
        own, of the result and of each operand; `added_std` and `operand_stds` are of what they
        share.
      plan: of a polynomial or a power, the instructions that carry it out, where they are known.
    """

    level: int
    operand_level: int
    rescaled: bool
    rotated: bool
    gain: float = 1.0
    operand_gains: tuple[float, ...] = ()
    refreshed: frozenset[int] = frozenset()
    lowered: frozenset[int] = frozenset()
    refreshed_after: bool = False
    shared: bool = False
    inner_refreshes: tuple[float, ...] = ()
    operand_stds: tuple[float, ...] | None = None
    added_std: float | None = None
    dc_errors: DCErrors | None = None
    aligned: tuple[bool, ...] = ()
    copies: float = 1.0
    apart_std: float = 0.0
    operand_apart_stds: tuple[float, ...] = ()
    plan: CircuitPlan | None = None


#: Placements by index of the equation in ``program.equations``; encrypted equations only.
Schedule = Mapping[int, Placement]


class CircuitSchedule(dict[int, Placement]):
    """The schedule that a Circuit follows, with the Circuit and the Program it was made of.

    Attributes:
      program, circuit: as above.
      handed_on: by number of a result's leaf that is carried to the next run, the standard
        deviation of what is added to it on its way there, in values.
    """

    def __init__(
        self,
        placements: Mapping[int, Placement],
        program: Program,
        circuit: Circuit,
        handed_on: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        super().__init__(placements)
        self.program = program
        self.circuit = circuit
        self.handed_on = handed_on


def canonical(program: Program, params: CKKSParams) -> dict[int, Placement]:
    """The schedule of a Program on tensors, without layouts.

    Each operand that has fewer levels left than the operation needs is refreshed to the top level
    first. Operands of unequal levels meet at the lowest. A product by a constant is a gain kept
    beside the ciphertext, until a sum of unequal gains spends a level on it. An operation deeper
    than its operand's levels has what it computed by then refreshed to the top, and goes on.

    Raises:
      LevelError: an operation needs a level, and the parameters have none at all.
    """
    levels = {v.id: params.levels for v in program.inputs if v.encrypted}
    gains = dict.fromkeys(levels, 1.0)
    schedule: dict[int, Placement] = {}
    for equation in program.ops:
        operands = _encrypted(equation)
        depth = _depth(program, equation)
        unequal = _unequal_gains(equation, gains)
        needed = {v.id: depth for v in operands}
        if unequal is not None:
            needed[unequal] += 1
        if any(needed.values()) and not params.levels:
            raise LevelError(
                f"`{equation.name}` at {equation.source} needs a level, and these parameters have "
                f"none: take levels={max(needed.values())} or more"
            )
        refreshed = frozenset(i for i, n in needed.items() if levels[i] < min(n, params.levels))
        if equation.name == "refresh":
            refreshed = frozenset()
        levels.update(dict.fromkeys(refreshed, params.levels))
        low = min(levels[i] - (n - depth) for i, n in needed.items())
        lowered = {v.id for v in operands if levels[v.id] > low}
        after, inner = _ended(low, depth, params.levels)
        if equation.name == "refresh":
            after = params.levels
        gain = _gain(program, equation, gains)
        schedule[equation.index] = Placement(
            level=after,
            operand_level=low,
            rescaled=depth > 0,
            rotated=PRIMITIVES[equation.name].contracts(equation),
            gain=gain,
            operand_gains=_operand_gains(equation, gains),
            refreshed=refreshed,
            lowered=frozenset(lowered),
            inner_refreshes=inner,
        )
        levels.update({v.id: after for v in equation.outputs})
        gains.update({v.id: gain for v in equation.outputs})
    return schedule


def _ended(level: int, depth: int, top: int) -> tuple[int, tuple[float, ...]]:
    """The level at which an operation of this depth ends that begins at `level`, and refreshes to
    the top within it, by depth.
    """
    if depth <= level:
        return level - depth, ()
    inner = [float(d >= level and (d - level) % top == 0) for d in range(depth)]
    return (level - depth) % top, tuple(inner)


def of_circuit(
    program: Program, circuit: Circuit, profile: str | NoiseProfile = "seal"
) -> CircuitSchedule:
    """The schedule that a compiled Circuit of this Program follows, as its instructions say.

    Where one operation spreads over ciphertexts at several levels, the lowest counts.
    """
    library = refreshed_by(find_profile(profile), circuit.error_law)
    facts, hidden = OperationNoise(circuit, library), hiding_variances(circuit, library)
    taps = {tap.op: tap for tap in circuit.taps}
    owner = _input_owners(program, circuit)
    gains = {v.id: 1.0 for v in program.inputs if v.encrypted}
    signed = dict(gains)
    levels = dict.fromkeys(gains, circuit.params.levels)
    elsewhere = _summed(program, taps) | _together(program, circuit, taps)
    multiplied = _multiplied(program, circuit)
    read: dict[int, TensorLocation] = {}
    schedule: dict[int, Placement] = {}
    for k, equation in enumerate(program.ops):
        made, tap = elsewhere.get(k, k), taps.get(k)
        place = taps.get(made) if tap is None else tap
        ciphers = np.zeros(0, np.int64) if tap is None else tap.ciphers
        operands = {v.id for v in _encrypted(equation)}
        held = [int(c) for c in ciphers if owner.get(int(c), set()) & operands]
        # Whatever brings a ciphertext that no operand has brings the errors made in it: operands
        # may have been left without a tensor of their own.
        own = len(held) < len(ciphers)
        after = min((levels[v] for v in operands), default=circuit.params.levels)
        if place is not None and len(place.ciphers):
            after = int(circuit.level[place.ciphers].min())
        depth = max(_depth(program, equation), 1) if facts.rescales[made] else 0
        lowered = {v for c in facts.lowered.get(made, ()) for v in owner.get(c, ())} & operands
        sign_and_gain = 1.0 if tap is None else tap.gain
        planned = equation.name in ("polynomial", "integer_pow")
        result = None if tap is None else facts.result(tap, held)
        added = result if own and result is not None else Result(0.0, 0.0, 1.0, None)
        schedule[equation.index] = Placement(
            level=after,
            operand_level=min(max(after + depth, multiplied[made]), circuit.params.levels),
            rescaled=depth > 0,
            rotated=False,
            gain=abs(sign_and_gain),
            operand_gains=_operand_gains(equation, gains),
            lowered=frozenset(lowered),
            refreshed_after=own and any(int(c) in facts.refreshed for c in ciphers),
            shared=bool(len(ciphers)) and not own,
            inner_refreshes=facts.inner_refreshes[made],
            operand_stds=_operand_stds(equation, facts.operands[made], owner),
            added_std=math.sqrt(added.variance - added.apart + hidden.get(k, 0.0)),
            dc_errors=added.dc_errors,
            copies=1.0 if result is None else result.copies,
            apart_std=math.sqrt(added.apart),
            operand_apart_stds=_operand_stds(equation, facts.copied[made], owner),
            aligned=_aligned(equation, place, read, facts) if facts.dc_errors else (),
            plan=facts.plan(ciphers, _operand_gain(equation, signed)) if own and planned else None,
        )
        names = {v.id for v in equation.outputs}
        if place is not None:
            read.update(dict.fromkeys(names, place))
        signed.update(dict.fromkeys(names, sign_and_gain))
        gains.update(dict.fromkeys(names, abs(sign_and_gain)))
        levels.update(dict.fromkeys(names, after))
        _own(owner, facts, ciphers, names)
        if len(equation.outputs) > 1:  # moves, of which the tap shows the first result only
            _own(owner, facts, [c for c, v in owner.items() if v & operands], names)
    return CircuitSchedule(schedule, program, circuit, _handed_on(program, circuit, facts, taps))


def _handed_on(
    program: Program,
    circuit: Circuit,
    facts: OperationNoise,
    taps: Mapping[int, TensorLocation],
) -> dict[int, float]:
    """By number of a carried leaf of the result, the standard deviation of what is added where it
    is brought to lie as its argument, and refreshed. The instructions that do count as the last
    operation's, so that what they add to its own result comes after that.
    """
    makers = {v.id: k for k, equation in enumerate(program.ops) for v in equation.outputs}
    found = {}
    for pair in carried_pairs(program, dict(circuit.carries)):
        end, maker = circuit.outputs[pair.output], makers.get(pair.result.id, -1)
        if end is None or pair.result is pair.argument:
            continue
        variance = facts.result(end).variance
        tap = taps.get(maker)
        if tap is not None and np.isin(circuit.source[end.ciphers], maker).all():
            variance -= facts.result(tap).variance
        found[pair.output] = abs(end.gain) * math.sqrt(max(variance, 0.0))
    return found


def transferred(schedule: Schedule, source: Program, target: Program) -> dict[int, Placement]:
    """A schedule of one Program for another trace of the same function, on a batch of another size
    or with more of its values returned.

    Raises:
      ParameterError: their operations are not the same ones in the same order.
    """
    names: dict[int, int] = {}
    pairs = [(_encrypted_inputs(source), _encrypted_inputs(target))]
    same = len(source.ops) == len(target.ops)
    for one, two in zip(source.ops, target.ops):
        same = same and one.name == two.name
        pairs.append((_encrypted(one), _encrypted(two)))
        pairs.append((list(one.outputs), list(two.outputs)))
    for left, right in pairs:
        same = same and len(left) == len(right)
        for a, b in zip(left, right):
            same = same and names.setdefault(a.id, b.id) == b.id
    if not same:
        raise ParameterError(
            f"the Circuit was compiled from {source.name} with {len(source.ops)} operations, and "
            f"{target.name} traces to {len(target.ops)} others: compile the function that is "
            f"simulated"
        )
    return {
        two.index: replace(
            schedule[one.index],
            refreshed=frozenset(names[i] for i in schedule[one.index].refreshed),
            lowered=frozenset(names[i] for i in schedule[one.index].lowered),
        )
        for one, two in zip(source.ops, target.ops, strict=True)
    }


def _encrypted_inputs(program: Program) -> list[Var]:
    return [v for v in program.inputs if v.encrypted]


def _input_owners(program: Program, circuit: Circuit) -> dict[int, set[int]]:
    """Encrypted inputs by the ciphertexts that hold them."""
    encrypted = [v.id for v in program.inputs if v.encrypted]
    made = np.flatnonzero(circuit.kind == Kind.INPUT)
    numbers = [circuit.input_rows[int(circuit.param[i])][0] for i in made]
    return {int(i): {encrypted[number]} for i, number in zip(made, numbers, strict=True)}


def _together(
    program: Program, circuit: Circuit, taps: Mapping[int, TensorLocation]
) -> dict[int, int]:
    """From operations without instructions to the one of their kind whose instructions make their
    tensors too, as products of one tensor by several matrices are made.
    """
    own = np.bincount(circuit.source[circuit.source >= 0], minlength=len(program.ops))
    found = {}
    for k, tap in taps.items():
        makers = np.unique(circuit.source[tap.ciphers])
        if k < 0 or own[k] or len(makers) != 1 or makers[0] < 0:
            continue
        maker = int(makers[0])
        if program.ops[maker].name == program.ops[k].name:
            found[k] = maker
    return found


def _summed(program: Program, taps: Mapping[int, TensorLocation]) -> dict[int, int]:
    """From products that have no tensor of their own to the sum that computes them."""
    uses = {v.id: k for k, e in enumerate(program.ops) for v in _encrypted(e)}
    found = {}
    for k, equation in enumerate(program.ops):
        user = uses.get(equation.outputs[0].id)
        if k not in taps and user is not None and program.ops[user].name == "reduce_sum":
            found[k] = user
    return found


def _multiplied(program: Program, circuit: Circuit) -> list[int]:
    """For each operation that multiplies ciphertexts once, the highest level at which it does: with
    a mask before, it is two above the result's. -1 for others.
    """
    found = np.full(len(program.ops), -1)
    dots = (circuit.kind == Kind.DOT) & (circuit.source >= 0)
    np.maximum.at(found, circuit.source[dots], circuit.level[dots])
    once = [e.name not in ("polynomial", "integer_pow", "reduce_prod") for e in program.ops]
    return np.where(once, found, -1).tolist()


def _own(
    owner: dict[int, set[int]], facts: OperationNoise, ciphers: Iterable[int], names: set[int]
) -> None:
    """Notes these values as held by these ciphertexts and their refreshed copies."""
    for cipher in map(int, ciphers):
        owner.setdefault(cipher, set()).update(names)
        owner.setdefault(facts.refreshed.get(cipher, cipher), set()).update(names)


def _operand_stds(
    equation: Equation, variances: Mapping[int, float], owner: Mapping[int, set[int]]
) -> tuple[float, ...]:
    """For each operand, of what its ciphertexts bring to the operation's products."""
    stds = []
    for operand in equation.inputs:
        number = -1 if isinstance(operand, Literal) else operand.id
        own = [v for cipher, v in variances.items() if number in owner.get(cipher, ())]
        stds.append(math.sqrt(sum(own) / len(own)) if own else 0.0)
    return tuple(stds)


def _aligned(
    equation: Equation,
    tap: TensorLocation | None,
    read: dict[int, TensorLocation],
    facts: OperationNoise,
) -> tuple[bool, ...]:
    """For each operand, whether the slots in which the result in `tap` is read are made of slots in
    which the operand is read, not of other copies. One without ciphertexts of its own is what it
    was made of.
    """
    if tap is None:
        return (False,) * len(equation.inputs)
    sources = facts.made_of(tap)

    def same(operand: Var | Literal) -> bool:
        other = None if isinstance(operand, Literal) else read.get(operand.id)
        if other is None:
            return False
        copies = [(c, k) for c in other.ciphers.tolist() for k in {c, facts.refreshed.get(c, c)}]
        return all(within(other, {c: sources[k]}) for c, k in copies if k in sources)

    return tuple(same(v) for v in equation.inputs)


def _operand_gains(equation: Equation, gains: Mapping[int, float]) -> tuple[float, ...]:
    return tuple(1.0 if isinstance(v, Literal) else gains.get(v.id, 1.0) for v in equation.inputs)


def _operand_gain(equation: Equation, gains: Mapping[int, float]) -> float:
    first = equation.inputs[0]
    return 1.0 if isinstance(first, Literal) else gains.get(first.id, 1.0)


def _unequal_gains(equation: Equation, gains: Mapping[int, float]) -> int | None:
    """The operand of a sum that a rescale must bring to the other's gain, if there is one."""
    if equation.name not in ("add", "add_any", "sub"):
        return None
    operands = _encrypted(equation)
    if len(operands) < 2:
        return None
    one, two = (gains[v.id] for v in operands)
    if pending.meeting(one, two) is not None:
        return None
    return operands[0 if pending.scales_left(one, two) else 1].id


def _gain(program: Program, equation: Equation, gains: Mapping[int, float]) -> float:
    """The gain of a result, without its sign."""
    operands = [gains[v.id] for v in _encrypted(equation)]
    name = equation.name
    if name == "polynomial":
        return 1.0
    if name == "integer_pow":
        return _bounded(operands[0]) ** equation.params["y"]
    if name == "square":
        return _bounded(operands[0]) ** 2
    if name in ("mul", "dot_general") and len(operands) == 2:
        return _bounded(operands[0]) * _bounded(operands[1])
    factor = _constant_factor(program, equation)
    if factor is not None:
        return operands[0] * factor
    if name in ("add", "add_any", "sub") and len(operands) == 2:
        met = pending.meeting(*operands)
        return operands[pending.scales_left(*operands)] if met is None else met[1]
    return operands[0]


def _bounded(gain: float) -> float:
    """A gain far from 1 is applied before a product."""
    return gain if pending.stays_pending(gain) else 1.0


def _constant_factor(program: Program, equation: Equation) -> float | None:
    """|c| of a product or quotient by one constant c, which is kept beside the ciphertext."""
    if equation.name not in ("mul", "div"):
        return None
    for operand in equation.inputs:
        if operand.encrypted:
            continue
        value = program.constant(operand)
        if value is None or value.size == 0 or not bool(np.all(value == value.flat[0])):
            return None
        number = abs(float(value.flat[0]))
        if number == 0.0 and equation.name == "mul":
            return 1.0  # exactly zero: nothing is kept, and nothing computed
        if number == 0.0 or not math.isfinite(number):
            return None
        return 1.0 / number if equation.name == "div" else number
    return None


def _depth(program: Program, equation: Equation) -> int:
    return 0 if _constant_factor(program, equation) is not None else operation_depth(equation)


def _encrypted(equation: Equation) -> list[Var]:
    return [v for v in equation.inputs if not isinstance(v, Literal) and v.encrypted]
