"""The Program: one traced JAX function as typed SSA, each value public or encrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jax.core import Tracer
from jaxtyping import PyTree, Shaped

from hesim.display import html_block, html_table, shown_as_text
from hesim.errors import ParameterError, TraceError
from hesim.source import Source
from hesim.tracing.scatters import sets

__all__ = ["Equation", "Literal", "Program", "Var", "need_program"]

_SCATTERS = {"scatter": jax.lax.scatter, "scatter-add": jax.lax.scatter_add}


_MOST_TOLD = 200
"""Characters of a structure of arguments that an error shows."""


@dataclass(frozen=True, eq=False)
class Var:
    """One value of a Program.

    Attributes:
      id: number in order of definition.
      shape: tensor shape.
      dtype: dtype in the trace.
      encrypted: whether the value depends on an encrypted argument.
    """

    id: int
    shape: tuple[int, ...]
    dtype: np.dtype
    encrypted: bool

    @property
    def name(self) -> str:
        return f"%{self.id}" if self.encrypted else f"p{self.id}"

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Literal:
    """A scalar written into the program text."""

    value: Shaped[np.ndarray, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    encrypted = False


@dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to values.

    Attributes:
      primitive: the JAX primitive.
      inputs, outputs: its operands and results.
      params: parameters of the primitive, as in the jaxpr.
      source: the place in the caller's code, None if JAX kept none.
      index: its number among the Program's equations.
    """

    primitive: Any
    inputs: tuple[Var | Literal, ...]
    outputs: tuple[Var, ...]
    params: dict[str, Any]
    source: Source | None
    index: int

    @property
    def name(self) -> str:
        return self.primitive.name

    @property
    def encrypted(self) -> bool:
        return any(v.encrypted for v in self.outputs)

    def __str__(self) -> str:
        left = ", ".join(f"{v.name}:{_type(v)}" for v in self.outputs)
        right = ", ".join(v.name if isinstance(v, Var) else _literal(v) for v in self.inputs)
        detail = _describe(self.params)
        text = f"{left} = {self.name}{detail} {right}"
        return f"{text:<72}  # {self.source.brief}" if self.source else text


