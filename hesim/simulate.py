"""`simulate`: a JAX function with the noise of CKKS added, as another JAX function.

The function is traced to a Program, whose equations run in JAX with noise added by the rules of
``hesim.noise.rules`` at the levels of a schedule. The result is ordinary JAX: it composes with
``jit``, ``grad`` and ``vmap`` in any order, and the same key gives the same noise.

Precision. At a scale of 2^40 the noise is near 2^-28, which float32 cannot resolve next to 1: in
float32 the noise is rounded away where it meets values much larger than itself, and figures of it
hold under ``jax.enable_x64`` only, or where the noise is above 2^-20. Nothing here switches x64 on,
except ``predict`` for itself.

Statistical error. Noise comes from one pool of up to 2^16 normal numbers for each key, read again
at other places by whatever needs more. Under one key the standard deviation of any tensor's noise
is off by 1 / sqrt(2·m) of itself, one sigma, m the smaller of its elements and the pool: 0.28 %
(0.004 bit) at best. The sampled key's own 1 / (2·sqrt(slots)) comes on top, as among real keys.
Over keys, pools are independent, and both errors shrink with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jax.extend import core
from jaxtyping import PRNGKeyArray, PyTree

from hesim.circuit.aims.carried import carried_pairs
from hesim.circuit.circuit import Circuit
from hesim.errors import ArgumentError, ParameterError, TraceError
from hesim.noise import formulas
from hesim.noise.copies import Copies, Part
from hesim.noise.dc_slots import DCErrors, places
from hesim.noise.placement import (
    CircuitSchedule,
    Placement,
    Schedule,
    canonical,
    of_circuit,
    transferred,
)
from hesim.noise.pools import Draws, noise_values, origins
from hesim.noise.profiles import NoiseProfile, refreshed_by
from hesim.noise.profiles import profile as find_profile
from hesim.noise.resolution import warn_if_swallowed
from hesim.noise.rules import Operation, apply, bootstrapped, folds
from hesim.params import CKKSParams
from hesim.program import Equation, Literal, Program, Var, bind, wide_array
from hesim.trace import trace

__all__ = ["TIERS", "simulate", "simulate_program"]

TIERS = ("train", "predict")

Observer = Callable[[Equation, list[Any]], None]


def simulate(
    fn: Callable[..., Any],
    params: CKKSParams,
    encrypted: Any = (0,),
    profile: str | NoiseProfile = "seal",
    tier: str = "train",
    circuit: Circuit | None = None,
) -> Callable[..., PyTree]:
    """`fn` as it would come out of an encrypted run under these parameters.

    Args:
      fn: any function that ``hesim.trace`` accepts.
      params: ring, primes and scales.
      encrypted: which arguments are encrypted, as for ``hesim.trace``.
      profile: the library whose noise is added.
      tier: "train", at most one draw a tensor (errors of operands are drawn with the result and not
        shared between its elements), or "predict", every error where it is made. Under a Circuit
        whose key switches have DC errors (``hesim.noise.dc_slots``) both draw a result's too.
      circuit: of ``hesim.compile`` on a trace of `fn`, on a batch of any size: its levels,
        refreshes, rotations and masks are then simulated, mostly to a tenth of a bit. Sums in which
        errors that operands share cancel may be a third of a bit off (``hesim.noise.circuit``);
        ``predict`` carries errors through the Circuit instead. By default all is guessed from the
        operations alone (``hesim.noise.placement.canonical``), which knows nothing of layouts and
        may be a bit off where an operation rotates much, or not at all.

    Returns:
      ``f(key, *args, carried=False)``: the noisy result, of fn's structure; ``key`` is a JAX random
      key and stands for a secret key with all the randomness of a run. ``carried``, a bool or a
      boolean array, says that what `circuit` carries from run to run is what an earlier call has
      returned: it was encrypted there, as handed on, and is not once more. Under ``vmap`` over
      arguments with one key, all members meet the same noise; map over keys as well for independent
      noise. The traced Program is kept per structure, shapes and dtypes of the arguments, so what
      ``fn`` closes over is read at the first call only, as under ``jax.jit``. The first call
      outside of ``jit`` warns where the numbers of the result are rounded more coarsely than the
      noise is large.

    Raises:
      NotHomomorphicError, TraceError: from tracing. ParameterError: an unknown tier or profile, or
        a circuit of other parameters or of another function, or a loaded one, without its Program.
        From ``f``, ArgumentError: `carried` where no circuit carries anything.

    Examples:
      >>> import hesim, jax, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> noisy = hesim.simulate(lambda x: x * x, params)
      >>> x = np.full(512, 0.5, np.float32)
      >>> error = noisy(jax.random.key(0), x) - 0.25
      >>> 1e-7 < float(error.std()) < 1e-4  # in units of the values
      True
    """
    _check_tier(tier)
    library = find_profile(profile)
    if circuit is not None:
        library = refreshed_by(library, circuit.error_law)
    known = None if circuit is None else _known_schedule(circuit, params, library)
    handed_on = {} if known is None else known.handed_on
    programs: dict[Any, tuple[Program, Schedule]] = {}
    told: set[bool] = set()
    name = getattr(fn, "__name__", type(fn).__name__)
    going_on = () if circuit is None else _carried_inputs(circuit)

    def simulated(key: PRNGKeyArray, *args: PyTree, carried: Any = False) -> PyTree:
        _check_key(key, name)
        if carried is not False and not going_on:
            raise ArgumentError(
                f"{name}, simulated, is to go on from what an earlier call returned, but carries "
                "nothing: circuit=hesim.compile(program, params, carried={argument: result})"
            )
        leaves, tree = tree_util.tree_flatten(args)
        shapes = tuple((np.shape(x), jnp.result_type(x).name) for x in leaves)
        cache_key = (tree, shapes, jax.config.read("jax_enable_x64"))
        if cache_key not in programs:
            try:
                program = trace(fn, *args, encrypted=encrypted, name=name)
            except jax.errors.TracerArrayConversionError:
                return _closed_over_tracers(
                    fn, params, encrypted, library, tier, circuit, key, args, carried
                )
            schedule = (
                canonical(program, params)
                if known is None
                else transferred(known, known.program, program)
            )
            programs[cache_key] = program, schedule
        program, schedule = programs[cache_key]
        flat = [jnp.asarray(x) for x in leaves]
        secret = [k for k, v in enumerate(program.inputs) if v.encrypted]
        kept = {secret[place]: carried for place in going_on}
        out = simulate_program(
            *(program, params, key, flat, library),
            schedule=schedule,
            tier=tier,
            kept=kept,
            handed_on=handed_on,
        )
        if not told:
            noisy = [x for x, v in zip(out, program.outputs, strict=True) if v.encrypted]
            told.update({True} if warn_if_swallowed(noisy, params, library, stacklevel=2) else ())
        return tree_util.tree_unflatten(program.out_tree, out)

    simulated.__name__ = f"simulated_{name}"
    return simulated


def _check_key(key: Any, name: str) -> None:
    """TraceError for arguments that begin with anything but a random key."""
    dtype = getattr(key, "dtype", None)
    raw = dtype == np.uint32 and np.shape(key)[-1:] == (2,)
    if dtype is None or not (raw or jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        raise TraceError(
            f"{name}, simulated, takes a random key before its arguments, not "
            f"{type(key).__name__}: simulated(jax.random.key(0), ...)."
        )


def _known_schedule(circuit: Circuit, params: CKKSParams, profile: NoiseProfile) -> CircuitSchedule:
    """What a Circuit does, as a schedule; `transferred` to other traces of its function."""
    source = circuit.program
    if source is None:
        raise ParameterError(
            "a loaded Circuit carries no Program to match operations with: compile it in this "
            "process"
        )
    if circuit.params != params:
        raise ParameterError(
            f"the circuit was compiled for {circuit.params}, not for {params}: give its own params"
        )
    return of_circuit(source, circuit, profile)


def _carried_inputs(circuit: Circuit) -> tuple[int, ...]:
    """Places of the inputs that a Circuit carries from run to run among its encrypted ones."""
    if circuit.program is None or not circuit.carries:
        return ()
    secret = [k for k, v in enumerate(circuit.program.inputs) if v.encrypted]
    pairs = carried_pairs(circuit.program, dict(circuit.carries))
    return tuple(secret.index(pair.input) for pair in pairs)


def _closed_over_tracers(
    fn: Callable[..., Any],
    params: CKKSParams,
    encrypted: Any,
    profile: NoiseProfile,
    tier: str,
    circuit: Circuit | None,
    key: Any,
    args: tuple[Any, ...],
    carried: Any,
) -> Any:
    """Simulates an fn that closes over tracers (of an enclosing grad, say), as public arguments."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    tree = tree_util.tree_structure(shape)

    def explicit(consts: Any, *inner: Any) -> Any:
        body = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, consts))
        flat = body(*tree_util.tree_leaves(inner))
        return tree_util.tree_unflatten(tree, flat)

    flags = (False, *_flags(encrypted, args))
    run = simulate(explicit, params, encrypted=flags, profile=profile, tier=tier, circuit=circuit)
    return run(key, list(closed.consts), *args, carried=carried)


