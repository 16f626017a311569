"""Inlining: an interpreter of jaxprs that is itself traced, so that the result is a flat jaxpr.

Calls are entered, loops over encrypted values unrolled, choices on public predicates become
selections, and what `REWRITINGS` has a row for is written in other operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import source_info_util
from jax.core import Tracer
from jax.extend import core

from hesim.errors import TraceError
from hesim.source import Frame, frames_of, of_frames
from hesim.tracing.call import Call
from hesim.tracing.known import Known, known_result
from hesim.tracing.rewritings import REWRITINGS
from hesim.tracing.zeros import always_zero, zero_operand

__all__ = ["Inliner", "Mark", "Value"]

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_lin": "call_jaxpr",
    "linear_call": "callee",
    "composite": "jaxpr",
    "compute_on": "jaxpr",
}
"""Primitives that call a jaxpr on their operands, and the parameter that holds it."""

_MOST_STEPS = 10_000
"""Steps of one loop that is unrolled."""

_MARK = "hesim:"


class Value(NamedTuple):
    """One value of the walk: a tracer, whether it is encrypted, what is known of it, and whether it
    is zero although it is encrypted.
    """

    value: Any
    secret: bool
    known: Known | None = None
    zero: bool = False


Trail = tuple[Frame, ...]

_CONVERSIONS = frozenset({"convert_element_type", "copy", "copy_p", "reduce_precision"})
"""Operations that are there or not by the dtypes of the arguments; they are not numbered."""


class Mark(NamedTuple):
    """Where an operation of a flat jaxpr comes from.

    Attributes:
      trail: its stack frames, innermost first, followed by those of the calls around it.
      path: its number in its jaxpr, after those of the calls around it: the same in all steps of a
        loop, and whatever the shapes and precisions of the arguments are.
      traceback: JAX's traceback of the innermost of them that has a frame of the caller's.
    """

    trail: Trail
    path: tuple[int, ...]
    traceback: Any


class Inliner:
    """Evaluates a jaxpr with calls inlined.

    Attributes:
      marks: where the operations of the flat jaxpr come from; `mark_of` finds that of an equation.
    """

    def __init__(self, both_ways: bool = False) -> None:
        """both_ways: whether choices on encrypted predicates become selections, too."""
        self._both_ways = both_ways
        self.marks: list[Mark] = []
        self._numbers: dict[tuple[Trail, tuple[int, ...]], int] = {}
        self._path: list[int] = []
        self._tracebacks: list[Any] = []
        self._done: dict[Any, tuple[Sequence[Value], list[Value]]] = {}

    def __call__(self, closed: core.ClosedJaxpr, flags: Sequence[bool], *args: Any) -> list[Any]:
        """The results of a jaxpr; to be traced itself.

        Args:
          flags: whether each argument is encrypted.
        """
        given = [Value(a, f) for a, f in zip(args, flags, strict=True)]
        return [v.value for v in self._walk(closed.jaxpr, closed.consts, given, ())]

    def mark_of(self, eqn: Any) -> Mark:
        """Where an equation of the flat jaxpr comes from."""
        for entry in reversed(eqn.source_info.name_stack.stack):
            if entry.name.startswith(_MARK):
                return self.marks[int(entry.name[len(_MARK) :])]
        return Mark((), (), None)

    def _number(self, trail: Trail) -> int:
        key = trail, tuple(self._path)
        if key not in self._numbers:
            self._numbers[key] = len(self.marks)
            self.marks.append(Mark(*key, self._callers()))
        return self._numbers[key]

    def _callers(self) -> Any:
        """The innermost traceback of the walk in which there is a frame of the caller's."""
        for traceback in reversed(self._tracebacks):
            if of_frames(frames_of(traceback)) is not None:
                return traceback
        return self._tracebacks[-1]

    def _walk(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value], trail: Trail
    ) -> list[Value]:
        """Evaluates `jaxpr`; `trail` are the frames of the calls around it.

        A library function under `jit` leaves no user frame in its equations: they get the caller's.
        """
        env: dict[Any, Value] = {}

        def read(v: Any) -> Value:
            if isinstance(v, core.Literal):
                aval: Any = v.aval
                return Value(v.val, False, Known(np.asarray(v.val, aval.dtype)))
            return env[v]

        held = zip(jaxpr.constvars, consts, strict=True)
        env.update({v: Value(c, False, None if _traced(c) else Known(c)) for v, c in held})
        env.update(zip(jaxpr.invars, args, strict=True))
        number = 0
        for eqn in jaxpr.eqns:
            number += eqn.primitive.name not in _CONVERSIONS
            operands = [read(v) for v in eqn.invars]
            here = (*frames_of(eqn.source_info.traceback), *trail)
            self._path.append(number)
            self._tracebacks.append(eqn.source_info.traceback)
            stack = source_info_util.new_name_stack(f"{_MARK}{self._number(here)}")
            with (
                source_info_util.user_context(eqn.source_info.traceback, name_stack=stack),
                eqn.ctx.manager,
            ):
                results = self._apply(eqn, operands, here)
            self._path.pop()
            self._tracebacks.pop()
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _enter(self, jaxpr: Any, args: Sequence[Value], trail: Trail) -> list[Value]:
        return self._walk(*opened(jaxpr), args, trail)

    def _apply(self, eqn: Any, operands: Sequence[Value], trail: Trail) -> list[Value]:
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS and _CALLS[name] in params:
            inner = params[_CALLS[name]]
            return self._enter(inner, operands, trail)
        key = None
        if any(v.secret for v in operands):
            found = self._of_encrypted(eqn, operands, trail) or _plus_nothing(eqn, operands)
            if found is not None:
                return found
            key = _same(eqn, operands)
            if key is not None and key in self._done:
                return self._done[key][1]
        out = eqn.primitive.bind(*_values(operands), **eqn.primitive.get_bind_params(params))
        out = list(out) if eqn.primitive.multiple_results else [out]
        secret = any(v.secret for v in operands)
        known = known_result(eqn, [None if v.secret else v.known for v in operands])
        zero = secret and always_zero(name, _values(operands), _zeros(eqn, operands))
        made = [Value(o, secret, k, zero) for o, k in zip(out, known, strict=True)]
        if key is not None:
            self._done[key] = operands, made  # which keeps the operands, so that none is another
        return made

    def _of_encrypted(
        self, eqn: Any, operands: Sequence[Value], trail: Trail
    ) -> list[Value] | None:
        """An operation on encrypted values in other operations; None if it stays as it is."""
        name, params = eqn.primitive.name, eqn.params
        if name == "optimization_barrier":  # its operands are public or encrypted one by one
            return list(operands)
        if name == "scan":
            return self._unrolled(params, operands, trail)
        if name == "while":
            return self._repeated(params, operands, trail)
        two = self._both_ways and name == "cond" and len(params["branches"]) == 2
        if name == "cond" and (two or not operands[0].secret):
            return self._chosen(params["branches"], operands, trail)
        if name == "custom_linear_solve":
            lengths = params["const_lengths"]
            first = lengths.matvec + lengths.vecmat
            own = operands[first : first + lengths.solve]
            rest = operands[first + lengths.solve + lengths.transpose_solve :]
            return self._enter(params["jaxprs"].solve, [*own, *rest], trail)
        if name in REWRITINGS:
            return self._rewritten(eqn, operands, trail)
        return None

    def _rewritten(self, eqn: Any, operands: Sequence[Value], trail: Trail) -> list[Value] | None:
        shapes = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars)
        call = Call(
            eqn.primitive,
            dict(eqn.params),
            shapes,
            tuple(v.secret for v in operands),
            tuple(None if v.secret else v.known for v in operands),
        )
        fn = REWRITINGS[eqn.primitive.name](call)
        if fn is None:
            return None
        closed = jax.make_jaxpr(fn)(*shapes)
        return self._enter(closed, operands, trail)

    def _repeated(
        self, params: Mapping[str, Any], operands: Sequence[Value], trail: Trail
    ) -> list[Value] | None:
        """A `while` whose steps are known while tracing; None if they are not."""
        first, second = params["cond_nconsts"], params["body_nconsts"]
        asked, fixed = operands[:first], operands[first : first + second]
        carry = list(operands[first + second :])
        for _ in range(_MOST_STEPS):
            (go,) = self._enter(params["cond_jaxpr"], [*asked, *carry], trail)
            if go.secret or go.known is None:
                return None
            if not bool(go.known.value()):
                return carry
            carry = self._enter(params["body_jaxpr"], [*fixed, *carry], trail)
        raise TraceError(
            f"a loop over encrypted values at {of_frames(trail)} takes more than {_MOST_STEPS:,} "
            f"steps, each of which would be operations of its own: use fewer."
        )

    def _unrolled(
        self, params: Mapping[str, Any], operands: Sequence[Value], trail: Trail
    ) -> list[Value]:
        n_consts, n_carry, length = params["num_consts"], params["num_carry"], params["length"]
        fixed, xs = operands[:n_consts], operands[n_consts + n_carry :]
        carry = list(operands[n_consts : n_consts + n_carry])
        rows: list[list[Value]] = []
        steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
        for i in steps:
            x_i = [self._row(x, i) for x in xs]
            out = self._enter(params["jaxpr"], [*fixed, *carry, *x_i], trail)
            carry = out[:n_carry]
            rows.append(out[n_carry:])
        if params["reverse"]:
            rows.reverse()
        inner, _ = opened(params["jaxpr"])
        stacked = []
        for k, aval in enumerate(v.aval for v in inner.outvars[n_carry:]):
            column = [lax.expand_dims(row[k].value, (0,)) for row in rows]
            empty = (0, *aval.shape)
            whole = lax.concatenate(column, 0) if column else lax.full(empty, 0, aval.dtype)
            stacked.append(Value(whole, any(row[k].secret for row in rows)))
        return [*carry, *stacked]

    def _row(self, x: Value, i: int) -> Value:
        row = lax.index_in_dim(x.value, i, 0, keepdims=False)
        if x.known is None or not jnp.issubdtype(row.dtype, jnp.integer):
            return Value(row, x.secret)
        return Value(row, x.secret, Known(x.known.value()[i]))

    def _chosen(
        self, branches: Sequence[Any], operands: Sequence[Value], trail: Trail
    ) -> list[Value]:
        """A choice by a public predicate: only the branch that is taken if that is known."""
        index, rest = operands[0], operands[1:]
        last = np.int32(len(branches) - 1)
        if index.known is not None:
            taken = int(np.clip(int(index.known.value()), 0, last))
            return self._enter(branches[taken], rest, trail)
        results = [self._enter(branch, rest, trail) for branch in branches]
        chosen = index.value
        if not index.secret:
            chosen = lax.clamp(np.int32(0), lax.convert_element_type(chosen, np.int32), last)
        if len(branches) == 2:
            chosen = lax.convert_element_type(chosen, np.bool_)
        out = []
        for cases in zip(*results, strict=True):
            arrays = [jnp.asarray(case.value) for case in cases]
            one = arrays[0] if len(arrays) == 1 else lax.select_n(chosen, *arrays)
            out.append(Value(one, index.secret or any(case.secret for case in cases)))
        return out


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, of one with or without them."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def _values(operands: Sequence[Value]) -> list[Any]:
    return [v.value for v in operands]


