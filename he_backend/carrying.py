"""What batches carry on, seen from the function: arguments, results, and what of them is public."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import tree_util

from he_backend.errors import BackendError
from he_backend.machines.protocol import Machine
from hesim.circuit.circuit import Circuit
from hesim.program import Literal, Program, Var, wide_array

__all__ = [
    "LeftHere",
    "carried_results",
    "filled",
    "leaves_of",
    "next_state",
    "public_results",
    "result",
    "with_carried",
    "with_state",
]


@dataclass(frozen=True)
class LeftHere:
    """What a batch on plain vectors left in this process.

    Attributes:
      machine: that it ran on. ciphers: what is carried, by input instruction of the next batch.
      vectors: what was read of it, by ciphertext. public: public leaves of the result, by number.
    """

    machine: Machine
    ciphers: Mapping[int, Any]
    vectors: Mapping[int, np.ndarray]
    public: Mapping[int, np.ndarray]

    def read(self, circuit: Circuit) -> tuple[dict[int, np.ndarray], Mapping[int, np.ndarray]]:
        """Slot vectors by ciphertext, carried ones included, and the public leaves."""
        carried = {c: self.machine.decrypt(self.ciphers[i]) for c, i in circuit.carried}
        return {**self.vectors, **carried}, self.public


def carried_results(circuit: Circuit) -> frozenset[int]:
    """Leaves of the result, by number, that lie in carried ciphertexts only."""
    carried = {c for c, _ in circuit.carried}
    return frozenset(
        number
        for number, tap in enumerate(circuit.outputs)
        if tap is not None and len(tap.ciphers) and carried.issuperset(tap.ciphers.tolist())
    )


def public_results(program: Program, flat: Sequence[Any]) -> dict[int, np.ndarray]:
    """Leaves of the result that are public, by number, floats in float64.

    Args:
      flat: leaves of the arguments; encrypted ones are not looked at.
    """
    public = {k: v for k, v in enumerate(program.outputs) if not getattr(v, "encrypted", False)}
    wanted = list(dict.fromkeys(v for v in public.values() if isinstance(v, Var)))
    found = program.public_values(flat, wanted) if wanted else {}
    with jax.enable_x64(True):
        return {
            k: np.asarray(
                wide_array(np.asarray(v.value if isinstance(v, Literal) else found[v.id]))
            )
            for k, v in public.items()
        }


def leaves_of(
    circuit: Circuit,
    vectors: Mapping[int, np.ndarray],
    public: Mapping[int, np.ndarray],
    *,
    carried: bool = False,
) -> list[Any]:
    """Leaves of the function's result out of decrypted slot vectors, in order.

    Args:
      public: those that are public, by number; None stands for those that are not known.
      carried: whether carried leaves were decrypted, too; None stands for them otherwise.
    """
    hidden = frozenset() if carried else carried_results(circuit)
    return [
        public.get(k) if tap is None else None if k in hidden else tap.read(vectors)
        for k, tap in enumerate(circuit.outputs)
    ]


def result(
    program: Program,
    circuit: Circuit,
    vectors: Mapping[int, np.ndarray],
    public: Mapping[int, np.ndarray],
) -> Any:
    """The function's result; None stands for what is carried. See `leaves_of`."""
    return tree_util.tree_unflatten(program.out_tree, leaves_of(circuit, vectors, public))


def filled(program: Program, circuit: Circuit, args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of a batch that goes on from another: zeros for a carried one that is None.

    Raises:
      BackendError: a carried argument is None, and some of it is public.
    """
    carried = {a for a, _ in circuit.carries}
    numbers = tree_util.tree_unflatten(program.in_tree, range(len(program.inputs)))
    found = list(args)
    for a in [a for a in carried if a < len(found) and found[a] is None]:
        own = tree_util.tree_leaves(numbers[a])
        public = [program.labels[k] for k in own if not program.inputs[k].encrypted]
        if public:
            raise BackendError(
                f"argument {a} of {program.name} is None, but {', '.join(public)} of it is public "
                f"and goes on in the clear: give it, with anything in the place of what is carried"
            )
        zeros = [np.broadcast_to(np.float32(0), program.inputs[k].shape) for k in own]
        found[a] = tree_util.tree_unflatten(tree_util.tree_structure(numbers[a]), zeros)
    return tuple(found)


def next_state(program: Program, circuit: Circuit, leaves: Sequence[Any]) -> tuple[Any, ...]:
    """The carried arguments of the next batch, out of the leaves of this one's result; zeros for
    those that are None.
    """
    state = []
    for own, new, tree in _carried(program, circuit):
        given = [leaves[r] for r in new]
        shapes = [program.inputs[k].shape for k in own]
        pairs = zip(given, shapes, strict=True)
        whole = [np.broadcast_to(np.float32(0), shape) if x is None else x for x, shape in pairs]
        state.append(tree_util.tree_unflatten(tree, whole))
    return tuple(state)


def with_carried(
    program: Program, circuit: Circuit, args: Sequence[Any], leaves: Sequence[Any]
) -> tuple[Any, ...]:
    """Arguments whose carried encrypted leaves are those of a result; others stay as they are."""
    found = list(filled(program, circuit, args))
    ends = zip(circuit.carries, _carried(program, circuit), strict=True)
    for (a, _), (own, new, tree) in ends:
        given = zip(tree_util.tree_leaves(found[a]), own, new, strict=True)
        whole = [leaves[r] if program.inputs[k].encrypted else x for x, k, r in given]
        found[a] = tree_util.tree_unflatten(tree, whole)
    return tuple(found)


def with_state(circuit: Circuit, state: Sequence[Any], others: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of a step: the state in the places of what is carried, the others in the rest.

    Args:
      state: in the order in which the Circuit was asked to carry it. others: in theirs.

    Raises:
      BackendError: the state has another number of arguments.
    """
    if len(state) != len(circuit.carries):
        raise BackendError(
            f"a state has {len(circuit.carries)} arguments, as the circuit was compiled with "
            f"carried={dict(circuit.carries)}, not {len(state)}: give them as a tuple"
        )
    own = {a: x for (a, _), x in zip(circuit.carries, state, strict=True)}
    rest = iter(others)
    count = len(state) + len(others)
    return tuple(own[k] if k in own else next(rest) for k in range(count))


def _carried(program: Program, circuit: Circuit) -> list[tuple[list[int], list[int], Any]]:
    """Of each carried argument its leaves, the result's leaves that they are next, and its tree."""
    arguments = tree_util.tree_unflatten(program.in_tree, range(len(program.inputs)))
    results = tree_util.tree_unflatten(program.out_tree, range(len(program.outputs)))
    results = results if type(results) in (tuple, list) else (results,)
    found = []
    for a, r in circuit.carries:
        own, tree = tree_util.tree_flatten(arguments[a])
        found.append((own, tree_util.tree_leaves(results[r]), tree))
    return found
