"""What each value of a flat jaxpr is made of: public or encrypted, a constant, a function of one
other value, and whether additions and products make it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from hesim.approximating.places.elementwise import elementwise
from hesim.approximating.places.expressions import INPUT, Expression
from hesim.tracing.flat import Flat
from hesim.tracing.objections import objection

__all__ = ["Graph", "is_float"]

_SPREAD = frozenset(
    {
        *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "rev"),
        *("concatenate", "convert_element_type"),
    }
)
"""Operations whose result holds one number everywhere where their operands hold that number."""

_MOST_ELEMENTS = 2**16
"""Elements of a constant that is looked at."""


class Graph:
    """The values of a flat jaxpr.

    Attributes:
      flat: the function.
      encrypted: the variables that depend on an encrypted argument.
      impure: those of them that are functions of their root, and no polynomials of it.
      users: the equations that read a variable.
    """

    def __init__(self, flat: Flat, cut: Collection[Any] = ()):
        """cut: variables that what follows takes as they are, not as functions of others."""
        self.flat = flat
        self.encrypted: set[Any] = set()
        self.impure: set[Any] = set()
        self.users: dict[Any, list[Any]] = {}
        self._uniform: dict[Any, Any] = {}
        self._roots: dict[Any, Any] = {}
        self._own: dict[Any, Expression] = {}
        self._made: dict[Any, Any] = {}
        self._cut = frozenset(cut)
        jaxpr = flat.closed.jaxpr
        pairs = zip(jaxpr.invars, flat.flags, strict=True)
        self.encrypted.update(v for v, flag in pairs if flag)
        for v, value in zip(jaxpr.constvars, flat.closed.consts, strict=True):
            self._note_constant(v, value)
        for eqn in jaxpr.eqns:
            self._note(eqn)

    # --- what is asked ----------------------------------------------------------------------------

    def secret(self, atom: Any) -> bool:
        """Whether an operand is encrypted."""
        return not isinstance(atom, core.Literal) and atom in self.encrypted

    def uniform(self, atom: Any) -> Any:
        """The number that a public operand holds everywhere; None if it is not known to."""
        if isinstance(atom, core.Literal):
            return _number(atom.val)
        return self._uniform.get(atom)

    def maker(self, var: Any) -> Any:
        """The equation that defines a variable; None of an argument."""
        return self._made.get(var)

    def root(self, var: Any) -> Any:
        """The value that this one is a function of, element by element: itself if of no other."""
        return self._roots.get(var, var)

    def expression(self, var: Any) -> Expression:
        """This function of `root(var)`."""
        return self._own.get(var, INPUT)

    def unary(self, var: Any) -> bool:
        """Whether a value is a function of one other, element by element."""
        return var in self._own

    def forbidden(self, eqn: Any) -> bool:
        """Whether additions and products cannot express an equation."""
        secret = [self.secret(v) for v in eqn.invars]
        return any(secret) and objection(eqn, secret) is not None

    # --- how it is found --------------------------------------------------------------------------

    def _note_constant(self, var: Any, value: Any) -> None:
        array = np.asarray(value) if _numeric(var) else None
        if (
            array is not None
            and 0 < array.size <= _MOST_ELEMENTS
            and np.all(array == array.flat[0])
        ):
            self._uniform[var] = _number(array.flat[0])

    def _note(self, eqn: Any) -> None:
        for v in eqn.invars:
            if not isinstance(v, core.Literal):
                self.users.setdefault(v, []).append(eqn)
        for v in eqn.outvars:
            self._made[v] = eqn
        if not any(self.secret(v) for v in eqn.invars):
            self._note_public(eqn)
            return
        self.encrypted.update(eqn.outvars)
        function = elementwise(eqn)
        if function is not None:
            self._note_function(eqn, function)

    def _note_public(self, eqn: Any) -> None:
        numbers = [self.uniform(v) for v in eqn.invars]
        if not numbers or any(n is None for n in numbers) or len(eqn.outvars) != 1:
            return
        (out,) = eqn.outvars
        name = eqn.primitive.name
        if not _numeric(out) or not np.prod(out.aval.shape):
            return
        if name in _SPREAD and len(set(numbers)) == 1:
            self._uniform[out] = numbers[0]
            return
        function = elementwise(eqn)
        if function is not None and jnp.issubdtype(out.aval.dtype, jnp.floating):
            with np.errstate(all="ignore"):
                self._uniform[out] = _number(np.asarray(function(*numbers), out.aval.dtype))

    def _note_function(self, eqn: Any, function: Any) -> None:
        (out,) = eqn.outvars
        secret = [v for v in eqn.invars if self.secret(v)]
        roots = {self._seen_root(v) for v in secret}
        rest = [self.uniform(v) for v in eqn.invars if not self.secret(v)]
        if len(roots) != 1 or any(n is None for n in rest):
            return
        (root,) = roots
        if not is_float(root) or root.aval.shape != out.aval.shape:
            return
        detail = str(eqn.params["y"]) if eqn.primitive.name == "integer_pow" else ""
        operands = [self._seen(v) if self.secret(v) else self.uniform(v) for v in eqn.invars]
        self._own[out] = Expression(eqn.primitive.name, function, operands, out, detail)
        self._roots[out] = root
        below = any(v in self.impure and v not in self._cut for v in secret)
        if below or self.forbidden(eqn):
            self.impure.add(out)

    def _seen_root(self, var: Any) -> Any:
        return var if var in self._cut else self.root(var)

    def _seen(self, var: Any) -> Expression:
        return INPUT if var in self._cut else self.expression(var)


def is_float(var: Any) -> bool:
    """Whether a variable holds real numbers."""
    return jnp.issubdtype(var.aval.dtype, jnp.floating)


def _numeric(var: Any) -> bool:
    return var.aval.dtype == np.bool_ or jnp.issubdtype(var.aval.dtype, jnp.number)


def _number(value: Any) -> Any:
    array: Any = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" and array.dtype.kind != "V":
        return None
    return bool(array.reshape(())) if array.dtype == np.bool_ else float(array.reshape(()))
