"""Rules that add CKKS noise to one operation of a Program, as a table from primitive to rule.

Values carry their errors, so whatever depends on messages (e_a·m_b + e_b·m_a and the like) follows
from evaluating the operation itself. A rule adds what the operation's own roundings and key
switches add, to its operands before or to its result after. What only moves elements adds what a
Circuit is known to add on the way; a primitive without a row is an error.

Two tiers share this. The one of ``predict`` draws an error for every operand that is rotated or
brought to a lower level. The training tier folds those errors into the one draw of the result, for
products and sums: element by element the variance is the same, Σ w²·s² over what the operand meets,
but elements of the result no longer share an operand's error.

Left out: adding a public vector and the scalar constants of polynomials, whose encoding errors have
less than a thousandth of the variance that every ciphertext has already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hesim.errors import UnknownNoiseError
from hesim.noise import formulas
from hesim.noise.bootstrap import law
from hesim.noise.circuit_plans import CircuitPlan
from hesim.noise.formulas import Noise
from hesim.noise.placement import Placement
from hesim.noise.plans import Node, expand, output_variance, power_plan, values
from hesim.noise.pools import Draws
from hesim.noise.profiles import NoiseProfile
from hesim.params import CKKSParams

__all__ = ["RULES", "NoiseRule", "Operation", "apply", "bootstrapped", "folds"]


@dataclass(frozen=True)
class Operation:
    """One equation about to be simulated.

    Attributes:
      name, eqn_params: of the primitive.
      encrypted: for each operand, whether it is encrypted.
      place: levels, and whether the operation rescales and rotates.
      bind: evaluates the primitive on operands; returns the list of results.
      draws, params, profile: where the noise comes from.
      folded: whether errors of operands are drawn with the result, as in the training tier.
      lowered: with `folded`, for each operand, whether it is brought to a lower level first.
      apart: for each operand, the standard deviation of errors that each copy of an element has of
        its own, in values.
    """

    name: str
    eqn_params: dict[str, Any]
    encrypted: tuple[bool, ...]
    place: Placement
    bind: Callable[[list[Any]], list[Any]]
    draws: Draws
    params: CKKSParams
    profile: NoiseProfile
    folded: bool = False
    lowered: tuple[bool, ...] = ()
    apart: tuple[float, ...] = ()

    @property
    def product_of_ciphertexts(self) -> bool:
        return self.encrypted == (True, True)

    def with_noise(self, x: Any, noise: Noise, level: int) -> Any:
        """A result plus noise of these coefficient variances in slots at ``level``."""
        return x + self.place.gain * self.draws.noise(x, noise, self.params.scale(level))

    def rescaled(self, x: Any, *, switched: bool = False) -> Any:
        """A result plus what its rescale rounds, or what a Circuit is known to add after it."""
        level = self.place.level
        if self.place.added_std is not None:
            return x + self.known(x, self.place.gain * self.place.added_std)
        if not self.place.rescaled:
            return x
        return self.with_noise(x, self._rounding(level, switched), level)

    def refreshed(self, x: Any, depth: int) -> Any:
        """A product of 2^depth factors in the operation, rescaled, and refreshed if it is."""
        level, gain = self.level_inside(depth), self._operand_gain(0) ** (2**depth)
        made = formulas.product(self.params, level + 1, self.profile)
        x = x + gain * self.draws.noise(x, made, self.params.scale(level))
        share = self.refreshed_inside(depth)
        if not share:
            return x
        if self.profile.bootstrap is not None:
            return bootstrapped(self.draws, x, self.profile.bootstrap, gain, share)
        std = gain * formulas.refresh_std(self.params, level, self.profile)
        return x + self.known(x, math.sqrt(share) * std)

    def rescaled_with(self, x: Any, inherited: Any, *, switched: bool = False) -> Any:
        """A result plus, in one draw, what its rescale rounds and errors of variance ``inherited``
        (values squared, any shape that broadcasts to the result's) that its operands brought along.
        """
        level, noise = self.place.level, formulas.rescale(self.profile)
        if self.place.added_std is not None:
            own = self.place.added_std
        elif self.place.rescaled:
            noise = self._rounding(level, switched)
            own = formulas.value_std(noise, self.params, level, self.profile)
        else:
            own = 0.0
        variance = (self.place.gain * own) ** 2 + inherited
        if isinstance(variance, float):
            std = math.sqrt(variance)
            return x if std == 0.0 else x + std * self.draws.unit(x, noise)
        std = jnp.sqrt(jax.lax.stop_gradient(variance))
        return x + std.astype(x.dtype) * self.draws.unit(x, noise)

    def operand_variance(self, number: int) -> float:
        """Variance of the errors that key switches and a level drop make in an encrypted operand,
        in values.
        """
        if not self.encrypted[number]:
            return 0.0
        place, level = self.place, self.place.operand_level
        if place.operand_stds is not None:
            std = place.operand_stds[number]
        elif place.rotated:
            switch = formulas.key_switch(self.params, level, self.profile)
            std = formulas.value_std(switch, self.params, level, self.profile)
        else:
            std = 0.0
        drop = 0.0
        if self.lowered and self.lowered[number]:
            rounding = formulas.rescale(self.profile)
            drop = formulas.value_std(rounding, self.params, level, self.profile)
        return self._operand_gain(number) ** 2 * (std**2 + drop**2) + self.apart_std(number) ** 2

    def apart_std(self, number: int) -> float:
        """Of `apart`; 0 for operands that have no copies."""
        return self.apart[number] if self.apart else 0.0

    def spread(self, number: int, x: Any, shape: tuple[int, ...]) -> Any:
        """An operand as copies of its elements meet a result of this shape, each with errors of its
        own.
        """
        std = self.apart_std(number)
        return x + self.known(jnp.broadcast_to(x, shape), std) if std else x

    def operand(self, number: int, x: Any) -> Any:
        """An operand with what the operation adds to it: key switches, or the encoding error."""
        if not self.encrypted[number]:
            return self.encoded(x)
        place, gain = self.place, self._operand_gain(number)
        if place.operand_stds is not None:
            return x + self.known(x, gain * place.operand_stds[number], moved=True)
        if not place.rotated:
            return x
        switch = formulas.key_switch(self.params, place.operand_level, self.profile)
        scale = self.params.scale(place.operand_level)
        return x + gain * self.draws.noise(x, switch, scale, moved=True)

    def known(self, x: Any, std: float, *, moved: bool = False) -> Any:
        """An error of this std in values, like x."""
        if std == 0.0:
            return 0.0
        shape = formulas.rescale(self.profile)
        unit = formulas.slot_std(shape, self.params.n, self.profile)
        return self.draws.noise(x, shape, unit / std, moved=moved)

    def _operand_gain(self, number: int) -> float:
        return self.place.operand_gains[number] if self.place.operand_gains else 1.0

    def affine_level(self, scale: float) -> bool:
        """Whether a map of the first operand by this slope takes a level."""
        return abs(abs(scale) * self._operand_gain(0) - 1.0) > 1e-14

    def encoded(self, w: Any) -> Any:
        """A public operand plus the error of its encoding, if it is encoded at all."""
        if not self.place.rescaled or not jnp.issubdtype(jnp.result_type(w), jnp.floating):
            return w
        w = jnp.asarray(w)
        level = self.place.operand_level
        std = formulas.encode_std(self.params, level, self.profile, scalar=w.size == 1)
        return w + self.draws.plain(w, std)

    def through(self, nodes: tuple[Node, ...], x: Any, result: Any) -> Any:
        """A result plus the noise of all rescales of a plan on x, in one draw.

        The weights are constants to differentiation: gradients see the values, not the size of
        the noise.
        """
        if self.place.plan is not None:
            return self._through_circuit(self.place.plan, x, result)
        top = self.place.operand_level
        reference = self._rounding(max(top - 1, 0), switched=False)
        unit = formulas.value_std(reference, self.params, max(top - 1, 0), self.profile)
        weights, refreshes = [], []
        for node in nodes:
            level = self.level_inside(-node.level)
            added = self._rounding(level, node.switched)
            std = formulas.value_std(added, self.params, level, self.profile)
            again = self.refreshed_inside(-node.level) if node.rounded else 0.0
            fresh = formulas.refresh_std(self.params, level, self.profile)
            weights.append((node.rounded * std**2 + again * fresh**2) / unit**2)
            refreshes.append(again)
        entry = self.operand_variance(0) / unit**2 if self.folded else 0.0
        x = jax.lax.stop_gradient(x)
        variance = self._variance(nodes, x, weights, refreshes, unit, entry)
        if isinstance(variance, float) and variance == 0.0:
            return result
        added = self.draws.noise(result, reference, self.params.scale(max(top - 1, 0)))
        return result + self._bend(nodes, x, refreshes) + jnp.sqrt(variance) * added

    def _through_circuit(self, plan: CircuitPlan, x: Any, result: Any) -> Any:
        """The same with a Circuit's own instructions as the plan."""
        slots = jax.lax.stop_gradient(x) / plan.operand_gain
        variance = self._variance(plan.nodes, slots, plan.weights, plan.refreshes, 1.0)
        reference = formulas.rescale(self.profile)
        added = jnp.sqrt(variance) * self.draws.unit(result, reference)
        return result + self.place.gain * (self._bend(plan.nodes, slots, plan.refreshes) + added)

    def _variance(
        self,
        nodes: Sequence[Node],
        x: Any,
        weights: Sequence[float],
        refreshes: Sequence[float],
        unit: float,
        entry: float = 0.0,
    ) -> Any:
        """Variance of a plan's result over unit²; where bootstraps inside may fail, that of a
        failure by its chance.
        """
        found = output_variance(nodes, x, weights, entry)
        chosen = None if self.profile.bootstrap is None else law(self.profile.bootstrap)
        if chosen is None or not chosen.fails or not any(refreshes):
            return found
        more = (1.0 - chosen.std**2) / unit**2
        failed = [w + r * more for w, r in zip(weights, refreshes, strict=True)]
        chance = min(1.0, sum(refreshes) * 2.0**chosen.log2_failure)
        return jnp.where(self.draws.event(chance), output_variance(nodes, x, failed, entry), found)

    def _bend(self, nodes: Sequence[Node], x: Any, refreshes: Sequence[float]) -> Any:
        """What the sines of bootstraps inside a plan do to its result."""
        chosen = None if self.profile.bootstrap is None else law(self.profile.bootstrap)
        if chosen is None or chosen.sine_bits is None or not any(refreshes):
            return 0.0
        bent = values(
            nodes, x, lambda k, v: v + refreshes[k - 1] * chosen.deviation(jnp.asarray(v))
        )
        return bent[-1] - values(nodes, x)[-1]

    def refreshed_inside(self, depth: int) -> float:
        """Refreshes over rescales of what lies this deep in the operation."""
        inner = self.place.inner_refreshes
        return inner[depth] if depth < len(inner) else 0.0

    def level_inside(self, depth: int) -> int:
        """The level this deep in the operation, where a chain that ends begins at the top again."""
        level = self.place.operand_level - depth
        return level if level >= 0 else level % max(self.params.levels, 1)

    def _rounding(self, level: int, switched: bool) -> Noise:
        """What a rescale that ends at ``level`` adds, after a relinearization or not."""
        if switched and level < self.params.levels:
            return formulas.product(self.params, level + 1, self.profile)
        return formulas.rescale(self.profile)


def bootstrapped(
    draws: Draws, value: Any, name: str, gain: float, share: float = 1.0, copies: float = 1.0
) -> Any:
    """A value after a bootstrap by the named law, its slots holding value / gain; a failure, one
    event for the whole tensor, adds noise as large as the message range. Of several ciphertexts
    only a `share` may be bootstrapped, and of the errors of several `copies` their mean is added.
    """
    chosen = law(name)
    slots = value / gain
    size = chosen.std
    if chosen.fails:
        size = jnp.where(draws.event(2.0**chosen.log2_failure), 1.0, size)
    added = math.sqrt(share / copies) * size * draws.plain(value, 1.0)
    return value + gain * (share * chosen.deviation(slots) + added)


Rule = Callable[[Operation, list[Any]], list[Any]]


def _operands(op: Operation, args: list[Any]) -> list[Any]:
    shapes = [np.shape(x) for x in args]
    if op.name == "mul":
        shapes = [np.broadcast_shapes(*shapes)] * 2
    first = op.spread(0, op.operand(0, args[0]), shapes[0])
    if len(args) == 2 and args[0] is args[1]:  # one ciphertext, one error
        return [first, first]
    return [first, *(op.spread(k, op.operand(k, args[k]), shapes[k]) for k in range(1, len(args)))]


def _moved(op: Operation, args: list[Any]) -> list[Any]:
    """Moves and sums: noise only where a compiled Circuit rotates or masks on the way."""
    return [op.rescaled(out) for out in op.bind(args)]


def _spread(op: Operation, args: list[Any]) -> list[Any]:
    """Copies of one tensor: what a Circuit adds in making them, all of them have alike."""
    std = op.place.added_std
    if not std:
        return _moved(op, args)
    return op.bind([args[0] + op.known(args[0], op.place.gain * std), *args[1:]])


def _combination(op: Operation, args: list[Any]) -> list[Any]:
    """Sums of two tensors: operands that a Circuit spreads over more slots bring one error to all
    their copies; that of an operand as large as the result is drawn with the result in a fold.
    """
    if not any(op.place.operand_stds or ()) and not any(op.apart):
        return _moved(op, args)
    largest = max(np.size(x) for x in args)
    alone = [
        op.encrypted[k] and not (op.folded and np.size(x) == largest) for k, x in enumerate(args)
    ]
    # What copies have of their own, the result's elements have, from whichever operand.
    inherited = sum(op.operand_variance(k) for k in range(len(args)) if not alone[k])
    inherited += sum(op.apart_std(k) ** 2 for k in range(len(args)) if alone[k])
    (out,) = op.bind([op.operand(k, x) if alone[k] else x for k, x in enumerate(args)])
    return [op.rescaled_with(out, inherited)]


def _product(op: Operation, args: list[Any]) -> list[Any]:
    """Products of two ciphertexts or by public values, summed at double scale: one rescale."""
    if op.folded and op.name in ("mul", "dot_general"):
        return _folded_product(op, args)
    if op.name == "dot_general" and any(op.apart):
        return _met_apart(op, args)
    (out,) = op.bind(_operands(op, args))
    return [op.rescaled(out, switched=op.product_of_ciphertexts)]


def _met_apart(op: Operation, args: list[Any]) -> list[Any]:
    """A contraction whose operands are read in several copies: what each copy has of its own is
    drawn with the result.
    """
    inherited: Any = 0.0
    for number in (0, 1):
        std = op.apart_std(number)
        if std:
            inherited = inherited + std**2 * _squares(op, args, 1 - number)
    (out,) = op.bind([op.operand(number, x) for number, x in enumerate(args)])
    return [op.rescaled_with(out, inherited, switched=op.product_of_ciphertexts)]


def _folded_product(op: Operation, args: list[Any]) -> list[Any]:
    """A product whose operands' errors, s_a and s_b in size, are part of the result's one draw:
    variance s_a²·Σ b² + s_b²·Σ a² over the summed positions.
    """
    args = [x if op.encrypted[k] else op.encoded(x) for k, x in enumerate(args)]
    (out,) = op.bind(args)
    inherited: Any = 0.0
    for number in (0, 1):
        variance = op.operand_variance(number)
        if variance:
            inherited = inherited + variance * _squares(op, args, 1 - number)
    return [op.rescaled_with(out, inherited, switched=op.product_of_ciphertexts)]


def _squares(op: Operation, args: list[Any], number: int) -> Any:
    """Squares of one factor, summed over what a product contracts, in a shape that broadcasts."""
    x = jnp.square(jax.lax.stop_gradient(jnp.asarray(args[number])))
    if op.name != "dot_general":
        return x
    contracted, batch = op.eqn_params["dimension_numbers"]
    summed, shared = contracted[number], batch[number]
    free = [a for a in range(x.ndim) if a not in summed and a not in shared]
    x = jnp.transpose(jnp.sum(x, axis=tuple(summed), keepdims=True), (*shared, *free, *summed))
    x = x.reshape(x.shape[: x.ndim - len(summed)])
    others = np.ndim(args[1 - number]) - len(summed) - len(shared)
    first = [x.shape[a] for a in range(len(shared))]
    own = list(x.shape[len(shared) :])
    return x.reshape([*first, *([1] * others), *own] if number else [*first, *own, *([1] * others)])


def _square(op: Operation, args: list[Any]) -> list[Any]:
    (out,) = op.bind(_operands(op, args))
    return [op.rescaled(out, switched=True)]


def _quotient(op: Operation, args: list[Any]) -> list[Any]:
    """x / w by public w: a product by the encoded reciprocal."""
    x, w = args
    (out,) = op.bind([x, w])
    if not op.place.rescaled:
        return [out]
    reciprocal = 1.0 / jnp.asarray(w)
    return [op.rescaled(out + x * (op.encoded(reciprocal) - reciprocal))]


def _sum(op: Operation, args: list[Any]) -> list[Any]:
    """Sums over slots: as many rotations as terms, less one, however they are arranged."""
    if op.folded and op.name == "reduce_sum":
        (out,) = op.bind(args)
        terms = args[0].size // max(out.size, 1)
        return [op.rescaled_with(out, terms * op.operand_variance(0))]
    (out,) = op.bind([op.operand(0, op.spread(0, args[0], np.shape(args[0])))])
    return [op.rescaled(out)]


def _choice(op: Operation, args: list[Any]) -> list[Any]:
    """select_n by a public mask: products by 0 and 1, one rescale; a scalar predicate is free."""
    (out,) = op.bind(args)
    return [op.rescaled(out) if np.ndim(args[0]) else out]


def _power(op: Operation, args: list[Any]) -> list[Any]:
    exponent = op.eqn_params["y"]
    if exponent < 2:
        return op.bind(args)
    args = args if op.folded or op.place.plan is not None else _operands(op, args)
    (out,) = op.bind(args)
    nodes = expand(power_plan(exponent), 1.0, 0.0, False)
    return [op.through(nodes, args[0], out)]


def _product_tree(op: Operation, args: list[Any]) -> list[Any]:
    """reduce_prod by halves: a tree of products, each rescaled."""
    x = args[0]
    axes = op.eqn_params["axes"]
    kept = [a for a in range(x.ndim) if a not in axes]
    shape = [x.shape[a] for a in kept]
    x = jnp.transpose(x, (*axes, *kept)).reshape(-1, *shape)
    depth = 0
    while x.shape[0] > 1:
        half, depth = x.shape[0] // 2, depth + 1
        product = op.refreshed(x[:half] * x[half : 2 * half], depth)
        x = jnp.concatenate([product, x[2 * half :]])
    return [x[0] if x.shape[0] else jnp.ones(shape, x.dtype)]


def _polynomial(op: Operation, args: list[Any]) -> list[Any]:
    poly = op.eqn_params["poly"]
    if poly.degree == 0:
        return op.bind(args)
    args = args if op.folded or op.place.plan is not None else _operands(op, args)
    (out,) = op.bind(args)
    own = poly.affine != "folded" and op.affine_level(poly.scale)
    return [op.through(expand(poly.plan, poly.scale, poly.shift, own), args[0], out)]


def _refresh(op: Operation, args: list[Any]) -> list[Any]:
    (out,) = op.bind(args)
    if op.place.added_std is not None:  # of a Circuit, which says after which result it comes
        return [out]
    if op.profile.bootstrap is not None:
        return [bootstrapped(op.draws, out, op.profile.bootstrap, op.place.gain)]
    return [op.with_noise(out, formulas.fresh(op.params.n, op.profile), op.place.level)]


@dataclass(frozen=True)
class NoiseRule:
    """Which errors an operation adds.

    Attributes:
      results: of the operation on noisy operands, with its own noise.
      folds: whether the training tier draws errors of operands with the result.
    """

    results: Rule
    folds: bool = False


_MOVED, _ADDED = NoiseRule(_moved), NoiseRule(_combination)

#: From primitive name to rule, one for each primitive that encrypted values may pass through.
RULES: dict[str, NoiseRule] = {
    **dict.fromkeys(("copy", "copy_p", "device_put", "name", "reshard"), _MOVED),
    **dict.fromkeys(("layout_constraint", "stop_gradient", "optimization_barrier"), _MOVED),
    **dict.fromkeys(("sharding_constraint", "reduce_precision"), _MOVED),
    **dict.fromkeys(("convert_element_type", "neg", "reshape", "transpose", "squeeze"), _MOVED),
    **dict.fromkeys(("slice", "dynamic_slice", "expand_dims", "concatenate", "split"), _MOVED),
    **dict.fromkeys(("stack", "tile", "pad", "rev", "gather", "dynamic_update_slice"), _MOVED),
    **dict.fromkeys(("scatter", "scatter-add"), _MOVED),
    "add": _ADDED,
    "add_any": _ADDED,
    "sub": _ADDED,
    "broadcast_in_dim": NoiseRule(_spread),
    "mul": NoiseRule(_product, folds=True),
    "square": NoiseRule(_square),
    "div": NoiseRule(_quotient),
    "integer_pow": NoiseRule(_power, folds=True),
    "dot_general": NoiseRule(_product, folds=True),
    "conv_general_dilated": NoiseRule(_product),
    "reduce_sum": NoiseRule(_sum),
    "cumsum": NoiseRule(_sum),
    "reduce_prod": NoiseRule(_product_tree),
    "select_n": NoiseRule(_choice),
    "polynomial": NoiseRule(_polynomial, folds=True),
    "refresh": NoiseRule(_refresh),
}


def folds(name: str) -> bool:
    """Whether the training tier draws errors of a primitive's operands with its result."""
    return name in RULES and RULES[name].folds


def apply(op: Operation, args: list[Any]) -> list[Any]:
    """Results of the operation on noisy operands, with its own noise.

    Raises:
      UnknownNoiseError: the table has no row for it.
    """
    row = RULES.get(op.name)
    if row is None:
        raise UnknownNoiseError(
            f"nothing says which errors `{op.name}` adds: give it a row in hesim's noise rules"
        )
    return row.results(op, args)
