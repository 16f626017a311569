"""`worst_input`: the input, inside given bounds, that an encrypted run would treat worst.

Two searches at one budget. *Ascent*: projected steps of the gradient's sign through the simulator,
from several starts, at frozen keys. *Random*: uniform inputs, one of them per evaluation. What is
reported of both is measured again under keys that neither has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jaxtyping import ArrayLike, Float, PyTree

from hesim.circuit.compile import compile
from hesim.errors import ParameterError
from hesim.noise.placement import Schedule, of_circuit
from hesim.noise.profiles import NoiseProfile
from hesim.noise.profiles import profile as find_profile
from hesim.predict import predict
from hesim.program import Equation, Literal, Program, Var, widened
from hesim.simulate import simulate_program
from hesim.trace import trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesim.circuit.circuit import Circuit
    from hesim.params import CKKSParams

__all__ = ["OBJECTIVES", "WorstInput", "worst_input"]

OBJECTIVES = ("error", "domain")

_GRADIENT_COST = 3
"""Evaluations that one value with its gradient counts for: a forward and a reverse pass."""

_FRESH = 4
"""Fresh keys that measure what was found, for each key of the search."""

_FIRST_STEP = 0.2
"""Length of the first step over the width of the bounds; the last is a hundredth of it."""


@dataclass(frozen=True)
class WorstInput:
    """What `worst_input` found.

    Attributes:
      args: arguments of the traced function with the worst input in them, float64.
      objective: "error" or "domain".
      value: of the objective at `args`, under fresh keys. For "error" the root mean square error
        of the encrypted outputs, in units of the values; for "domain" how far the worst value fed
        to a polynomial lies from the middle of its domain, over half its width: above 1 it is out.
      random_args, random_value: the same of the best random input at the same budget.
      typical: median of the objective over random inputs, at the keys of the search.
      history: best value so far after each step of the ascent, at the keys of the search.
      random_history: the same of the random search, at the evaluations that each step cost.
      evaluations: that each of both searches was given; a gradient counts for three.
      name, source: the operation that is hit. For "domain", the polynomial. For "error", the first
        operation at which half of the growth (in bits) of the outputs' error over a random input's
        has happened, or the polynomial whose domain is left, if that comes first.
      operations: (name, source, error at a random input, error at `args`) of every operation.
      outside: (name, source, position) of polynomials fed values outside their domains.

    Examples:
      >>> import approx, hesim, numpy as np
      >>> exp = approx.fit("exp", (-1, 1), degree=3)
      >>> params = hesim.CKKSParams(
      ...     log_n=13, levels=3, scale_bits=30, first_bits=40, special_bits=50
      ... )
      >>> found = hesim.worst_input(
      ...     hesim.trace(lambda x: exp(x), np.zeros(4)), params, (-3, 3), (np.zeros(4),),
      ...     objective="domain", steps=4, starts=1, keys=1)
      >>> found.value > 1, found.name  # out of the domain, by half-widths from its middle
      (True, 'polynomial exp')
    """

    args: tuple[Any, ...]
    objective: str
    value: float
    random_args: tuple[Any, ...]
    random_value: float
    typical: float
    history: tuple[float, ...]
    random_history: tuple[float, ...]
    evaluations: int
    name: str
    source: str
    operations: tuple[tuple[str, str, float, float], ...]
    outside: tuple[tuple[str, str, float], ...]

    def __str__(self) -> str:
        what = {"error": "rms error", "domain": "position in a domain (1 is its end)"}
        lines = [
            f"worst input by {what[self.objective]}, {self.evaluations} evaluations each:",
            f"  ascent {self.value:.4g}, random {self.random_value:.4g}, "
            f"a typical input {self.typical:.4g}",
            f"  hit: `{self.name}` at {self.source or 'an unknown place'}",
        ]
        for name, source, position in self.outside:
            lines.append(f"  outside its domain: {name} at {source}, {position:.3g} half-widths")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Best value so far against evaluations, of both searches."""
        from approx.choice.figures import Figure

        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.add_subplot()
        at = np.linspace(0, self.evaluations, len(self.history) + 1)[1:]
        axes.plot(at, self.history, label="gradient ascent")
        axes.plot(at, self.random_history, label="random search")
        axes.axhline(self.typical, color="0.6", linestyle=":", label="a typical input")
        axes.set_yscale("log")
        axes.set_xlabel("evaluations (a gradient counts for three)")
        axes.set_ylabel("rms error" if self.objective == "error" else "position in the domain")
        axes.set_title(f"worst input found; hit: {self.name} {_brief(self.source)}")
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def worst_input(
    target: Program | Callable[..., Any],
    params: CKKSParams,
    bounds: PyTree[Float[ArrayLike, "..."]],
    args: Sequence[PyTree],
    *,
    encrypted: Any = (0,),
    objective: str = "error",
    circuit: Circuit | None = None,
    steps: int = 30,
    starts: int = 4,
    keys: int = 4,
    profile: str | NoiseProfile = "seal",
    seed: int = 0,
) -> WorstInput:
    """Searches the input that maximises encrypted error, or leaves a polynomial's domain furthest.

    Args:
      target: a Program, or a function to trace with `args` and `encrypted`.
      params: ring, primes and scales.
      bounds: (low, high) for every encrypted float, or one such pair per encrypted leaf, numbers
        or arrays that broadcast to the leaf.
      args: arguments as pytrees. The first start is their encrypted part, clipped to the bounds;
        public ones and encrypted whole numbers stay as they are.
      encrypted: as for ``hesim.trace``; not used with a Program.
      objective: "error" or "domain".
      circuit: of this program; gives levels, rotations and refreshes. Compiled here if None.
      steps: of the ascent.
      starts: inputs that climb side by side, the rest of them random.
      keys: secret keys of the search; four times as many fresh ones measure what it found.
      profile: the library whose noise is added.
      seed: of starts, random inputs and keys.

    Raises:
      ParameterError: an unknown objective, bounds that are empty or of a wrong number, nothing to
        search, no polynomial for "domain", or a count below 1.
      NotHomomorphicError, TraceError, LevelError, LayoutError: from tracing and compiling.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: x * x, np.zeros(4))
      >>> found = hesim.worst_input(
      ...     program, params, (-1, 1), (np.zeros(4),), steps=2, starts=1, keys=1)
      >>> found.value > 0, found.name, bool(abs(found.args[0]).max() <= 1)
      (True, 'mul', True)
    """
    if objective not in OBJECTIVES:
        raise ParameterError(f"objective={objective!r} is unknown: use 'error' or 'domain'")
    for label, count in (("steps", steps), ("starts", starts), ("keys", keys)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ParameterError(f"{label}={count!r} must be a whole number, at least 1")
    program = target if isinstance(target, Program) else trace(target, *args, encrypted=encrypted)
    polynomials = tuple(e for e in program.ops if e.name == "polynomial")
    if objective == "domain" and not polynomials:
        raise ParameterError("objective='domain' needs a polynomial in the program; use 'error'")
    if circuit is not None and circuit.program is not program:
        raise ParameterError("the circuit was not compiled from this program")
    if circuit is not None and circuit.params != params:
        raise ParameterError(
            f"the circuit was compiled for {circuit.params}, not for {params}: give its own params"
        )
    if not program.ops or not any(v.encrypted for v in program.outputs):
        raise ParameterError(f"{program.name} computes nothing on encrypted values: nothing errs")
    library = find_profile(profile)
    if circuit is None:
        circuit = compile(program, params)
    schedule = of_circuit(program, circuit, library)
    with jax.enable_x64(True):
        flat = widened(program.finite(args), program.inputs)
        box = _Box(program, flat, bounds)
        score = _score(program, params, library, schedule, objective, flat, box)
        run = jax.random.split(jax.random.key(seed), keys)
        search = _Search(score, box, run, np.random.default_rng(seed), steps, starts)
        best, history = search.ascend(flat)
        rest, random_history, typical, middle = search.random()
        fresh = jax.random.split(jax.random.key(seed + 1_000_003), _FRESH * keys)
        measure = jax.jit(score)
        value, random_value = (float(measure(x, fresh)) for x in (best, rest))
        known = program.public_values(flat)
        positions = np.asarray(_positions(program, box.fill(flat, best), known))
    found = box.tree(program, flat, best)
    errors = [
        [op.std for op in predict(program, params, a, keys, library, schedule=schedule).ops]
        for a in (box.tree(program, flat, middle), found)
    ]
    operations = tuple(
        (e.name, str(e.source or ""), *pair)
        for e, pair in zip(program.ops, zip(*errors, strict=True), strict=True)
    )
    outside = tuple(
        (f"polynomial {e.params['poly'].name}", str(e.source or ""), float(p))
        for e, p in zip(polynomials, positions, strict=True)
        if p > 1.0 + 1e-9
    )
    name, source = _hit(program, objective, polynomials, positions, operations)
    return WorstInput(
        args=found,
        objective=objective,
        value=value if objective == "domain" else math.exp(value),
        random_args=box.tree(program, flat, rest),
        random_value=random_value if objective == "domain" else math.exp(random_value),
        typical=_shown(typical, objective),
        history=tuple(_shown(v, objective) for v in history),
        random_history=tuple(_shown(v, objective) for v in random_history),
        evaluations=search.budget,
        name=name,
        source=source,
        operations=operations,
        outside=outside,
    )


class _Box:
    """The searched leaves as one vector, with its bounds."""

    def __init__(self, program: Program, flat: Sequence[Any], bounds: Any):
        self.places = [
            k
            for k, v in enumerate(program.inputs)
            if v.encrypted and jnp.issubdtype(v.dtype, jnp.floating)
        ]
        if not self.places:
            raise ParameterError("no argument is an encrypted float: nothing to search")
        pairs = [bounds] if _is_pair(bounds) else list(bounds)
        if len(pairs) == 1:
            pairs = pairs * len(self.places)
        if len(pairs) != len(self.places) or not all(len(p) == 2 for p in pairs):
            raise ParameterError(
                f"bounds must be (low, high), or one such pair for each of the {len(self.places)} "
                f"encrypted leaves: {', '.join(program.labels[k] for k in self.places)}"
            )
        self.shapes = [np.shape(flat[k]) for k in self.places]
        sides = []
        for side in (0, 1):
            parts = []
            for pair, shape, place in zip(pairs, self.shapes, self.places, strict=True):
                try:
                    part = np.broadcast_to(np.asarray(pair[side], np.float64), shape)
                except ValueError:
                    raise ParameterError(
                        f"bounds of shape {np.shape(pair[side])} do not broadcast to "
                        f"{program.labels[place]} of shape {shape}"
                    ) from None
                parts.append(part.ravel())
            sides.append(np.concatenate(parts))
        self.low, self.high = sides
        good = np.isfinite(self.low) & np.isfinite(self.high) & (self.low <= self.high)
        if not self.low.size or not np.all(good):
            raise ParameterError("bounds must be finite, with low <= high, of at least one element")

    def vector(self, flat: Sequence[Any]) -> np.ndarray:
        values = np.concatenate([np.ravel(np.asarray(flat[k], np.float64)) for k in self.places])
        return np.clip(values, self.low, self.high)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.uniform(self.low, self.high, (count, len(self.low)))

    def fill(self, flat: Sequence[Any], vector: Any) -> list[Any]:
        out, start = list(flat), 0
        for place, shape in zip(self.places, self.shapes, strict=True):
            size = math.prod(shape)
            out[place] = jnp.reshape(vector[start : start + size], shape)
            start += size
        return out

    def tree(self, program: Program, flat: Sequence[Any], vector: np.ndarray) -> tuple[Any, ...]:
        with jax.enable_x64(True):
            filled = self.fill(flat, jnp.asarray(vector, jnp.float64))
            leaves = [
                np.asarray(x) if not jnp.issubdtype(x.dtype, jax.dtypes.extended) else x
                for x in map(jnp.asarray, filled)
            ]
        return tree_util.tree_unflatten(program.in_tree, leaves)


def _is_pair(bounds: Any) -> bool:
    return len(bounds) == 2 and all(np.ndim(b) == 0 for b in bounds)


class _Search:
    """Both searches over one score, at one budget of evaluations."""

    def __init__(
        self,
        score: Callable[[Any, Any], Any],
        box: _Box,
        keys: Any,
        rng: np.random.Generator,
        steps: int,
        starts: int,
    ):
        self.score, self.box, self.keys, self.rng = score, box, keys, rng
        self.steps, self.starts = steps, starts
        self.budget = steps * starts * _GRADIENT_COST

    def ascend(self, flat: Sequence[Any]) -> tuple[np.ndarray, list[float]]:
        """The best input of all starts, and the best value so far after each step."""
        width = self.box.high - self.box.low
        x = self.box.draw(self.rng, self.starts)
        x[0] = self.box.vector(flat)
        climb = jax.jit(jax.vmap(jax.value_and_grad(self.score), in_axes=(0, None)))
        best, top = x[0], -math.inf
        history = []
        for step in range(self.steps):
            values, slopes = map(np.asarray, climb(x, self.keys))
            values = np.where(np.isfinite(values), values, -math.inf)
            k = int(np.argmax(values))
            if values[k] > top:
                best, top = x[k].copy(), float(values[k])
            history.append(top)
            length = _FIRST_STEP * 0.01 ** (step / max(self.steps - 1, 1))
            move = np.sign(np.nan_to_num(slopes)) * length * width
            x = np.clip(x + move, self.box.low, self.box.high)
        return best, history

    def random(self) -> tuple[np.ndarray, list[float], float, np.ndarray]:
        """The best random input, best values so far, the median, and the input that has it."""
        look = jax.jit(jax.vmap(self.score, in_axes=(0, None)))
        drawn, values, history = [], [], []
        best, top = self.box.draw(self.rng, 1)[0], -math.inf
        for _ in range(self.steps):
            x = self.box.draw(self.rng, self.starts * _GRADIENT_COST)
            found = np.asarray(look(x, self.keys))
            k = int(np.nanargmax(np.where(np.isfinite(found), found, -np.inf)))
            if found[k] > top:
                best, top = x[k], float(found[k])
            history.append(top)
            drawn.append(x)
            values.append(found)
        pooled = np.concatenate(values)
        middle = int(np.argsort(pooled)[len(pooled) // 2])
        return best, history, float(pooled[middle]), np.concatenate(drawn)[middle]


def _score(
    program: Program,
    params: CKKSParams,
    profile: NoiseProfile,
    schedule: Schedule,
    objective: str,
    flat: Sequence[Any],
    box: _Box,
) -> Callable[[Any, Any], Any]:
    """(vector, keys) -> log of the rms error of the outputs, or the worst position in a domain."""
    secret = [isinstance(v, Var) and v.encrypted for v in program.outputs]
    known = program.public_values(flat)

    def error(x: Any, keys: Any) -> Any:
        values = box.fill(flat, x)
        exact = program.evaluate(values, wide=True, known=known)

        def squares(key: Any) -> Any:
            noisy = simulate_program(
                program, params, key, values, profile, schedule=schedule, wide=True, known=known
            )
            parts = [jnp.ravel(a - b) for a, b, s in zip(noisy, exact, secret, strict=True) if s]
            return jnp.mean(jnp.square(jnp.concatenate(parts)))

        total = jnp.mean(jax.vmap(squares)(keys))
        return 0.5 * jnp.log(jnp.maximum(total, 1e-300))

    def domain(x: Any, keys: Any) -> Any:
        del keys
        return jnp.max(_positions(program, box.fill(flat, x), known))

    return error if objective == "error" else domain


def _positions(program: Program, flat: Sequence[Any], known: Mapping[int, Any]) -> Any:
    """Of each polynomial, the largest |x - middle| over half the width of its domain."""
    fed: dict[int, Any] = {v.id: x for v, x in zip(program.inputs, flat, strict=True)}
    found: list[Any] = []

    def hook(equation: Equation, out: list[Any]) -> list[Any]:
        if equation.name == "polynomial":
            operand = equation.inputs[0]
            low, high = equation.params["poly"].hull
            x = operand.value if isinstance(operand, Literal) else fed[operand.id]
            half = 0.5 * (high - low)
            found.append(jnp.max(jnp.abs(jnp.asarray(x) - 0.5 * (low + high)), initial=0.0) / half)
        fed.update({v.id: o for v, o in zip(equation.outputs, out, strict=True)})
        return out

    program.evaluate(list(flat), hook, wide=True, known=known)
    return jnp.stack(found) if found else jnp.zeros(0)


def _hit(
    program: Program,
    objective: str,
    polynomials: Sequence[Equation],
    positions: np.ndarray,
    operations: Sequence[tuple[Any, ...]],
) -> tuple[str, str]:
    """Name and source of the operation that the input hits."""
    order = {e.index: k for k, e in enumerate(program.ops)}
    left = [e for e, p in zip(polynomials, positions, strict=True) if p > 1.0 + 1e-9]
    if objective == "domain":
        worst = polynomials[int(np.argmax(positions))]
        return f"polynomial {worst.params['poly'].name}", str(worst.source or "")
    growth = [math.log2(b / a) if a > 0 and b > 0 else 0.0 for *_, a, b in operations]
    half = 0.5 * growth[-1] if growth else 0.0
    first = next((k for k, g in enumerate(growth) if g >= half), len(growth) - 1)
    if left and order[left[0].index] <= first:
        return f"polynomial {left[0].params['poly'].name}", str(left[0].source or "")
    name, source, *_ = operations[first]
    return name, source


def _shown(value: float, objective: str) -> float:
    return math.exp(value) if objective == "error" and math.isfinite(value) else value


def _brief(source: str) -> str:
    return source.rsplit("/", 1)[-1]
