"""`predict`: how far an encrypted run will be from the exact one, operation by operation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jaxtyping import Float, PyTree

from hesim.certify import Certificate, certify
from hesim.circuit.aims.carried import carried_pairs
from hesim.display import html_block, html_table, shown_as_text, text_table
from hesim.errors import ParameterError, ValueOverflowError, ValueOverflowWarning
from hesim.noise.placement import CircuitSchedule, Placement, Schedule, canonical
from hesim.noise.profiles import NoiseProfile, refreshed_by
from hesim.noise.profiles import profile as find_profile
from hesim.program import need_program, widened
from hesim.simulate import simulate_program

if TYPE_CHECKING:
    from hesim.circuit.circuit import Circuit
    from hesim.params import CKKSParams
    from hesim.program import Program

__all__ = ["OpPrediction", "Prediction", "predict", "walked"]

_SAMPLE = 8192
"""Elements of a tensor, at most, that enter its quantile from each key."""

_WALK_BYTES = 5e8
"""Errors that a walk over a Circuit holds at a time; more keys than fit are walked in turns."""


@dataclass(frozen=True)
class OpPrediction:
    """Predicted error of one operation's result, over its elements and over keys.

    Attributes:
      std: root mean square of (simulated - exact), in units of the values.
      q999: 99.9 % quantile of its absolute value; the largest seen where there are fewer than a
        thousand elements and keys together.
      level: level of the result.
      by_key: root mean square under each key alone.
      spare_bits: under each key, log2 of half the modulus over what the largest value alone puts
        into a coefficient, scale · value / slots; -inf where a value is not finite. At 0 or below
        the ciphertext is sure to wrap around the modulus, and a client that decrypts it refuses it.
      rows: the rows that hold such values under some key, where the first axis is the outputs' own.
    """

    std: float
    q999: float
    level: int
    by_key: tuple[float, ...] = ()
    spare_bits: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """What simulation predicts for a Program.

    Attributes:
      ops: one per ``program.ops``, cumulative: the error of the result from all causes before it.
      outputs: simulated result under the first key, float64 NumPy arrays in fn's structure.
      exact: exact result, likewise.
      names, sources: of the operations; sources are the caller's file and line.
    """

    ops: tuple[OpPrediction, ...]
    outputs: PyTree[Float[np.ndarray, "..."]]
    exact: PyTree[Float[np.ndarray, "..."]]
    names: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def overflows(self) -> float:
        """Share of the keys under which some operation's result is sure to wrap around the modulus:
        beyond what the polynomials are for, or with errors that have carried them there.
        """
        spare = np.array([op.spare_bits for op in self.ops if op.spare_bits])
        return float(np.mean(spare.min(0) <= 0)) if spare.size else 0.0

    def table(self) -> str:
        """Operations with their predicted errors, as text."""
        return text_table(self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("operation", "level", "std", "log2", "q999", "source")]
        blank = ("",) * len(self.ops)
        names, sources = self.names or blank, self.sources or blank
        for op, name, source in zip(self.ops, names, sources, strict=True):
            bits = f"{math.log2(op.std):.2f}" if op.std > 0 else "-"
            rows.append((name, str(op.level), f"{op.std:.2e}", bits, f"{op.q999:.2e}", source))
        return rows

    __str__ = table

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        keys = max((len(op.by_key) for op in self.ops), default=0)
        title = f"Predicted errors over {keys} keys, cumulative; nothing is encrypted"
        return html_block(title, inner=html_table(self._rows()))


def predict(
    program: Program,
    params: CKKSParams,
    args: Sequence[PyTree],
    keys: int = 8,
    profile: str | NoiseProfile = "seal",
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    tier: str = "predict",
    jit: bool = True,
    walk: bool = True,
    decrypted: bool = False,
) -> Prediction:
    """Predicted error of every operation, by simulation in float64 under several random keys.

    With the schedule of a compiled Circuit, errors of operations are those that ``hesim.certify``
    carries through the Circuit's own instructions: tensors do not say which slots' errors meet
    again where operands are shared, nor that a rotation across the end of the effective slots reads
    another of their copies in the ring. Values, and what of them wraps around, are simulated.

    Args:
      program: from ``hesim.trace``.
      params: ring, primes and scales.
      args: arguments of the traced function, as pytrees.
      keys: secret keys to draw, at least 1. The relative standard error of a std is about
        ``1 / sqrt(keys · elements)`` or somewhat more, since tails are heavy.
      profile: the library whose noise is added.
      schedule: levels and refreshes, canonical by default; ``hesim.noise.placement.of_circuit``
        gives those of a compiled Circuit.
      seed: of the random keys.
      tier: as for ``hesim.simulate``; "train" shows what a training step is given.
      jit: compile the program as a whole, for this schedule. Otherwise its operations run one by
        one, each compiled once for all schedules: of many schedules with few keys each, only the
        first takes long.
      walk: carry errors through the Circuit where `schedule` is one's and `tier` is "predict";
        otherwise tensors are simulated as in training, but for errors drawn where they are made.

      decrypted: whether `args` have what the carried ciphertexts of the Circuit decrypt to, as for
        ``hesim.certify``: they are then not encrypted anew.

    What is compiled is kept for the last few programs, parameters and schedules, so another call
    with other values, keys or seed compiles nothing. A warning names the first operation whose
    values wrap around the modulus, and the rows that they are in.

    Raises:
      ParameterError: an unknown tier or profile, keys below 1, or encrypted arguments that are not
        finite. TraceError: not a Program, or arguments of another structure or shape.

    Examples:
      >>> import hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> x = np.linspace(-1, 1, 64)
      >>> found = hesim.predict(hesim.trace(lambda x: x * x, x), params, (x,), keys=2)
      >>> len(found.ops), 1e-8 < found.ops[0].std < 1e-4
      (1, True)
    """
    need_program(program, "predict")
    if keys < 1:
        raise ParameterError(f"keys={keys} must be at least 1")
    plan = canonical(program, params) if schedule is None else schedule
    flat = widened(program.finite(args), program.inputs)

    library = find_profile(profile)
    if isinstance(plan, CircuitSchedule):
        library = refreshed_by(library, plan.circuit.error_law)
    carried: dict[int, OpPrediction] = {}
    if walk and tier == "predict" and isinstance(plan, CircuitSchedule) and plan.program is program:
        carried = walked(plan.circuit, args, keys, library, seed, decrypted=decrypted)
    with jax.enable_x64(True):
        placements = tuple(sorted(plan.items()))
        kept = _kept(plan) if decrypted else frozenset()
        run = (_compiled if jit else _errors)(program, params, library, placements, tier, kept)
        known = program.public_values(flat)
        results = [run(key, flat, known) for key in jax.random.split(jax.random.key(seed), keys)]
        results = jax.device_get(results)
    ops = []
    for k, equation in enumerate(program.ops):
        each = np.array([r[0][k] for r in results])
        std = float(np.sqrt(np.mean(each)))
        pooled = np.concatenate([r[1][k] for r in results])
        quantile = float(np.quantile(pooled, 0.999, method="higher")) if pooled.size else 0.0
        by_key = tuple(np.sqrt(each).tolist())
        place = plan[equation.index]
        largest = np.array([r[4][k] for r in results])  # (keys, rows), NaN above all
        spare = tuple(
            _spare_bits(params, place, float(x)) for x in largest.max(axis=1, initial=0.0)
        )
        rows = _lost(params, place, largest) if min(spare) <= 0 else ()
        if k in carried:
            std, quantile, by_key = carried[k].std, carried[k].q999, carried[k].by_key
        ops.append(OpPrediction(std, quantile, place.level, by_key, spare, rows))
    _warn(program, ops)
    outputs, exact = (
        tree_util.tree_unflatten(program.out_tree, results[0][place]) for place in (2, 3)
    )
    return Prediction(
        tuple(ops),
        outputs,
        exact,
        tuple(equation.name for equation in program.ops),
        tuple(str(equation.source) if equation.source else "" for equation in program.ops),
    )


def walked(
    circuit: Circuit,
    args: Sequence[PyTree],
    keys: int,
    profile: str | NoiseProfile = "seal",
    seed: int = 0,
    among: Collection[int] | None = None,
    decrypted: bool = False,
) -> dict[int, OpPrediction]:
    """Predicted errors by a walk over a Circuit alone: nothing is simulated or compiled.

    Args:
      circuit: with its Program. args: of it.
      keys, profile, seed, among, decrypted: as for ``hesim.certify``; as many keys at a time as
        memory holds. By what the copies of a carried ciphertext's slots differ is what they differ
        by after one run.

    Returns:
      By number of the operation, those that have a ciphertext of their own; of none if values wrap
      around the modulus.
    """
    bytes_per_key = 8 * circuit.params.slots * max(circuit.most_alive, 1)
    each = max(1, min(keys, int(_WALK_BYTES // bytes_per_key)))
    parts = [min(each, keys - start) for start in range(0, keys, each)]

    def part(k: int, n: int) -> Certificate:
        shared = {"keys": n, "profile": profile, "seed": seed + k}
        copied = decrypted and circuit.slots < circuit.params.slots
        before = certify(circuit, args, **shared) if copied else None
        more = {"among": among, "after": before, "decrypted": decrypted}
        return certify(circuit, args, **shared, **more)

    try:
        found = [part(k, n) for k, n in enumerate(parts)]
    except ValueOverflowError:
        return {}
    carried = {}
    for k in range(len(circuit.op_names)):
        ops = [certificate.ops[k] for certificate in found]
        if ops[0].level >= 0:
            by_key = tuple(std for op in ops for std in op.by_key)
            quantile = float(np.average([op.q999 for op in ops], weights=parts))
            std = float(np.sqrt(np.mean(np.square(by_key))))
            carried[k] = OpPrediction(std, quantile, ops[0].level, by_key)
    return carried


def _kept(plan: Schedule) -> frozenset[int]:
    """Leaves of the arguments that the Circuit of this schedule carries from run to run."""
    if not isinstance(plan, CircuitSchedule):
        return frozenset()
    pairs = carried_pairs(plan.program, dict(plan.circuit.carries))
    return frozenset(pair.input for pair in pairs)


@lru_cache(maxsize=8)
def _compiled(
    program: Program,
    params: CKKSParams,
    profile: NoiseProfile,
    placements: tuple[tuple[int, Placement], ...],
    tier: str,
    kept: frozenset[int],
) -> Callable[[Any, list[Any], dict[int, Any]], Any]:
    return jax.jit(_errors(program, params, profile, placements, tier, kept))


def _errors(
    program: Program,
    params: CKKSParams,
    profile: NoiseProfile,
    placements: tuple[tuple[int, Placement], ...],
    tier: str,
    kept: frozenset[int],
) -> Callable[[Any, list[Any], dict[int, Any]], Any]:
    """(key, flat arguments, public values) -> mean squares and sampled errors of operations,
    outputs and exact outputs, and largest absolute values of operations: of each row where the
    first axis is as long as the first output's, else of all.
    """
    schedule = dict(placements)

    def errors(key: Any, flat: list[Any], known: dict[int, Any]) -> tuple[list[Any], ...]:
        exact: list[Any] = []
        noisy: list[Any] = []
        reference = program.evaluate(
            flat, lambda _, out: exact.append(out) or out, wide=True, known=known
        )
        outputs = simulate_program(
            program,
            params,
            key,
            flat,
            profile,
            lambda _, out: noisy.append(out),
            schedule=schedule,
            wide=True,
            tier=tier,
            known=known,
            kept=dict.fromkeys(kept, True),
        )
        difference = [
            jnp.concatenate([jnp.ravel(b - a) for a, b in zip(*pair, strict=True)])
            for pair in zip(exact, noisy, strict=True)
        ]
        squares = [jnp.mean(jnp.square(d)) for d in difference]
        samples = [jnp.abs(d[:: _stride(d.size)]).astype(jnp.float32) for d in difference]
        rows = next((out.shape[0] for out in outputs if jnp.ndim(out)), 1)
        largest = [jnp.max(jnp.stack([_largest(x, rows) for x in out]), axis=0) for out in noisy]
        return squares, samples, outputs, reference, largest

    return errors


def _spare_bits(params: CKKSParams, place: Placement, largest: float) -> float:
    """`OpPrediction.spare_bits` under one key, of a result with this largest absolute value."""
    if place.level < 0 or largest == 0.0:
        return math.inf
    if not math.isfinite(largest):
        return -math.inf
    room = params.log_q(place.level) - 1.0 - math.log2(params.scale(place.level))
    return room - math.log2(largest / abs(place.gain) / params.slots)


def _lost(params: CKKSParams, place: Placement, largest: np.ndarray) -> tuple[int, ...]:
    """Rows of (keys, rows) without spare bits under some key; none if they are not told apart."""
    if largest.shape[1] == 1:
        return ()
    worst = largest.max(axis=0).tolist()
    return tuple(i for i, x in enumerate(worst) if _spare_bits(params, place, x) <= 0)


def _largest(x: Any, rows: int) -> Any:
    """The largest absolute value of each row, or of all in one where there are not that many."""
    parts = rows if jnp.ndim(x) and x.shape[0] == rows else 1
    if not jnp.size(x):
        return jnp.zeros(parts, x.dtype)
    return jnp.max(jnp.abs(jnp.reshape(x, (parts, -1))), axis=1, initial=0.0)


def _warn(program: Program, ops: Sequence[OpPrediction]) -> None:
    """Of the first operation that is sure to wrap around; what follows it is lost anyway."""
    for equation, op in zip(program.ops, ops, strict=True):
        if not op.spare_bits or min(op.spare_bits) > 0:
            continue
        where = f", in rows {', '.join(map(str, op.rows[:8]))}" if op.rows else ""
        where += ", ..." if len(op.rows) > 8 else ""
        keys = sum(bits <= 0 for bits in op.spare_bits)
        warnings.warn(
            f"under {keys} of {len(op.spare_bits)} keys values of `{equation.name}` at "
            f"{equation.source} wrap around the modulus{where}: a client would refuse them. Leave "
            "these rows out, fit the polynomials before it on wider domains, or take parameters "
            "with more bits in the first prime",
            ValueOverflowWarning,
            stacklevel=3,
        )
        return


def _stride(size: int) -> int:
    """An odd step that leaves at most ``_SAMPLE`` elements, so that it meets all columns."""
    return -(-size // _SAMPLE) | 1