@dataclass(frozen=True, eq=False)
class Program:
    """A JAX function read once; everything else (simulate, compile, run) reads this.

    Calling it evaluates the function exactly, in JAX. `program(*args)` takes and returns the
    pytrees of the traced function; `precision="float64"` evaluates what is encrypted in float64
    whatever the trace's dtypes are. Public values are those of the traced function always.

    Attributes:
      name: name of the traced function.
      equations: all equations in order, public ones included, dead ones removed.
      inputs: one Var per flattened argument leaf.
      consts: arrays closed over, as (Var, array) pairs.
      outputs: one Var or Literal per flattened result leaf.
      in_tree, out_tree: pytree structures of the arguments (a tuple) and the result.
      labels: a readable name per input leaf, e.g. `args[0]['kernel']`.
      depth: levels on the longest path, whatever is refreshed on it, if each operation takes its
        own. A Circuit (`ledger.depth`) takes fewer where constants go into the product before, and
        more where layouts ask for masks.
      levels: of these, the most between two of the program's own refreshes.

    Examples:
      >>> import hesim, numpy as np
      >>> program = hesim.trace(lambda x: 2 * x + 1, np.zeros(3))
      >>> program(np.array([1.0, 2.0, 3.0]), precision="float64")
      array([3., 5., 7.])
      >>> print(program)
      program <lambda>: 2 operations on encrypted values, depth 1
      ...
    """

    name: str
    equations: tuple[Equation, ...]
    inputs: tuple[Var, ...]
    consts: tuple[tuple[Var, Shaped[np.ndarray, "..."]], ...]
    outputs: tuple[Var | Literal, ...]
    in_tree: Any
    out_tree: Any
    labels: tuple[str, ...]
    depth: int
    levels: int
    _constants: dict[int, Shaped[np.ndarray, "..."]] = field(default_factory=dict, repr=False)

    @property
    def ops(self) -> tuple[Equation, ...]:
        """The equations whose result is encrypted, in order."""
        return tuple(e for e in self.equations if e.encrypted)

    def finite(self, args: Sequence[Any]) -> list[Any]:
        """Leaves as of `flatten`, of which the encrypted ones must be finite.

        Raises:
          TraceError: as `flatten`. ParameterError: an encrypted leaf holds NaN or infinity.
        """
        leaves = self.flatten(args)
        for leaf, var, label in zip(leaves, self.inputs, self.labels, strict=True):
            if var.encrypted and not np.all(np.isfinite(np.asarray(leaf, np.float64))):
                raise ParameterError(
                    f"{label} of {self.name} holds NaN or infinite values, which no ciphertext "
                    f"does: find where they come from"
                )
        return leaves

    def _otherwise(self, args: Sequence[Any], tree: Any) -> str:
        """Which of the arguments have another structure than the traced ones, and which."""
        wanted, given = self.in_tree.children(), tree.children()
        if len(wanted) != len(given):
            return f"{self.name} takes {len(wanted)} arguments, as traced, not {len(given)}"
        k = next(k for k, pair in enumerate(zip(wanted, given, strict=True)) if pair[0] != pair[1])
        if tree_util.treedef_is_leaf(wanted[k]):
            kind = type(args[k]).__name__
            return f"args[{k}] of {self.name} must be one array, as traced, not a {kind}"
        traced, other = (_short(str(one)) for one in (wanted[k], given[k]))
        return f"args[{k}] of {self.name} must be a {traced}, as traced, not a {other}"

    def flatten(self, args: Sequence[Any]) -> list[Any]:
        """Leaves of `args` in the order of `inputs`.

        Raises:
          TraceError: no tuple, the structure or a shape is not the traced one, or values of a leaf
            do not fit the traced dtype (floats for integers, complex numbers, integers out of
            range).
        """
        if not isinstance(args, (tuple, list)):
            raise TraceError(
                f"the arguments of {self.name} come as a tuple, as in (x,), not as "
                f"{type(args).__name__}"
            )
        leaves, tree = tree_util.tree_flatten(tuple(args))
        if tree != self.in_tree:
            raise TraceError(f"{self._otherwise(args, tree)}; or trace it again for what you give.")
        for leaf, var, label in zip(leaves, self.inputs, self.labels, strict=True):
            if np.shape(leaf) != var.shape:
                raise TraceError(
                    f"{label} of {self.name} has shape {np.shape(leaf)}, but the program was "
                    f"traced with {var.shape}; trace it again for the new shape."
                )
            if not _fits(leaf, var):
                raise TraceError(
                    f"{label} of {self.name} has values of dtype "
                    f"{getattr(leaf, 'dtype', type(leaf).__name__)} that do not fit {var.dtype}, "
                    f"with which the program was traced; convert them, or trace it again."
                )
        return leaves

    def __call__(self, *args: PyTree, precision: str | None = None) -> PyTree:
        """The function's exact result.

        Args:
          args: as the traced function's; converted to the traced dtypes.
          precision: None to keep the trace's dtypes, "float64" to evaluate what is encrypted in
            float64 (results are then NumPy arrays).

        Raises:
          TraceError: arguments of another structure or shape, or an unknown precision.
        """
        flat = self.flatten(args)
        if precision is None:
            with self._as_traced():
                given = [
                    leaf if is_key(var) else jnp.asarray(_declared(leaf, var))
                    for leaf, var in zip(flat, self.inputs, strict=True)
                ]
                return tree_util.tree_unflatten(self.out_tree, self.evaluate(given))
        if precision != "float64":
            raise TraceError(f"precision {precision!r} is unknown; use None or 'float64'.")
        with jax.enable_x64(True):
            out = [np.asarray(v) for v in self.evaluate(widened(flat, self.inputs), wide=True)]
        return tree_util.tree_unflatten(self.out_tree, out)

    def evaluate(
        self,
        flat_args: Sequence[Any],
        hook: Callable[[Equation, list[Any]], list[Any]] | None = None,
        *,
        wide: bool = False,
        until: Sequence[Var] | None = None,
        known: Mapping[int, Any] | None = None,
    ) -> list[Any]:
        """Runs the equations in JAX.

        Args:
          flat_args: leaves in the order of `inputs`; as of `widened` if `wide`.
          hook: called after each equation with an encrypted result as `hook(equation,
            results)`; what it returns replaces the results.
          wide: evaluate what is encrypted in float64 (call it under `jax.enable_x64(True)`).
          until: values to return instead of the outputs.
          known: if `wide`, the result of `public_values`, without which it is computed.

        Returns:
          One array per output leaf (or per Var of `until`); floats in float64 if `wide`.
        """
        env: dict[int, Any] = {v.id: x for v, x in zip(self.inputs, flat_args, strict=True)}
        env.update({v.id: x for v, x in self.consts})
        if wide:
            publics = self.public_values(flat_args, self._read(until)) if known is None else known
            env.update(publics)

        def read(v: Var | Literal) -> Any:
            return env[v.id] if isinstance(v, Var) else v.value

        for eqn in self._needed(until):
            if wide and not eqn.encrypted:
                continue
            out = bind(eqn, [read(v) for v in eqn.inputs], wide)
            if hook is not None and eqn.encrypted:
                out = hook(eqn, out)
            env.update({v.id: x for v, x in zip(eqn.outputs, out, strict=True)})
        wanted = self.outputs if until is None else until
        found = [env[v.id] if isinstance(v, Var) else jnp.asarray(v.value) for v in wanted]
        return [wide_array(x) for x in found] if wide else found

    def public_values(
        self, flat_args: Sequence[Any], of: Sequence[Var] | None = None
    ) -> dict[int, Any]:
        """Public values by the number of their Var, computed in the clear in the trace's dtypes.

        They are computed operation by operation, as `program(*args)` does: compiled together,
        operations may keep digits that each of them alone rounds away, and a value that is rounded,
        compared or sorted would no more be the one that the function finds.

        Args:
          flat_args: leaves in the order of `inputs`; the encrypted ones are not looked at.
          of: public Vars; by default those that encrypted operations and the result read.
        """
        of = self._read() if of is None else of
        with self._as_traced():
            given = [
                None if var.encrypted else _declared(leaf, var)
                for leaf, var in zip(flat_args, self.inputs, strict=True)
            ]
            found = self.evaluate(given, until=of)
        return {v.id: x for v, x in zip(of, found, strict=True)}

    def _read(self, until: Sequence[Var] | None = None) -> list[Var]:
        """Public Vars that are wanted, or that encrypted operations read on the way to it."""
        operands = [v for eqn in self._needed(until) if eqn.encrypted for v in eqn.inputs]
        wanted = self.outputs if until is None else until
        found = [v for v in (*operands, *wanted) if isinstance(v, Var) and not v.encrypted]
        return list(dict.fromkeys(found))

    def _as_traced(self) -> Any:
        """The context in which equations are typed as they were when they were traced."""
        return jax.enable_x64(jax.config.read("jax_enable_x64") or self._has_64_bits())

    def _has_64_bits(self) -> bool:
        """Whether it was traced under x64, so that its equations are typed for it."""
        made = (v for eqn in self.equations for v in eqn.outputs)
        given = (*self.inputs, *(v for v, _ in self.consts), *made)
        return any(not is_key(v) and v.dtype.kind in "iuf" and v.dtype.itemsize == 8 for v in given)

    def _needed(self, until: Sequence[Var] | None) -> Iterator[Equation]:
        if until is None:
            return iter(self.equations)
        live = {v.id for v in until}
        kept = []
        for eqn in reversed(self.equations):
            if any(v.id in live for v in eqn.outputs):
                kept.append(eqn)
                live.update(v.id for v in eqn.inputs if isinstance(v, Var))
        return reversed(kept)

    def constant(self, value: Var | Literal) -> Shaped[np.ndarray, "..."] | None:
        """A public operand that depends on no argument, floats in float64; None if it does."""
        if isinstance(value, Literal):
            return value.value
        if value.encrypted:
            return None
        if not self._constants:
            self._fold()
        return self._constants.get(value.id)

    def _fold(self) -> None:
        known: dict[int, Any] = {v.id: a for v, a in self.consts}
        with jax.ensure_compile_time_eval(), self._as_traced():
            for eqn in self.equations:
                operands = [
                    v.value if isinstance(v, Literal) else known.get(v.id) for v in eqn.inputs
                ]
                if eqn.encrypted or any(x is None for x in operands):
                    continue
                for var, out in zip(eqn.outputs, bind(eqn, operands, False), strict=True):
                    known[var.id] = out if is_key(out) else np.asarray(out)
        self._constants.update({k: wide_array(x) for k, x in known.items()})
        self._constants.setdefault(-1, np.zeros(()))

    def __str__(self) -> str:
        public = [v for v in self.inputs if not v.encrypted]
        secret = [v for v in self.inputs if v.encrypted]
        ops = self.ops
        lines = [
            f"program {self.name}: {len(ops)} operations on encrypted values, depth {self.depth}",
            "  encrypted: " + (", ".join(self._signature(secret)) or "none"),
            "  public:    " + (", ".join(self._signature(public)) or "none"),
        ]
        lines += [f"  {eqn}" for eqn in ops]
        results = (v.name if isinstance(v, Var) else _literal(v) for v in self.outputs)
        lines.append("  return " + ", ".join(results))
        return "\n".join(lines)

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        rows: list[tuple[str, ...]] = [("", "operation", "operands", "source")]
        for eqn in self.ops:
            left = ", ".join(f"{v.name}:{_type(v)}" for v in eqn.outputs)
            right = ", ".join(v.name if isinstance(v, Var) else _literal(v) for v in eqn.inputs)
            place = eqn.source.brief if eqn.source is not None else ""
            rows.append((left, f"{eqn.name}{_describe(eqn.params)}", right, place))
        public = [v for v in self.inputs if not v.encrypted]
        secret = [v for v in self.inputs if v.encrypted]
        return html_block(
            f"{self.name}: {len(self.ops)} operations on encrypted values, depth {self.depth} "
            "without refreshes",
            "encrypted: " + (", ".join(self._signature(secret)) or "none"),
            "public: " + (", ".join(self._signature(public)) or "none"),
            inner=html_table(rows),
        )

    def _signature(self, values: Sequence[Var]) -> list[str]:
        labels = {v.id: label for v, label in zip(self.inputs, self.labels, strict=True)}
        return [f"{v.name}:{_type(v)} {labels[v.id]}" for v in values]


