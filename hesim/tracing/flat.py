"""A function as a flat jaxpr: calls inlined, loops over encrypted values unrolled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jax.extend import core
from jax.interpreters import partial_eval as pe

from hesim.errors import TraceError
from hesim.source import Source, of_frames
from hesim.tracing.failures import explained
from hesim.tracing.frames import Frame, registered
from hesim.tracing.inline import Inliner, Mark

__all__ = ["Flat", "flattened", "without_dead"]


@dataclass(frozen=True, eq=False)
class Flat:
    """A function read once.

    Attributes:
      name: for messages and listings.
      closed: the flat jaxpr, dead equations removed.
      flags: whether each argument leaf is encrypted.
      in_tree, out_tree: pytree structures of the arguments (a tuple) and the result.
      labels: a readable name per argument leaf.
      mark_of: where an equation comes from.
      traced_at: where in the caller's code the function was read.
    """

    name: str
    closed: core.ClosedJaxpr
    flags: tuple[bool, ...]
    in_tree: Any
    out_tree: Any
    labels: tuple[str, ...]
    mark_of: Callable[[Any], Mark]
    traced_at: Source | None


def flattened(
    fn: Callable[..., Any],
    args: Sequence[Any],
    encrypted: Any,
    name: str,
    both_ways: bool = False,
) -> Flat:
    """Reads a function.

    Args:
      fn, args, encrypted: as of `hesim.trace`. name: for messages.
      both_ways: whether choices on encrypted predicates become selections.

    Raises:
      TraceError: as `hesim.trace`.
    """
    paths, in_tree = tree_util.tree_flatten_with_path(tuple(args))
    labels = tuple("args" + tree_util.keystr(path) for path, _ in paths)
    avals = [_abstract(leaf, label) for (_, leaf), label in zip(paths, labels, strict=True)]
    flags = flags_of(encrypted, args, in_tree, len(avals))
    for aval, flag, label in zip(avals, flags, labels, strict=True):
        if flag and not jnp.issubdtype(aval.dtype, jnp.floating):
            raise TraceError(
                f"{label} of {name} is encrypted but has dtype {aval.dtype}: CKKS carries real "
                f"numbers. {_remedy(args, labels, avals, label)}"
            )
    out_tree = None

    def flat_fn(*leaves: Any):
        nonlocal out_tree
        out = fn(*tree_util.tree_unflatten(in_tree, leaves))
        flat, out_tree = tree_util.tree_flatten(out)
        return flat

    traced_at = _caller(name)
    with explained(name, fn, traced_at):
        closed = jax.make_jaxpr(flat_fn)(*avals)
    closed = without_dead(closed)
    inline = Inliner(both_ways)
    flat = without_dead(jax.make_jaxpr(functools.partial(inline, closed, flags))(*avals))
    return Flat(name, flat, tuple(flags), in_tree, out_tree, labels, inline.mark_of, traced_at)


def _abstract(leaf: Any, label: str) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    try:
        return jax.ShapeDtypeStruct(
            np.shape(leaf), jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
        )
    except (TypeError, ValueError) as error:
        if isinstance(leaf, np.ndarray | np.generic):
            raise TraceError(
                f"{label} is an array of dtype {leaf.dtype}, which JAX does not take: convert it, "
                f"np.asarray(x, np.float64)."
            ) from error
        raise TraceError(
            f"{label} is a {type(leaf).__name__}, which is not an array; close over it instead of "
            "passing it as an argument."
        ) from error


def _remedy(
    args: Sequence[Any], labels: Sequence[str], avals: Sequence[jax.ShapeDtypeStruct], label: str
) -> str:
    """What to do about a leaf that is no real number: of an argument that holds real ones, too, as
    the state of an optimizer with its count, it may stay public.
    """
    number = int(label.removeprefix("args[").partition("]")[0])
    own = [a for a, n in zip(avals, labels, strict=True) if n.startswith(f"args[{number}]")]
    if not any(jnp.issubdtype(aval.dtype, jnp.floating) for aval in own):
        return (
            "Pass it as floating point (integers as floats, token ids embedded first); or leave "
            f"argument {number} out of `encrypted` if it is no secret, as an optimizer's count."
        )
    flags = ["True"] * len(args)
    flags[number] = (
        f"jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), args[{number}])"
    )
    return (
        f"If it is no secret, as the count of an optimizer, leave it public, by a pytree of bools: "
        f"encrypted=({', '.join(flags)}{',' if len(flags) == 1 else ''}), with False for arguments "
        "that are public. Else pass it as floating point."
    )


def flags_of(encrypted: Any, args: Sequence[Any], in_tree: Any, leaves: int) -> list[bool]:
    if encrypted is None:
        raise TraceError(
            "encrypted=None does not say which arguments are encrypted: give their numbers, "
            "encrypted=(0, 2), or a pytree of bools; () for none."
        )
    if isinstance(encrypted, (int, np.integer)) and not isinstance(encrypted, bool):
        encrypted = (int(encrypted),)
    numbers = _numbers(encrypted)
    if numbers is not None:
        chosen = set()
        for i in numbers:
            if not -len(args) <= i < len(args):
                raise TraceError(
                    f"encrypted names argument {i}, but there are {len(args)} arguments."
                )
            chosen.add(i % len(args))
        prefix: Any = tuple(i in chosen for i in range(len(args)))
    else:
        prefix = tuple(encrypted) if isinstance(encrypted, list) else encrypted
    whole = tree_util.tree_unflatten(in_tree, [0] * leaves)

    def spread_over(flag: Any, part: Any) -> list[bool]:
        if not isinstance(flag, (bool, np.bool_)):
            raise TraceError(f"{flag!r} is not a bool")
        return [bool(flag)] * len(jax.tree.leaves(part))

    try:
        spread = jax.tree.map(spread_over, prefix, whole)
    except (TypeError, ValueError) as error:
        raise TraceError(
            "`encrypted` must be argument numbers or a pytree of bools that is a prefix of the "
            f"tuple of arguments: {error}"
        ) from error
    flags = [bool(f) for f in jax.tree.leaves(spread)]
    if len(flags) != leaves:
        raise TraceError("`encrypted` does not cover every argument exactly once.")
    return flags


def _numbers(encrypted: Any) -> list[int] | None:
    """Argument numbers, or None if `encrypted` is something else."""
    if not isinstance(encrypted, (tuple, list, set, frozenset, range)):
        return None
    whole = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in encrypted)
    return [int(i) for i in encrypted] if whole else None


def without_dead(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    used = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, used, instantiate=True)
    return core.ClosedJaxpr(jaxpr, closed.consts)


def _caller(name: str) -> Source | None:
    """Where a function is traced: the place of operations of a library function that is itself
    traced, which has no line of the caller's.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        found = of_frames((Frame(code.co_filename, frame.f_lineno, f"{name}, traced here"),))
        if found is not None and not code.co_filename.startswith(registered().packages):
            return found
        frame = frame.f_back
    return None
