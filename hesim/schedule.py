"""Schedules: at which level each operation of a Program runs, and where noise enters.

Noise depends on how a tensor operation is carried out: on the rescales and rotations in it, and on
the refreshes before it. ``canonical`` decides that from the Program alone, one level per
multiplication and a refresh of whatever has too few levels left, so that a simulation needs no
compilation. ``of_circuit`` reads what a compiled Circuit does instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.circuit import Circuit, Kind
from hesim.depth import operation_depth
from hesim.errors import LevelError
from hesim.params import CKKSParams
from hesim.program import Literal, Var

if TYPE_CHECKING:
    from hesim.program import Equation, Program

__all__ = ["Placement", "Schedule", "canonical", "of_circuit", "is_free_product"]

_CONTRACTIONS = frozenset({"dot_general", "conv_general_dilated", "reduce_sum", "cumsum"})


@dataclass(frozen=True)
class Placement:
    """How one operation on encrypted values runs.

    Attributes:
      level: of the result.
      operand_level: common level of the encrypted operands, after refreshes and drops.
      rescaled: whether a rescale rounds the result.
      rotated: whether ciphertexts of the operands are rotated on the way.
      refreshed: ids of the Vars that are refreshed before it.
      lowered: ids of the Vars brought down to `operand_level` by a product with 1 and a rescale.
    """

    level: int
    operand_level: int
    rescaled: bool
    rotated: bool
    refreshed: frozenset[int] = frozenset()
    lowered: frozenset[int] = frozenset()


#: Placements by index of the equation in ``program.equations``; encrypted equations only.
Schedule = Mapping[int, Placement]


def canonical(program: Program, params: CKKSParams) -> dict[int, Placement]:
    """The schedule of a Program on tensors, without layouts.

    Each operand that has fewer levels left than the operation needs is refreshed to the top level
    first. Operands of unequal levels meet at the lowest. A polynomial deeper than the whole chain
    ends at level 0: a refresh inside it is not modelled.

    Raises:
      LevelError: an operation needs a level, and the parameters have none at all.
    """
    levels = {v.id: params.levels for v in program.inputs if v.encrypted}
    schedule: dict[int, Placement] = {}
    for equation in program.ops:
        operands = _encrypted(equation)
        depth = _depth(program, equation)
        if depth and not params.levels:
            raise LevelError(
                f"`{equation.name}` at {equation.source} needs a level, and these parameters have "
                f"none: take levels={depth} or more"
            )
        needed = min(depth, params.levels)
        refreshed = frozenset(v.id for v in operands if levels[v.id] < needed)
        if equation.name == "refresh":
            refreshed = frozenset()
        levels.update(dict.fromkeys(refreshed, params.levels))
        low = min(levels[v.id] for v in operands)
        lowered = frozenset(v.id for v in operands if levels[v.id] > low)
        after = params.levels if equation.name == "refresh" else max(low - depth, 0)
        schedule[equation.index] = Placement(
            level=after,
            operand_level=low,
            rescaled=depth > 0,
            rotated=_contracts(equation),
            refreshed=refreshed,
            lowered=lowered,
        )
        levels.update({v.id: after for v in equation.outputs})
    return schedule


def of_circuit(program: Program, circuit: Circuit) -> dict[int, Placement]:
    """The schedule that a compiled Circuit follows, by what its instructions say.

    Where one operation spreads over ciphertexts at several levels, the lowest counts.
    """
    levels = {v.id: circuit.params.levels for v in program.inputs if v.encrypted}
    ops = program.ops
    present = np.zeros((len(ops), 10), bool)
    own = circuit.source >= 0
    present[circuit.source[own], circuit.kind[own]] = True
    schedule: dict[int, Placement] = {}
    for k, equation in enumerate(ops):
        operands = _encrypted(equation)
        ciphers = circuit.taps[k].ciphers
        before = min(levels[v.id] for v in operands)
        after = int(circuit.level[ciphers].min()) if len(ciphers) else before
        rescaled = bool(present[k, Kind.RESCALE])
        depth = _depth(program, equation) if rescaled else 0
        refreshed = frozenset[int]()
        if present[k, Kind.REFRESH] and equation.name != "refresh":
            lowest = min(after + depth, circuit.params.levels)
            refreshed = frozenset(v.id for v in operands if levels[v.id] <= lowest)
        low = min(after + depth, circuit.params.levels)
        lowered = frozenset(
            v.id for v in operands if v.id not in refreshed and levels[v.id] > low and rescaled
        )
        rescaled = rescaled and (depth > 0 or not lowered)
        schedule[equation.index] = Placement(
            level=after,
            operand_level=low,
            rescaled=rescaled,
            rotated=bool(present[k, Kind.ROTATE]),
            refreshed=refreshed,
            lowered=lowered,
        )
        levels.update({v.id: after for v in equation.outputs})
    return schedule


def is_free_product(program: Program, equation: Equation) -> bool:
    """Whether this is a product or quotient by one constant, which costs no level.

    A constant that is the same everywhere and known when the Program is traced is kept beside the
    ciphertext and merged into whatever comes next.
    """
    if equation.name not in ("mul", "div"):
        return False
    for operand in equation.inputs:
        if not operand.encrypted:
            value = program.constant(operand)
            return value is not None and value.size > 0 and bool(np.all(value == value.flat[0]))
    return False


def _depth(program: Program, equation: Equation) -> int:
    return 0 if is_free_product(program, equation) else operation_depth(equation)


def _encrypted(equation: Equation) -> list[Var]:
    return [v for v in equation.inputs if not isinstance(v, Literal) and v.encrypted]


def _contracts(equation: Equation) -> bool:
    """Whether the operation sums elements of one operand over more than one position."""
    if equation.name not in _CONTRACTIONS:
        return False
    first = equation.inputs[0]
    if equation.name == "dot_general":
        axes = equation.params["dimension_numbers"][0][0]
    elif equation.name == "conv_general_dilated":
        return True
    else:
        axes = equation.params.get("axes", (equation.params.get("axis", 0),))
    return any(first.shape[a] > 1 for a in axes)