def bind(eqn: Equation, args: list[Any], wide: bool) -> list[Any]:
    """Results of one equation on JAX values; `wide` computes its floats in float64."""
    params = eqn.params
    if wide:
        args = [wide_array(a) for a in args]
    if wide and eqn.name == "reduce_precision":
        return args
    if wide and (eqn.name == "scatter-add" or eqn.name == "scatter" and sets(params)):
        # The update rule inside the equation is typed too: let the public function rebuild it.
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [_SCATTERS[eqn.name](*args, **{name: params[name] for name in names})]
    if wide:
        params = {name: _wide_param(value) for name, value in params.items()}
    out = eqn.primitive.bind(*_aligned(args), **eqn.primitive.get_bind_params(params))
    out = list(out) if eqn.primitive.multiple_results else [out]
    return [wide_array(o) for o in out] if wide else out


def _aligned(args: list[Any]) -> list[Any]:
    """Operands that vary over the same axes of an enclosing `shard_map`: the functions of `jnp` see
    to that, primitives want it done.
    """
    axes = [_varying(a) for a in args]
    union = frozenset().union(*axes)
    if not union:
        return args
    return [
        a if own == union else jax.lax.pcast(a, tuple(sorted(union - own)), to="varying")
        for a, own in zip(args, axes, strict=True)
    ]