def _flags(encrypted: Any, args: Sequence[Any]) -> tuple[Any, ...]:
    """`encrypted` as one entry an argument: a bool or a pytree of bools."""
    entries = [encrypted] if isinstance(encrypted, int) else list(encrypted)
    if all(isinstance(i, int) and not isinstance(i, bool) for i in entries):
        chosen = {i % len(args) for i in entries}
        return tuple(i in chosen for i in range(len(args)))
    return tuple(entries)


def simulate_program(
    program: Program,
    params: CKKSParams,
    key: Any,
    flat_args: Sequence[Any],
    profile: str | NoiseProfile = "seal",
    tap: Observer | None = None,
    *,
    schedule: Schedule | None = None,
    wide: bool = False,
    tier: str = "predict",
    known: Mapping[int, Any] | None = None,
    kept: Mapping[int, Any] | None = None,
    handed_on: Mapping[int, float] | None = None,
) -> list[Any]:
    """Evaluates a Program with noise.

    Args:
      program: from ``hesim.trace``.
      params: ring, primes and scales.
      key: a JAX random key.
      flat_args: leaves in the order of ``program.inputs``.
      profile: the library whose noise is added.
      tap: called as ``tap(equation, results)`` after each equation with an encrypted result.
      schedule: levels and refreshes; the canonical ones by default.
      wide: evaluate what is encrypted in float64 whatever the trace's dtypes are, under
        ``jax.enable_x64(True)``.
      tier: as for ``simulate``.
      known: if `wide`, the result of ``program.public_values``, without which it is computed.
      kept: by number of an encrypted leaf, a bool or a boolean array: whether it is not encrypted
        anew, so that nothing is added to it.
      handed_on: by number of an output leaf, the standard deviation of what is added to it for the
        next run, as a `CircuitSchedule` has it.

    Returns:
      One array per output leaf.
    """
    _check_tier(tier)
    library = find_profile(profile)
    schedule = canonical(program, params) if schedule is None else schedule
    ways = handed_on or {}
    walk = _Walk(program, params, library, schedule, key, wide, tier == "train", ways)
    for k, (var, value) in enumerate(zip(program.inputs, flat_args, strict=True)):
        stays = True if not var.encrypted else (kept or {}).get(k, False)
        walk.values[var.id] = walk.entering(value, stays)
    if wide:
        found = program.public_values(flat_args) if known is None else known
        walk.values.update({name: wide_array(x) for name, x in found.items()})
    for equation in program.ops if wide else program.equations:
        out = walk.step(equation)
        if tap is not None and equation.encrypted:
            tap(equation, walk.as_read(equation.outputs, out))
        walk.store(equation, out)
    outputs = [walk.read(v) for v in program.outputs]
    outputs = [jnp.asarray(x) for x in walk.as_read(program.outputs, outputs)]
    for k, std in (handed_on or {}).items():
        outputs[k] = outputs[k] + std * walk.draws.unit(
            outputs[k], formulas.fresh(params.n, library)
        )
    return outputs