def _traced(value: Any) -> bool:
    return isinstance(value, Tracer)


def _same(eqn: Any, operands: Sequence[Value]) -> Any:
    """What is equal where an operation on encrypted values is done again; None if nothing tells."""
    params = tuple(sorted(eqn.params.items(), key=lambda item: item[0]))
    given = tuple(
        (np.asarray(v.value).item(), str(var.aval)) if np.isscalar(v.value) else id(v.value)
        for v, var in zip(operands, eqn.invars, strict=True)
    )
    key = eqn.primitive, params, given
    try:
        hash(key)
    except TypeError:
        return None
    return None if eqn.primitive.name == "refresh" else key


def _zeros(eqn: Any, operands: Sequence[Value]) -> list[bool]:
    """Which operands are zero, of an operation on encrypted values."""
    asked = eqn.primitive.name == "mul"
    return [
        v.zero if v.secret else asked and zero_operand(v.known, var.aval.size)
        for v, var in zip(operands, eqn.invars, strict=True)
    ]


def _plus_nothing(eqn: Any, operands: Sequence[Value]) -> list[Value] | None:
    """The sum of a public value and an encrypted one that is zero: public; None of others."""
    if eqn.primitive.name not in ("add", "add_any", "sub"):
        return None
    for k, (one, other) in enumerate((operands, operands[::-1])):
        if one.zero and not other.secret:
            (out,) = eqn.outvars
            value = lax.convert_element_type(other.value, out.aval.dtype)
            if value.shape != out.aval.shape:
                value = jnp.broadcast_to(value, out.aval.shape)
            negative = eqn.primitive.name == "sub" and k == 0
            known = other.known if not negative and np.shape(other.value) == value.shape else None
            return [Value(lax.neg(value) if negative else value, False, known)]
    return None
