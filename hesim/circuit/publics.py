"""Public operands: which public values a Circuit multiplies by, and their values at run time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from hesim.circuit.layout import stripped
from hesim.circuit.moves import index_places, move_table, scatter_targets
from hesim.circuit.origin import PARTS, digests
from hesim.errors import HesimError, ParameterError
from hesim.primitives import moves_by_parameters
from hesim.program import Equation, Literal, Program, Var

if TYPE_CHECKING:
    from hesim.circuit.circuit import Circuit

__all__ = ["NonFiniteOperandError", "OperandSource", "Publics", "View", "bound"]


class NonFiniteOperandError(HesimError, ValueError):
    """A public operand of the encrypted part holds NaN or infinity."""


class View:
    """Elements of a public tensor: operand number and flat index of each element.

    Attributes:
      operand: index into the public operands.
      index: int64 array of the viewed shape, into the flattened operand.
    """

    def __init__(self, operand: int, index: np.ndarray):
        self.operand = operand
        self.index = index

    def reshape(self, *shape: int) -> View:
        return View(self.operand, self.index.reshape(*shape))


class OperandSource(NamedTuple):
    """What a public operand is made of.

    Attributes:
      kind: "value" or "inverse" of a public value, else a key of `_WHAT`.
      values: the public values that it depends on.
      equation: the operation on encrypted values whose selection or move it is, None of a value.
    """

    kind: str
    values: tuple[Var | Literal, ...]
    equation: Equation | None


class Publics:
    """Registry of the public operands of one compilation.

    An operand is a public value of the Program, or something simple derived from it in the clear:
    its reciprocal, the selected part of a `select_n`, the one-hot matrix of an index argument.

    Attributes:
      user: the operation that asks for operands; messages about their values name it.
    """

    def __init__(self, program: Program):
        self.program = program
        self.user: Equation | None = None
        self._entries: list[tuple[str, Any]] = []
        self._users: list[Equation | None] = []
        self._numbers: dict[tuple[str, int, Any], int] = {}
        self._made = {v.id: e for e in program.equations if not e.encrypted for v in e.outputs}

    def __len__(self) -> int:
        return len(self._entries)

    def _number(self, kind: str, what: Any, extra: Any = 0) -> int:
        key = (kind, what.id if isinstance(what, Var) else -1 - id(what), extra)
        if key not in self._numbers:
            self._numbers[key] = len(self._entries)
            self._entries.append((kind, (what, extra)))
            self._users.append(self.user)
        return self._numbers[key]

    def view(self, value: Var | Literal, shape: tuple[int, ...], kind: str = "value") -> View:
        """The operand behind a public value, seen through broadcasts and other moves.

        Args:
          value: public value; a scalar is spread over `shape`.
          kind: "value" or "inverse".
        """
        root, index = self._root(value)
        if index.shape != shape:
            index = np.broadcast_to(index, shape)  # size-1 dimensions and scalars spread
        return View(self._number(kind, root), index)

    def _root(self, value: Var | Literal) -> tuple[Var | Literal, np.ndarray]:
        if isinstance(value, Var) and value.id in self._made:
            eqn = self._made[value.id]
            if len(eqn.inputs) == 1 and moves_by_parameters(eqn.name):
                root, index = self._root(eqn.inputs[0])
                which = [v.id for v in eqn.outputs].index(value.id)
                table = move_table(eqn, [np.arange(index.size).reshape(index.shape)], [None])[which]
                return root, index.reshape(-1)[table]
        return value, np.arange(int(np.prod(value.shape, dtype=np.int64))).reshape(value.shape)

    def uniform(self, value: Var | Literal) -> float | None:
        """The number that every element of a constant public value equals, or None."""
        constant = self.program.constant(self._root(value)[0])
        if constant is None or constant.size == 0:
            return None
        first = float(np.asarray(constant).flat[0])
        return first if np.all(np.asarray(constant) == first) else None

    def magnitude(self, value: Var | Literal) -> float:
        """Largest absolute element of a constant public value; 1 where it is not known."""
        constant = self.program.constant(self._root(value)[0])
        if constant is None or constant.size == 0:
            return 1.0
        return float(np.max(np.abs(np.asarray(constant, np.float64))))

    def selected(self, eqn: Equation, case: int) -> int:
        """Operand: case `case` of a select_n where it is chosen and public, zero elsewhere."""
        return self._number("selected", eqn.outputs[0], case)

    def mask(self, eqn: Equation, case: int) -> int:
        """Operand: 1 where a select_n chooses `case`, else 0."""
        return self._number("mask", eqn.outputs[0], case)

    def one_hot(
        self, eqn: Equation, operand: int, axis_in: int | None, axis_out: int | None
    ) -> int:
        """Operand: the 0/1 matrix (elements out, in) of a move to places known at run time.

        Args:
          operand: which input of the equation it multiplies.
          axis_in, axis_out: batch axes that the move leaves alone; the matrix is of one member.
        """
        return self._number("one_hot", eqn.outputs[0], (operand, axis_in, axis_out))

    def moved(self, eqn: Equation, operand: int) -> int:
        """Operand: what a move to places known at run time takes from a public input."""
        return self._number("moved", eqn.outputs[0], (operand,))

    def plain(self) -> list[list[Any]]:
        """The operands as plain data, their values by number: see `restored`."""
        literals = {
            id(v): [e.index, k]
            for e in self.program.equations
            for k, v in enumerate(e.inputs)
            if isinstance(v, Literal)
        }
        return [
            [
                kind,
                what.id if isinstance(what, Var) else literals[id(what)],
                list(extra) if isinstance(extra, tuple) else extra,
                None if user is None else user.index,
            ]
            for (kind, (what, extra)), user in zip(self._entries, self._users, strict=True)
        ]

    def origin(self) -> dict[str, Any]:
        """Plain data by which `bound` finds back from a saved Circuit."""
        return {**digests(self.program), "publics": self.plain()}

    @classmethod
    def restored(cls, program: Program, plain: Sequence[Sequence[Any]]) -> Publics:
        """The operands that `plain` described, of a Program with the same numbers."""
        found = cls(program)
        made = (v for e in program.equations for v in e.outputs)
        values = {v.id: v for v in (*program.inputs, *(v for v, _ in program.consts), *made)}
        equations = {e.index: e for e in program.equations}
        for kind, what, extra, user in plain:
            held = values[what] if isinstance(what, int) else equations[what[0]].inputs[what[1]]
            found.user = None if user is None else equations[user]
            found._number(kind, held, tuple(extra) if isinstance(extra, list) else extra)
        found.user = None
        return found

    def sources(self) -> list[OperandSource]:
        """What each operand is made of."""
        producers = {v.id: e for e in self.program.ops for v in e.outputs}
        found = []
        for kind, (what, _) in self._entries:
            if kind in ("value", "inverse"):
                found.append(OperandSource(kind, (what,), None))
            else:
                equation = producers[what.id]
                public = tuple(v for v in equation.inputs if not v.encrypted)
                found.append(OperandSource(kind, public, equation))
        return found

    def evaluate(self, flat_args: Sequence[Any]) -> list[np.ndarray]:
        """Values of the operands, float64: what the traced function computes in the clear.

        Args:
          flat_args: leaves of all arguments; the encrypted ones are not looked at (may be None).

        Raises:
          NonFiniteOperandError: a value is NaN or infinite; names the operation that uses it.
        """
        producers = {v.id: e for e in self.program.ops for v in e.outputs}
        needed: list[Var] = []
        for kind, (what, _) in self._entries:
            values = (what,) if kind in ("value", "inverse") else producers[what.id].inputs
            needed += [v for v in values if isinstance(v, Var) and not v.encrypted]
        found = self.program.public_values(flat_args, needed)
        known = {name: np.asarray(x) for name, x in found.items()}
        with jax.enable_x64(True):
            out = [
                _derive(kind, what, extra, known, producers)
                for kind, (what, extra) in self._entries
            ]
        for (kind, (what, _)), user, value in zip(self._entries, self._users, out, strict=True):
            if not np.all(np.isfinite(value)):
                bad = int(np.sum(~np.isfinite(value)))
                raise NonFiniteOperandError(
                    f"{_name(user)}{bad} of {value.size} elements of {_WHAT[kind]} are "
                    f"NaN or infinite. It is {_origin(what, self._made)}."
                )
        return out


def bound(circuit: Circuit, program: Program) -> Circuit:
    """The Circuit with `program`, of which it was compiled, in this process or in another one.

    Raises:
      ParameterError: it was compiled of another Program; says what differs.
    """
    if circuit.program is program and circuit.publics is not None:
        return circuit
    origin = circuit.origin if circuit.publics is None else circuit.publics.origin()
    if origin is None:
        raise ParameterError(
            "the circuit does not say which program it was compiled from (a version before this "
            "one saved it); compile it anew with hesim.compile(program, params)"
        )
    own = digests(program)
    differ = [what for part, what in PARTS.items() if origin[part] != own[part]]
    if differ:
        raise ParameterError(
            f"the circuit was not compiled from this program (another: {'; '.join(differ)}); "
            f"compile it with hesim.compile(program, params)"
        )
    publics = Publics.restored(program, origin["publics"])
    return dataclasses.replace(circuit, program=program, publics=publics, origin=origin)


_WHAT = {
    "value": "a public operand",
    "inverse": "the reciprocal of a public operand",
    "selected": "the public part of a selection",
    "mask": "a mask",
    "one_hot": "a one-hot matrix",
    "moved": "the public part of a move",
}


def _name(user: Equation | None) -> str:
    return "" if user is None else f"`{user.name}` at {user.source}: "


def _origin(what: Var | Literal, made: dict[int, Equation]) -> str:
    if isinstance(what, Literal):
        return "a constant of the function"
    eqn = made.get(what.id)
    return "an argument: clean it first" if eqn is None else f"made by {eqn.name} at {eqn.source}"


def _derive(
    kind: str, what: Any, extra: Any, known: Mapping[int, Any], producers: Mapping[int, Equation]
) -> np.ndarray:
    def value(v: Any):
        return np.asarray(v.value if isinstance(v, Literal) else known[v.id])

    if kind == "value":
        return value(what).astype(np.float64)
    if kind == "inverse":
        with np.errstate(divide="ignore"):
            return 1.0 / value(what).astype(np.float64)
    eqn = producers[what.id]
    if kind == "one_hot":
        return _one_hot(eqn, value, *extra)
    if kind == "moved":
        return _moved(eqn, value, *extra)
    which, *cases = eqn.inputs
    shape = eqn.outputs[0].shape
    chosen = np.broadcast_to(np.asarray(value(which)).astype(np.int64) == extra, shape)
    if kind == "mask":
        return chosen.astype(np.float64)
    case = np.broadcast_to(value(cases[extra]).astype(np.float64), shape)
    return np.where(chosen, case, 0.0)


def _one_hot(
    eqn: Equation,
    value: Callable[[Any], np.ndarray],
    operand: int,
    axis_in: int | None,
    axis_out: int | None,
) -> np.ndarray:
    inner = stripped(eqn.inputs[operand].shape, axis_in)
    size = int(np.prod(inner, dtype=np.int64))
    if eqn.name == "scatter-add":
        target = scatter_targets(eqn, value(eqn.inputs[1])).reshape(-1)
        total = int(np.prod(eqn.outputs[0].shape, dtype=np.int64))
        return (np.arange(total)[:, None] == target[None, :]).astype(np.float64)
    numbers = np.arange(1, size + 1).reshape(inner)
    if axis_in is not None:
        numbers = np.broadcast_to(np.expand_dims(numbers, axis_in), eqn.inputs[operand].shape)
    table = _moved_numbers(eqn, value, operand, numbers)
    if axis_out is not None:
        table = table.take(0, axis=axis_out)
    return (table.reshape(-1)[:, None] == np.arange(1, size + 1)[None, :]).astype(np.float64)


def _moved(eqn: Equation, value: Callable[[Any], np.ndarray], operand: int) -> np.ndarray:
    given = value(eqn.inputs[operand]).astype(np.float64)
    if eqn.name == "scatter-add":
        if operand == 0:
            return given
        target = scatter_targets(eqn, value(eqn.inputs[1])).reshape(-1)
        out = np.zeros(int(np.prod(eqn.outputs[0].shape, dtype=np.int64)))
        np.add.at(out, target[target >= 0], given.reshape(-1)[target >= 0])
        return out.reshape(eqn.outputs[0].shape)
    numbers = np.arange(1, given.size + 1).reshape(given.shape)
    table = _moved_numbers(eqn, value, operand, numbers)
    return np.concatenate([np.zeros(1), given.reshape(-1)])[table]


def _moved_numbers(
    eqn: Equation, value: Callable[[Any], np.ndarray], operand: int, numbers: np.ndarray
) -> np.ndarray:
    """Where the numbers of one operand land; 0 where something else does."""
    places = index_places(eqn)
    indices = [value(v) if k in places else None for k, v in enumerate(eqn.inputs)]
    tables = [
        None if k in places else numbers if k == operand else np.zeros(v.shape, np.int32)
        for k, v in enumerate(eqn.inputs)
    ]
    return move_table(eqn, tables, indices)[0]
