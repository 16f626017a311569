"""A Program as the search reads it: operations that are planned together are one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hesim.program import Equation, Literal, Program, Var

__all__ = ["Operation", "operations"]


@dataclass(frozen=True, eq=False)
class Operation:
    """Equations that are planned as one.

    Attributes:
      kind: name of the primitive, or "sum of products" for a product that is only summed.
      equations: in order. numbers: their places among the Program's operations.
      operands: encrypted operands, each once. outputs: encrypted results.
      signature: equal where offers are equal, whatever the values are called.
    """

    kind: str
    equations: tuple[Equation, ...]
    numbers: tuple[int, ...]
    operands: tuple[Var, ...]
    outputs: tuple[Var, ...]
    signature: Any


def operations(program: Program, axes: Mapping[int, int | None]) -> list[Operation]:
    """The operations of a Program, in an order in which they can run.

    Products of one value by several public matrices are one operation, at the place of the first;
    a product of which only the sum is used is one with it.
    """
    uses: dict[int, list[Equation | None]] = {}
    for eqn in program.ops:
        for v in eqn.inputs:
            if isinstance(v, Var):
                uses.setdefault(v.id, []).append(eqn)
    for v in program.outputs:
        if isinstance(v, Var):
            uses.setdefault(v.id, []).append(None)
    out: list[Operation] = []
    number = {eqn.index: k for k, eqn in enumerate(program.ops)}
    done: set[int] = set()
    for eqn in program.ops:
        if eqn.index in done:
            continue
        group = [eqn]
        kind = eqn.name
        if kind in ("mul", "square") and _encrypted_product(eqn):
            users = uses.get(eqn.outputs[0].id, [])
            if len(users) == 1 and users[0] is not None and users[0].name == "reduce_sum":
                group.append(users[0])
                kind = "sum of products"
        elif kind == "dot_general" and sum(v.encrypted for v in eqn.inputs) == 1:
            group += _siblings(program, eqn, uses)
        done.update(e.index for e in group)
        last = group[-1:] if kind == "sum of products" else group
        operands = [v for v in group[0].inputs if isinstance(v, Var) and v.encrypted]
        out.append(
            Operation(
                kind,
                tuple(group),
                tuple(number[e.index] for e in group),
                tuple(dict.fromkeys(operands)),
                tuple(v for e in last for v in e.outputs),
                _signature(kind, group, axes),
            )
        )
    return out


def _encrypted_product(eqn: Equation) -> bool:
    return all(v.encrypted for v in eqn.inputs)


def _siblings(
    program: Program, eqn: Equation, uses: Mapping[int, list[Equation | None]]
) -> list[Equation]:
    """Later products of the same operand by public tensors of the same form."""
    (secret,) = [v for v in eqn.inputs if v.encrypted]
    assert isinstance(secret, Var)
    out = []
    for other in uses[secret.id]:
        if other is None or other is eqn or other.index < eqn.index:
            continue
        same = (
            other.name == eqn.name
            and other.params["dimension_numbers"] == eqn.params["dimension_numbers"]
        )
        if same and [v.shape for v in other.inputs] == [v.shape for v in eqn.inputs]:
            if [v.encrypted for v in other.inputs] == [v.encrypted for v in eqn.inputs]:
                out.append(other)
    return out


def _signature(kind: str, group: list[Equation], axes: Mapping[int, int | None]) -> Any:
    parts = []
    for eqn in group:
        operands = []
        for v in eqn.inputs:
            if isinstance(v, Literal):
                operands.append(("literal", v.shape, str(v.value) if not v.shape else id(v)))
            elif v.encrypted:
                operands.append(("secret", v.shape, axes.get(v.id)))
            else:
                operands.append(("public", v.shape, v.id))
        same = tuple(eqn.inputs.index(v) for v in eqn.inputs)
        out = tuple((v.shape, axes.get(v.id)) for v in eqn.outputs)
        parts.append((eqn.name, tuple(operands), same, out, _hashable(eqn.params)))
    return (kind, tuple(parts))


def _hashable(params: Mapping[str, Any]) -> Any:
    out = []
    for name in sorted(params):
        value = params[name]
        try:
            hash(value)
        except TypeError:
            value = repr(value)
        out.append((name, value))
    return tuple(out)