def _varying(value: Any) -> frozenset[str]:
    """Axes of an enclosing `shard_map` that a value varies over."""
    aval = jax.typeof(value)
    manual = getattr(aval, "manual_axis_type", None)  # `vma` itself before JAX 0.10
    return frozenset(getattr(aval, "vma", ()) if manual is None else manual.varying)


def is_key(value: Any) -> bool:
    """Whether an array holds random keys, which are no numbers."""
    return jnp.issubdtype(value.dtype, jax.dtypes.extended)


def _is_float(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _wide_param(value: Any) -> Any:
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(np.float64) if _is_float(value) else value
    return value


def wide_array(value: Any) -> Any:
    """A float array in float64; anything else as it is."""
    if _is_float(getattr(value, "dtype", None)) and value.dtype != np.float64:
        return value.astype(np.float64)
    return value


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}…"


def widened(flat: Sequence[Any], declared: Sequence[Var]) -> list[Any]:
    """Argument leaves as NumPy arrays: encrypted ones in float64, others in the declared dtype."""
    return [
        leaf
        if is_key(var)
        else np.asarray(leaf, np.float64)
        if var.encrypted
        else np.asarray(_declared(leaf, var))
        for leaf, var in zip(flat, declared, strict=True)
    ]


def _declared(leaf: Any, var: Var) -> Any:
    """An argument leaf in the dtype with which it was traced."""
    if is_key(var) or isinstance(leaf, jax.Array) and leaf.dtype == var.dtype:
        return leaf
    if isinstance(leaf, Tracer):
        return jnp.asarray(leaf, var.dtype)
    return np.asarray(leaf).astype(var.dtype)


