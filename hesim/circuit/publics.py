"""Public operands: which public values a Circuit multiplies by, and their values at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hesim.circuit.moves import FREE_MOVES, move_table
from hesim.errors import HesimError
from hesim.program import Equation, Literal, Program, Var

__all__ = ["NonFiniteOperandError", "Publics", "View"]


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


class Publics:
    """Registry of the public operands of one compilation.

    An operand is a public value of the Program, or something simple derived from it in the clear:
    its reciprocal, the selected part of a `select_n`, the one-hot matrix of a symbolic index.
    """

    def __init__(self, program: Program):
        self.program = program
        self._entries: list[tuple[str, Any]] = []
        self._numbers: dict[tuple[str, int, int], int] = {}
        self._made = {v.id: e for e in program.equations if not e.encrypted for v in e.outputs}

    def __len__(self) -> int:
        return len(self._entries)

    def _number(self, kind: str, what: Any, extra: int = 0) -> int:
        key = (kind, what.id if isinstance(what, Var) else -1 - id(what), extra)
        if key not in self._numbers:
            self._numbers[key] = len(self._entries)
            self._entries.append((kind, (what, extra)))
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
            if eqn.name in FREE_MOVES and len(eqn.inputs) == 1:
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

    def selected(self, eqn: Equation, case: int) -> int:
        """Operand: case `case` of a select_n where it is chosen and public, zero elsewhere."""
        return self._number("selected", eqn.outputs[0], case)

    def mask(self, eqn: Equation, case: int) -> int:
        """Operand: 1 where a select_n chooses `case`, else 0."""
        return self._number("mask", eqn.outputs[0], case)

    def one_hot(self, eqn: Equation) -> int:
        """Operand: the 0/1 matrix (elements out, elements in) of a move to symbolic places."""
        return self._number("one_hot", eqn.outputs[0])

    def evaluate(self, flat_args: Sequence[Any]) -> list[np.ndarray]:
        """Values of the operands, float64, computed in the clear in JAX.

        Args:
          flat_args: leaves of all arguments; the encrypted ones are not looked at (may be None).

        Raises:
          NonFiniteOperandError: a value is NaN or infinite; names the operand's shape.
        """
        producers = {v.id: e for e in self.program.ops for v in e.outputs}
        needed: list[Var] = []
        for kind, (what, _) in self._entries:
            values = (
                producers[what.id].inputs if kind in ("selected", "mask", "one_hot") else (what,)
            )
            needed += [v for v in values if isinstance(v, Var) and not v.encrypted]
        with jax.enable_x64(True):
            leaves = [
                np.zeros(0) if v.encrypted else np.asarray(a, _wide(v.dtype))
                for v, a in zip(self.program.inputs, flat_args, strict=True)
            ]
            found = self.program.evaluate(leaves, wide=True, until=needed)
            known = {v.id: np.asarray(x) for v, x in zip(needed, found, strict=True)}
            out = []
            for kind, (what, extra) in self._entries:
                out.append(_derive(kind, what, extra, known, producers))
        for (kind, (what, _)), value in zip(self._entries, out, strict=True):
            if not np.all(np.isfinite(value)):
                bad = int(np.sum(~np.isfinite(value)))
                raise NonFiniteOperandError(
                    f"a public operand ({kind}) of shape {value.shape} has {bad} elements that are NaN or "
                    f"infinite; check the public arguments ({_where(what, self._made)})."
                )
        return out


def _where(what: Var | Literal, made: dict[int, Equation]) -> str:
    eqn = made.get(what.id) if isinstance(what, Var) else None
    return f"made by {eqn.name} at {eqn.source}" if eqn is not None else "given as an argument"


def _wide(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64) if np.issubdtype(dtype, np.floating) else dtype


def _derive(kind, what, extra, known, producers) -> np.ndarray:
    def value(v):
        return np.asarray(v.value if isinstance(v, Literal) else known[v.id])

    if kind == "value":
        return value(what).astype(np.float64)
    if kind == "inverse":
        with np.errstate(divide="ignore"):
            return 1.0 / value(what).astype(np.float64)
    eqn = producers[what.id]
    if kind == "one_hot":
        encrypted = next(v for v in eqn.inputs if v.encrypted)
        operands = [None if v.encrypted else value(v) for v in eqn.inputs]
        places = np.arange(encrypted.size, dtype=np.int32).reshape(encrypted.shape)
        table = move_table(eqn, [places if v.encrypted else None for v in eqn.inputs], operands)[0]
        return (table.reshape(-1)[:, None] == np.arange(encrypted.size)[None, :]).astype(np.float64)
    which, *cases = eqn.inputs
    shape = eqn.outputs[0].shape
    chosen = np.broadcast_to(np.asarray(value(which)).astype(np.int64) == extra, shape)
    if kind == "mask":
        return chosen.astype(np.float64)
    case = np.broadcast_to(value(cases[extra]).astype(np.float64), shape)
    return np.where(chosen, case, 0.0)