def _check_tier(tier: str) -> None:
    if tier not in TIERS:
        raise ParameterError(f"tier={tier!r} is unknown: use one of {', '.join(TIERS)}")


@dataclass
class _Walk:
    """One pass over a Program: values by Var, before a refresh, and brought to a lower level."""

    program: Program
    params: CKKSParams
    profile: NoiseProfile
    schedule: Schedule
    key: Any
    wide: bool
    folded: bool
    handed_on: Mapping[int, float]

    def __post_init__(self) -> None:
        self.draws = Draws(
            *(self.key, self.params, self.profile),
            noise_values(self.program, self.schedule, self.handed_on),
        )
        consts = self.program.consts
        self.values: dict[int, Any] = {v.id: self._wide(c) for v, c in consts}
        self.lowered: dict[tuple[int, int], Any] = {}
        self.gains: dict[int, float] = {}
        self.early: dict[int, Any] = {}
        self.copies = Copies(self._drawn)
        self.dc_errors: dict[int, Any] = {}
        self.origins = {origin: k for k, origin in enumerate(origins(self.schedule))}
        #: What each switching key does near ζ = 1, the same in all its uses.
        self.keys: Any = None
        if self.origins:
            self.keys = self.draws.plain(jnp.zeros(len(self.origins)), 1.0)

    def _wide(self, value: Any) -> Any:
        return wide_array(value) if self.wide else value

    def read(self, operand: Var | Literal) -> Any:
        if isinstance(operand, Literal):
            return self._wide(operand.value)
        return self.values[operand.id]

    def unrefreshed(self, operand: Var | Literal) -> Any:
        """An operand as it was before the refresh of its ciphertexts."""
        if isinstance(operand, Literal) or operand.id not in self.early:
            return self.read(operand)
        return self.early[operand.id]

    def fresh(self, value: Any, level: int, gain: float = 1.0, copies: float = 1.0) -> Any:
        """A value encoded and encrypted at this level, its slots holding value / gain; of the
        errors of several copies, with their mean.
        """
        noise = formulas.fresh(self.params.n, self.profile)
        scale = self.params.scale(level) * math.sqrt(copies)
        return value + gain * self.draws.noise(value, noise, scale)

    def entering(self, value: Any, stays: Any) -> Any:
        """An argument: encrypted, but where it `stays` as it is, a bool or a boolean array."""
        if stays is True:
            return value
        fresh = self.fresh(value, self.params.levels)
        return fresh if stays is False else jnp.where(stays, value, fresh)

    def refreshed(self, value: Any, level: int, gain: float = 1.0, copies: float = 1.0) -> Any:
        """A value after a refresh: encrypted again, or by the law of the profile's bootstrap."""
        if self.profile.bootstrap is None:
            return self.fresh(value, level, gain, copies)
        return bootstrapped(self.draws, value, self.profile.bootstrap, gain, copies=copies)

    def _drawn(self, shape: tuple[int, ...], dtype: Any, std: float) -> Any:
        """Errors of rescales and refreshes."""
        rounding = formulas.rescale(self.profile)
        return std * self.draws.unit(jnp.broadcast_to(jnp.zeros((), dtype), shape), rounding)

    def step(self, equation: Equation) -> list[Any]:
        """Results of one equation, with the noise that it adds."""
        if equation.encrypted:
            shared = self.schedule[equation.index].shared
            args = [self.unrefreshed(v) for v in equation.inputs]
            self._carry_dc_errors(equation, args)
            if shared:
                self._share_copies(equation)
                return self._spread(equation, _evaluate(equation, self.wide, args), early=True)
            self._own_copies(equation)
            return self._with_dc_errors(equation, self._noisy(equation))
        return bind(equation, [self.read(v) for v in equation.inputs], False)

    def store(self, equation: Equation, out: list[Any]) -> None:
        """Keeps results for later equations, refreshed if the schedule says so."""
        if equation.encrypted:
            place = self.schedule[equation.index]
            self.gains.update({v.id: place.gain for v in equation.outputs})
            if place.refreshed_after or place.shared:
                self.early.update({v.id: x for v, x in zip(equation.outputs, out, strict=True)})
            if place.refreshed_after:
                out = [self.refreshed(x, place.level, place.gain, place.copies) for x in out]
            elif place.shared:
                args = [self.read(v) for v in equation.inputs]
                out = self._spread(equation, _evaluate(equation, self.wide, args), early=False)
        self.values.update({v.id: x for v, x in zip(equation.outputs, out, strict=True)})

    def _own_copies(self, equation: Equation) -> None:
        """Notes what each copy of a result has of its own, once it is refreshed too."""
        place = self.schedule[equation.index]
        for var in equation.outputs:
            made = Part(place.gain * place.apart_std, ("made", var.id))
            again = Part(0.0, ("refreshed", var.id))
            if place.refreshed_after and place.copies > 1.0:
                std = formulas.refresh_std(self.params, place.level, self.profile)
                again = again._replace(std=self._apart(place.gain * std, place.copies))
            self.copies.keep(var.id, (made, again), (made,), place.copies)

    def _share_copies(self, equation: Equation) -> None:
        """Notes the copies of a result that lies in its operands' ciphertexts."""
        place = self.schedule[equation.index]
        names = [v.id for v in equation.inputs if isinstance(v, Var) and v.encrypted]
        for var in equation.outputs:
            late, early = (self._noisiest(names, place.gain, early) for early in (False, True))
            self.copies.keep(var.id, late, early, place.copies)

    def _noisiest(self, names: list[int], gain: float, early: bool) -> tuple[Part, ...]:
        """Of several operands' copies, as in a concatenation, those with the largest errors."""
        found = [
            Copies.scaled(self.copies.of(i, early=early), gain / self.gains.get(i, 1.0))
            for i in names
        ]
        return max(found, key=Copies.std, default=())

    def _spread(self, equation: Equation, out: list[Any], *, early: bool) -> list[Any]:
        """Results that are themselves the copies, each with what it has of its own."""
        operand, var = equation.inputs[0], equation.outputs[0]
        grown = equation.name in ("broadcast_in_dim", "tile") and var.size > np.size(
            self.read(operand)
        )
        if not grown:
            return out
        out = [self.copies.read(self.copies.of(var.id, early=early), out[0], out[0].shape)]
        if not early:
            self.copies.keep(var.id, (), (), self.schedule[equation.index].copies)
        return out

    @staticmethod
    def _apart(std: float, copies: float) -> float:
        """What each of several independent errors has besides their mean."""
        return std * math.sqrt(1.0 - 1.0 / copies)

    def _with_copies(
        self, equation: Equation, args: list[Any], folded: bool
    ) -> tuple[list[Any], tuple[float, ...]]:
        """Operands with what each copy has of its own, in the shape in which they are read; or
        where that is drawn with the result, its standard deviations.
        """
        place = self.schedule[equation.index]
        inside = place.operand_apart_stds or (0.0,) * len(args)
        met = equation.name in ("mul", "add", "add_any", "sub")
        later = equation.name == "dot_general" or folded and (met or equation.name == "reduce_sum")
        shape = np.broadcast_shapes(*(np.shape(x) for x in args)) if met else None
        found: dict[int, Any] = {}
        stds = []
        for k, v in enumerate(equation.inputs):
            std = inside[k] * (place.operand_gains[k] if place.operand_gains else 1.0)
            parts = self._parts_of(v, place)
            if parts and later:
                std = math.hypot(std, Copies.std(parts))
            elif parts and isinstance(v, Var) and v.id not in found:
                found[v.id] = self.copies.read(parts, args[k], shape or np.shape(args[k]))
            stds.append(std)
        args = [found.get(getattr(v, "id", -1), x) for v, x in zip(equation.inputs, args)]
        return args, tuple(stds)

    def _parts_of(self, operand: Var | Literal, place: Placement) -> tuple[Part, ...]:
        """Of the copies of an operand, brought to the operation's level."""
        if isinstance(operand, Literal) or not operand.encrypted:
            return ()
        parts, copies = self.copies.of(operand.id), self.copies.counts.get(operand.id, 1.0)
        if operand.id in place.lowered and copies > 1.0:
            rounding, level = formulas.rescale(self.profile), place.operand_level
            std = formulas.value_std(rounding, self.params, level, self.profile)
            std = self._apart(self.gains.get(operand.id, 1.0) * std, copies)
            parts = (*parts, Part(std, ("lowered", operand.id, level)))
        return parts

    def _noisy(self, equation: Equation) -> list[Any]:
        place = self.schedule[equation.index]
        for number in sorted(place.refreshed):
            self.values[number] = self.refreshed(
                self.values[number], self.params.levels, self.gains.get(number, 1.0)
            )
            self.lowered = {k: v for k, v in self.lowered.items() if k[0] != number}
        names = [v.id if isinstance(v, Var) else -1 for v in equation.inputs]
        # An operand that meets itself has one error, which a fold would take for two.
        folded = self.folded and len(set(names)) == len(names)
        lowered = place.lowered if folded and folds(equation.name) else frozenset()
        operation = Operation(
            name=equation.name,
            eqn_params=equation.params,
            encrypted=tuple(v.encrypted for v in equation.inputs),
            place=place,
            bind=partial(_evaluate, equation, self.wide),
            draws=self.draws,
            params=self.params,
            profile=self.profile,
            folded=folded,
            lowered=tuple(number in lowered for number in names),
        )
        drawn = place.lowered - lowered
        args = [self._at(v, place.operand_level, drawn) for v in equation.inputs]
        args, apart = self._with_copies(equation, args, folded)
        return apply(replace(operation, apart=apart), args)

    def as_read(self, operands: Sequence[Var | Literal], values: list[Any]) -> list[Any]:
        """Values with the errors of the slots in which they are read."""
        names = [v.id if isinstance(v, Var) else -1 for v in operands]
        there = [self._read_there(i, x) for i, x in zip(names, values, strict=True)]
        return [
            self.copies.read(self.copies.of(i, early=True), x, np.shape(x))
            for i, x in zip(names, there, strict=True)
        ]

    def _read_there(self, name: int, value: Any) -> Any:
        return value + self.dc_errors[name] if name in self.dc_errors else value

    def _with_dc_errors(self, equation: Equation, out: list[Any]) -> list[Any]:
        """Results with what single slots have besides; if there are copies, with the mean of it, of
        which nothing is in what is read there.
        """
        place = self.schedule[equation.index]
        if place.dc_errors is None:
            return out
        x, name = out[0], equation.outputs[0].id
        own, variance = self._own_dc_errors(place.dc_errors, x, place.gain)
        if name in self.dc_errors:
            own = own + self.dc_errors.pop(name)
        if not place.dc_errors.copied:
            return [x + own]
        mean = jnp.sqrt(variance).astype(x.dtype) * self.draws.plain(x, 1.0)
        self.dc_errors[name] = own - mean
        return [x + mean]

    def _var(self, tensor: int) -> Var:
        """That of an ``Element.tensor``."""
        if tensor >= 0:
            return self.program.ops[tensor].outputs[0]
        return [v for v in self.program.inputs if v.encrypted][-1 - tensor]

    def _own_dc_errors(self, dc_errors: DCErrors, x: Any, gain: float) -> tuple[Any, Any]:
        """Errors of the slots in which the elements of x are read, and the mean variance over all
        slots; x is `gain` times what slots hold.
        """
        amplitudes = jnp.asarray(dc_errors.amplitudes, x.dtype)
        for tensor, terms in groupby(dc_errors.products, lambda product: product[2].tensor):
            errors, sizes, elements = zip(*terms, strict=True)
            value = jax.lax.stop_gradient(self.values[self._var(tensor).id])
            held, index = places(elements, jnp.shape(value))
            met = jnp.asarray(sizes, x.dtype)[held] * jnp.ravel(value)[index]
            amplitudes = amplitudes.at[np.array(errors)[held]].add(met.astype(x.dtype))
        amplitudes = gain * amplitudes
        slots = np.array([slot for slot, _ in dc_errors.errors])
        origins = np.array([self.origins[origin] for _, origin in dc_errors.errors])
        met = jnp.zeros(slots.max() + 1, x.dtype)
        met = met.at[slots].add(amplitudes * self.keys.astype(x.dtype)[origins])
        own = jnp.zeros(x.size, x.dtype)
        if dc_errors.read:
            elements, numbers = zip(*dc_errors.read, strict=True)
            held, index = places(elements, x.shape)
            own = own.at[index].add(met[np.array(numbers)[held]])
        return own.reshape(x.shape), jnp.sum(jnp.square(amplitudes)) / dc_errors.slots

    def _carry_dc_errors(self, equation: Equation, args: list[Any]) -> None:
        """Errors of the slots in which operands are read, where the result is made in these."""
        place = self.schedule[equation.index]
        aligned = [place.shared or a for a in place.aligned]
        names = [v.id if isinstance(v, Var) and a else -1 for v, a in zip(equation.inputs, aligned)]
        if self.dc_errors.keys().isdisjoint(names):
            return
        moved = [self._read_there(i, x) for i, x in zip(names, args, strict=True)]
        results = [_evaluate(equation, self.wide, a) for a in (moved, args)]
        for var, new, old in zip(equation.outputs, *results, strict=True):
            self.dc_errors[var.id] = new - old

    def _at(self, operand: Var | Literal, level: int, lowered: frozenset[int]) -> Any:
        """An operand at the operation's level: one product with 1 and its rescale further down."""
        if isinstance(operand, Literal) or operand.id not in lowered:
            return self.read(operand)
        place = operand.id, level
        if place not in self.lowered:
            value = self.values[operand.id]
            scale = self.params.scale(level) * math.sqrt(self.copies.counts.get(operand.id, 1.0))
            noise = self.draws.noise(value, formulas.rescale(self.profile), scale)
            self.lowered[place] = value + self.gains.get(operand.id, 1.0) * noise
        return self.lowered[place]


def _evaluate(equation: Equation, wide: bool, args: list[Any]) -> list[Any]:
    return bind(equation, args, wide)