def _fits(leaf: Any, var: Var) -> bool:
    """Whether an argument's values survive conversion to the declared dtype."""
    if is_key(var):
        return hasattr(leaf, "dtype") and is_key(leaf)
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    rank = [k for k, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)]
    declared = [k for k, kind in enumerate(kinds) if jnp.issubdtype(var.dtype, kind)]
    if not declared:
        return jnp.issubdtype(dtype, jnp.number)
    if not rank or rank > declared:
        return False
    whole = declared == rank == [1] and dtype != var.dtype
    if not whole or isinstance(leaf, Tracer) or not np.size(leaf):
        return True
    values, bounds = np.asarray(leaf), np.iinfo(var.dtype)
    return int(values.min()) >= bounds.min and int(values.max()) <= bounds.max


def _type(v: Var) -> str:
    short = {
        "float32": "f32",
        "float64": "f64",
        "bfloat16": "bf16",
        "float16": "f16",
        "int32": "i32",
    }
    return f"{short.get(str(v.dtype), str(v.dtype))}[{','.join(map(str, v.shape))}]"


def _literal(v: Literal) -> str:
    return (
        f"{v.value.item():.6g}" if v.value.ndim == 0 and _is_float(v.value.dtype) else str(v.value)
    )


_TELLING = (
    *("dimension_numbers", "axes", "axis", "broadcast_dimensions", "permutation", "dimension"),
    *("dimensions", "y", "poly"),
)
"""Parameters that say over which positions an operation goes, or which function it is."""

_MOST_TOLD = 60
"""Characters of a parameter that a line has room for."""


def _describe(params: Mapping[str, Any]) -> str:
    if {"start_indices", "limit_indices"} <= params.keys():
        pairs = zip(params["start_indices"], params["limit_indices"], strict=True)
        return "[" + ",".join(f"{a}:{b}" for a, b in pairs) + "]"
    told = next((str(params[n]) for n in _TELLING if params.get(n) is not None), "")
    return f"[{told}]" if 0 < len(told) <= _MOST_TOLD else ""


def need_program(given: Any, name: str) -> None:
    """TraceError unless the first argument of the function `name` is a Program."""
    if not isinstance(given, Program):
        raise TraceError(
            f"{name} takes a Program, not a {type(given).__name__}: program = "
            "hesim.trace(fn, *example_args)."
        )
