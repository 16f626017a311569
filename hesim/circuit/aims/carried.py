"""Results that are arguments of the next run, still encrypted: what a training carries on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax import tree_util

from hesim.errors import ArgumentError

if TYPE_CHECKING:
    from hesim.circuit.circuit import TensorLocation
    from hesim.program import Program, Var

__all__ = ["HandedOn", "Pair", "carried_pairs"]


class Pair(NamedTuple):
    """An encrypted result and the encrypted argument that it is at the next run.

    Attributes:
      output: number of the result's leaf. input: number of the argument's leaf.
      result, argument: the values.
    """

    output: int
    input: int
    result: Var
    argument: Var


class HandedOn(NamedTuple):
    """A carried result as it lies for the next run.

    Attributes:
      nodes: of its ciphertexts, in the order of its argument's.
      location: where its elements lie, from its operation's number and the ciphertext of each node.
    """

    nodes: tuple[int, ...]
    location: Callable[[int, np.ndarray], TensorLocation]


def carried_pairs(program: Program, carried: Mapping[int, int] | None) -> tuple[Pair, ...]:
    """The encrypted leaves that are handed on.

    Args:
      carried: by number of an argument, the number of the result that it is at the next run. The
        result of a function that returns no tuple is number 0. Leaves that are public at both ends
        are none of a Circuit's.

    Raises:
      ArgumentError: there is no such argument or result, or they differ in structure, shapes, or in
        what of them is encrypted.
    """
    if not carried:
        return ()
    arguments = tree_util.tree_unflatten(program.in_tree, range(len(program.inputs)))
    results = tree_util.tree_unflatten(program.out_tree, range(len(program.outputs)))
    results = results if type(results) in (tuple, list) else (results,)
    pairs: list[Pair] = []
    for argument, result in carried.items():
        into = _part("argument", argument, arguments)
        out = _part("result", result, results)
        names, of = tree_util.tree_structure(into), tree_util.tree_structure(out)
        if names != of:
            raise ArgumentError(
                f"carried: {_difference(argument, into, result, out)} in {program.name}; what is "
                f"carried has the same structure at both ends"
            )
        leaves = zip(tree_util.tree_leaves(out), tree_util.tree_leaves(into), strict=True)
        pairs += [p for o, i in leaves if (p := _pair(program, o, i)) is not None]
    return tuple(pairs)


def _part(kind: str, number: Any, parts: Any) -> Any:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(parts):
        raise ArgumentError(
            f"carried names {kind} {number!r}, but there are {len(parts)}: give the number of an "
            "argument and that of the result which it is at the next run, {0: 0}"
        )
    return parts[number]


def _difference(argument: int, into: Any, result: int, out: Any) -> str:
    """What of an argument the result lacks, or the other way round, in words."""
    if out is None:
        return f"result {result} is None, and argument {argument} is not"
    wanted, found = _leaf_names(into), _leaf_names(out)
    lacking = [f"args[{argument}]{name}" for name in wanted if name not in found]
    more = [f"result[{result}]{name}" for name in found if name not in wanted]
    parts = [
        f"{_listed(names)} {'has' if len(names) == 1 else 'have'} no counterpart in {end}"
        for names, end in ((lacking, f"result {result}"), (more, f"argument {argument}"))
        if names
    ]
    if parts:
        return " and ".join(parts)
    kinds = type(into).__name__, type(out).__name__
    how = f"a {kinds[0]} and a {kinds[1]}" if kinds[0] != kinds[1] else "of other containers"
    return f"argument {argument} and result {result} are {how}"


def _leaf_names(tree: Any) -> list[str]:
    return [tree_util.keystr(path) for path, _ in tree_util.tree_leaves_with_path(tree)]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _pair(program: Program, output: int, number: int) -> Pair | None:
    result, argument = program.outputs[output], program.inputs[number]
    label = program.labels[number]
    if result.shape != argument.shape:
        raise ArgumentError(
            f"carried: {label} of {program.name} has shape {argument.shape}, and the result that "
            f"it is at the next run {result.shape}"
        )
    secret = bool(getattr(result, "encrypted", False))
    if secret != argument.encrypted:
        ends = ("public", "encrypted") if secret else ("encrypted", "public")
        raise ArgumentError(
            f"carried: {label} of {program.name} is {ends[0]} and the result that it is at the "
            f"next run {ends[1]}: trace it with encrypted= naming it at both ends, or at none"
        )
    return Pair(output, number, result, argument) if secret else None  # type: ignore[arg-type]
