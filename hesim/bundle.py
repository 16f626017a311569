"""`bundle`: a compiled Circuit and the public arguments that it is run with, as one thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct
from jaxtyping import PyTree, Shaped

from hesim.bundles import structure, versions
from hesim.bundles.bundle import Bundle, Leaf
from hesim.bundles.opened import DTYPES, OpenOperand
from hesim.circuit.circuit import Circuit
from hesim.circuit.moves import move_table
from hesim.circuit.plain.contents import slot_ranges
from hesim.domains import inside, public_polynomials
from hesim.errors import BundleError, TraceError
from hesim.primitives import moves_by_parameters
from hesim.program import Equation, Literal, Program, Var, wide_array

__all__ = ["bundle"]

_SLACK = 2.0**-10
"""By which ranges are wider at least: values carry noise."""


def bundle(
    circuit: Circuit,
    *args: PyTree,
    open: int | Sequence[int] = (),
    examples: Sequence[Sequence[PyTree]] = (),
    margin: float = 0.25,
) -> Bundle:
    """What it takes to run a compiled function elsewhere: without JAX, and without its code.

    Public arguments are evaluated and become part of the Bundle, but for those that are left open:
    they may change from call to call, and whoever calls gives them, in the clear.

    Args:
      circuit: from `hesim.compile`.
      args: as the traced function's. The encrypted ones are an example of what will be encrypted;
        `jax.ShapeDtypeStruct` in their place gives none.
      open: numbers of public arguments to leave open, such as a padding mask.
      examples: more such tuples of arguments. A call refuses values that leave the range met in
        all examples: encrypted, nobody would see that they leave the domain of a polynomial. At
        each refresh and decryption the key holder refuses values of larger magnitude than met.
      margin: part of their span, and of their magnitude, by which these are widened.

    Returns:
      A Bundle, for `hesim.save`.

    Raises:
      BundleError: the Circuit was loaded, so its program is not known; something is computed from
        an open argument that is more than a move or a conversion, at a line of yours; an argument
        is of a class that plain data does not have; a public value leaves a polynomial's domain.
      BackendError: the values of an example do not fit their levels.
      TraceError: arguments of another structure or shape.
      NonFiniteOperandError: a public operand is NaN or infinite.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> x, w, mask = np.ones(4), np.arange(4.0), np.ones(4)
      >>> program = hesim.trace(lambda x, w, mask: (x + w) * mask, x, w, mask)
      >>> bundle = hesim.bundle(hesim.compile(program, params), x, w, mask, open=2)
      >>> [leaf.label for leaf in bundle.leaves]
      ['args[0]', 'args[2]']
    """
    if not isinstance(circuit, Circuit):
        raise TraceError(
            f"bundle takes a Circuit first, not a {type(circuit).__name__}: circuit = "
            f"hesim.compile(program, params)"
        )
    if circuit.program is None or circuit.publics is None:
        raise BundleError(
            "a Circuit that was loaded carries no program, from which a bundle is made: bundle it "
            "where it was compiled, and save that"
        )
    program: Program = circuit.program
    flat = program.flatten(args)
    kept = _kept(program, _numbers(open, len(args)))
    call = _call(program, kept)
    opened = _Opened(program, [k for k, _ in kept if not program.inputs[k].encrypted])
    _check_domains(program, flat)
    operands, recipes = _operands(circuit, flat, opened, dict(kept))
    met = [_encrypted(program, flat), *(_encrypted(program, program.flatten(e)) for e in examples)]
    found = Bundle(
        name=program.name,
        circuit=dataclasses.replace(circuit, program=None, publics=None),
        call=call,
        leaves=tuple(_leaf(program, k, met, margin) for k, _ in kept),
        operands=operands,
        opened=recipes,
        result=_structure(program.out_tree, iter(range(program.out_tree.num_leaves)), "the result"),
        publics=_publics(program, circuit, flat, opened),
        ranges={},
        versions=versions.here(),
    )
    given = [flat, *map(program.flatten, examples)]
    return dataclasses.replace(found, ranges=_ranges(found, kept, given, met, margin))


# Arguments


def _numbers(open: int | Sequence[int], count: int) -> list[int]:
    numbers = [open] if isinstance(open, int) else list(open)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise BundleError(f"open={open!r} must be numbers of arguments, from 0 to {count - 1}")
    return numbers


def _kept(program: Program, open: Sequence[int]) -> list[tuple[int, int]]:
    """Leaves of all arguments that a call gives, each with its number in the call."""
    argument = [
        k for k, tree in enumerate(program.in_tree.children()) for _ in range(tree.num_leaves)
    ]
    secret = {argument[k] for k, var in enumerate(program.inputs) if var.encrypted}
    both = sorted(secret & set(open))
    if both:
        raise BundleError(f"argument {both[0]} is encrypted, so it is given with a call as it is")
    leaves = [
        k for k, var in enumerate(program.inputs) if var.encrypted or argument[k] in set(open)
    ]
    for k in leaves:
        if not program.inputs[k].encrypted and program.inputs[k].dtype.name not in DTYPES:
            raise BundleError(
                f"{program.labels[k]} is left open, but NumPy alone has no "
                f"{program.inputs[k].dtype.name}: trace the function with float32 there"
            )
    return [(k, number) for number, k in enumerate(leaves)]


def _call(program: Program, kept: Sequence[tuple[int, int]]) -> structure.Structure:
    """Structure of the tuple of arguments that a call gives."""
    number, leaves = dict(kept), iter(range(len(program.inputs)))
    found = []
    for k, tree in enumerate(program.in_tree.children()):
        own = [next(leaves) for _ in range(tree.num_leaves)]
        if any(leaf in number for leaf in own):
            whole = _structure(tree, iter(own), f"argument {k}")
            part = structure.pruned(whole, number.__contains__)
            found.append(structure.renumbered(part, number))
    return {"tuple": found}


def _structure(tree: Any, numbers: Iterator[int], what: str) -> structure.Structure:
    """A pytree as plain data. BundleError if it has a node that is no dict, list or tuple."""
    node = tree.node_data()
    if node is None:
        return next(numbers)
    kind, keys = node
    children = [_structure(child, numbers, what) for child in tree.children()]
    if kind is type(None):
        return None
    if issubclass(kind, dict):
        if not all(type(key) in (str, int) for key in keys):
            raise BundleError(f"{what} has a dict whose keys are not all text or whole numbers")
        return {"dict": [[key, child] for key, child in zip(keys, children, strict=True)]}
    if hasattr(kind, "_fields"):  # a named tuple
        return {"dict": [[key, c] for key, c in zip(kind._fields, children, strict=True)]}
    if kind in (tuple, list):
        return {kind.__name__: children}
    raise BundleError(
        f"{what} holds a {kind.__name__}, which is made of code that a bundle does not have: use "
        f"dicts, lists and tuples there, or leave it to the public arguments that are not open"
    )


def _leaf(program: Program, k: int, met: Sequence[dict[int, np.ndarray]], margin: float) -> Leaf:
    var, label = program.inputs[k], program.labels[k]
    values = [found[k] for found in met if k in found]
    if not var.encrypted or not values:
        return Leaf(label, var.shape, var.dtype.name, var.encrypted)
    bounds = [(float(x.min()), float(x.max())) for x in values if x.size]
    low, high = _widened(bounds, margin) if bounds else (-np.inf, np.inf)
    return Leaf(label, var.shape, var.dtype.name, True, low, high)


def _encrypted(program: Program, flat: Sequence[Any]) -> dict[int, Shaped[np.ndarray, "..."]]:
    """Values of encrypted leaves by their numbers, float64; none of a leaf that is only a shape."""
    return {
        k: np.asarray(leaf, np.float64)
        for k, (leaf, var) in enumerate(zip(flat, program.inputs, strict=True))
        if var.encrypted and not isinstance(leaf, ShapeDtypeStruct)
    }


def _check_domains(program: Program, flat: Sequence[Any]) -> None:
    for equation, values in public_polynomials(program, flat):
        outside = ~inside(equation, values)
        if np.any(outside):
            raise BundleError(
                f"`{equation.name}` at {equation.source}: {np.sum(outside)} of {values.size} "
                f"public values leave the domain of {equation.params['poly']!r}; fit it on a wider "
                f"one"
            )


# What is public


class _Opened:
    """Which public values depend on open arguments, and how those are made that only move them.

    Args:
      program: traced. leaves: numbers of the open arguments among its inputs.
    """

    def __init__(self, program: Program, leaves: Sequence[int]):
        self._leaf = {program.inputs[k].id: k for k in leaves}
        self._made = {v.id: e for e in program.equations if not e.encrypted for v in e.outputs}
        self._dependent = set(self._leaf)
        for equation in program.equations:
            if any(isinstance(v, Var) and v.id in self._dependent for v in equation.inputs):
                self._dependent |= {v.id for v in equation.outputs if not v.encrypted}

    def depends(self, value: Var | Literal) -> bool:
        return isinstance(value, Var) and value.id in self._dependent

    def steps(self, value: Var, user: str) -> tuple[int, list[str | np.ndarray]]:
        """The argument's leaf, and what leads from it to `value`: conversions and moves.

        Raises:
          BundleError: more than that does; names the line.
        """
        if value.id in self._leaf:
            return self._leaf[value.id], [value.dtype.name]
        equation = self._made[value.id]
        if len(equation.inputs) == 1 and isinstance(operand := equation.inputs[0], Var):
            if equation.name == "convert_element_type" and value.dtype.name in DTYPES:
                leaf, steps = self.steps(operand, user)
                return leaf, [*steps, value.dtype.name]
            if moves_by_parameters(equation.name):
                which = [v.id for v in equation.outputs].index(value.id)
                places = np.arange(operand.size).reshape(operand.shape)
                leaf, steps = self.steps(operand, user)
                return leaf, [*steps, move_table(equation, [places], [None])[which]]
        raise self.refused(equation, user)

    def refused(self, equation: Equation, user: str) -> BundleError:
        return BundleError(
            f"`{equation.name}` at {equation.source} computes {user} from an open argument, which "
            f"running without JAX cannot: make it an argument of its own and leave that open, or "
            f"leave none open that it depends on"
        )


def _operands(
    circuit: Circuit, flat: Sequence[Any], opened: _Opened, number: Mapping[int, int]
) -> tuple[tuple[np.ndarray | None, ...], tuple[OpenOperand, ...]]:
    """Values of the operands, None of those that are open, and how these are made."""
    used = {family.operand for family in circuit.packs}
    known: list[np.ndarray | None] = list(circuit.publics.evaluate(flat))
    recipes = []
    for k, source in enumerate(circuit.publics.sources()):
        if k not in used:
            known[k] = np.zeros(0)
            continue
        dependent = [v for v in source.values if opened.depends(v)]
        if not dependent:
            continue
        if source.equation is not None:
            raise opened.refused(source.equation, "where values are selected or moved")
        (value,) = source.values
        assert isinstance(value, Var)
        leaf, steps = opened.steps(value, "an operand of the encrypted part")
        recipes.append(OpenOperand(k, number[leaf], tuple(steps), source.kind == "inverse"))
        known[k] = None
    return tuple(known), tuple(recipes)


def _publics(
    program: Program, circuit: Circuit, flat: Sequence[Any], opened: _Opened
) -> dict[int, np.ndarray]:
    """Public arrays of the result, by number; floats in float64."""
    public = [k for k, tap in enumerate(circuit.outputs) if tap is None]
    wanted: list[Var] = []
    for value in (program.outputs[k] for k in public):
        if opened.depends(value):
            raise BundleError(
                "a public part of the result depends on an open argument: let the caller compute "
                "it, or leave that argument closed"
            )
        if isinstance(value, Var):
            wanted.append(value)
    known = program.public_values(flat, wanted) if wanted else {}
    held = {
        k: v.value if isinstance(v, Literal) else known[v.id]
        for k, v in ((k, program.outputs[k]) for k in public)
    }
    return {k: wide_array(np.asarray(value)) for k, value in held.items()}


# Ranges


def _ranges(
    found: Bundle,
    kept: Sequence[tuple[int, int]],
    given: Sequence[Sequence[Any]],
    met: Sequence[Mapping[int, np.ndarray]],
    margin: float,
) -> dict[int, tuple[float, float]]:
    """Of the ciphertexts that are decrypted: those of all examples, widened."""
    bounds: dict[int, list[tuple[float, float]]] = {}
    secret = [k for k, number in kept if found.leaves[number].encrypted]
    for flat, values in zip(given, met, strict=True):
        if len(values) < len(secret):
            continue  # only shapes are known of an argument
        operands = found.filled({number: flat[k] for k, number in kept})
        inputs = [values[k] for k in secret]
        for c, bound in slot_ranges(found.circuit, inputs, operands).items():
            bounds.setdefault(c, []).append(bound)
    largest = {c: max(max(map(abs, bound)) for bound in those) for c, those in bounds.items()}
    most = {c: (1 + margin) * x + _SLACK for c, x in sorted(largest.items())}
    return {c: (-x, x) for c, x in most.items()}  # what wraps around the modulus is large


def _widened(bounds: Sequence[tuple[float, float]], margin: float) -> tuple[float, float]:
    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    more = margin * max(high - low, abs(high), abs(low)) + _SLACK
    return low - more, high + more
