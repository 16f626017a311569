"""AdamW-HE as a chain of optax transformations: epsilon inside the root, which may be a polynomial.

Rho et al. 2025, Algorithm 1, with t from 1: m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2,
m' = m / (1 - b1^t), v' = v / (1 - b2^t), theta <- theta - lr (m' / sqrt(v' + eps) + wd theta).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax


class AdamHEState(NamedTuple):
    """Step count (int32, public) and both moments, each a tree like the parameters."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] # as optax calls it
    mean: optax.Updates
    square: optax.Updates


def scale_by_adam_he(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    inv_sqrt: Callable[[jax.Array], jax.Array] | None = None,
    prescale: float = 1.0,
) -> optax.GradientTransformation:
    """m' / sqrt(v' + eps), with bias correction from t = 1: Adam with epsilon inside the root.

    Source: Rho et al. 2025, Algorithm 1. The root may be a polynomial, and everything else is a
    sum or a product, so the step can be encrypted.

    Args:
      b1: decay of the first moment m.
      b2: decay of the second moment v.
      eps: inside the root.
      inv_sqrt: an approximation of 1/sqrt on the range of prescale * (v' + eps), whose lower end
        is prescale * eps; the result is multiplied by sqrt(prescale). None: the exact root.
      prescale: brings v' + eps into the approximation's domain.

    Returns:
      An optax transformation; moments and updates have the shapes of the parameters.

    Raises:
      ValueError: from `update`: gradients of another structure than the parameters, from JAX.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import scale_by_adam_he
      >>> rule = scale_by_adam_he(eps=1e-8)
      >>> updates, _ = rule.update(jnp.array([4.0, -2.0]), rule.init(jnp.zeros(2)))
      >>> [round(float(u), 3) for u in updates]
      [1.0, -1.0]
    """
    root = jax.lax.rsqrt if inv_sqrt is None else inv_sqrt

    def init(params: optax.Params) -> AdamHEState:
        def zeros() -> optax.Updates:  # each in buffers of its own, which a step may overwrite
            return jax.tree.map(jnp.zeros_like, params)

        return AdamHEState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(
        updates: optax.Updates, state: AdamHEState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdamHEState]:
        del params
        t = state.count + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (g * g), state.square, updates)
        m_factor = prescale**0.5 / (1 - b1**t)
        v_factor = prescale / (1 - b2**t)
        steps = jax.tree.map(
            lambda m, v: (m_factor * m) * root(v_factor * v + prescale * eps), mean, square
        )
        return steps, AdamHEState(t, mean, square)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def grown(state: optax.OptState, count: int, b1: float = 0.9, b2: float = 0.999) -> optax.OptState:
    """A state of `scale_by_adam_he` or of a chain with it, after at least one step, as it will be
    after `count` steps with gradients like those so far: its moments, whose bias correction is what
    stays, as far from 0 as they are by then.

    Args:
      state: (trees of) arrays of any shapes. b1, b2: decays, as there.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models.train.optim import grown, scale_by_adam_he
      >>> rule, ones = scale_by_adam_he(), jnp.ones(1)
      >>> _, state = rule.update(ones, rule.init(ones))
      >>> late = grown(state, 10_000)
      >>> [round(float(moment[0]), 3) for moment in (state.mean, state.square)]
      [0.1, 0.001]
      >>> int(late.count), [round(float(moment[0]), 3) for moment in (late.mean, late.square)]
      (10000, [1.0, 1.0])
    """

    def is_moments(node: Any) -> bool:
        return isinstance(node, AdamHEState)

    def later(node: Any) -> Any:
        if not is_moments(node):
            return node
        first, second = ((1 - b**count) / (1 - b**node.count) for b in (b1, b2))
        mean = jax.tree.map(lambda m: first * m, node.mean)
        square = jax.tree.map(lambda v: second * v, node.square)
        return AdamHEState(jnp.full_like(node.count, count), mean, square)

    return jax.tree.map(later, state, is_leaf=is_moments)


def on_stacks(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """`rule` on stacks of the leaves that have the same shape, up to the order of their axes.

    A small matrix fills a small part of a ciphertext. Encrypted, the adapters of all layers, those
    that narrow and those that widen, then share ciphertexts in which their step is computed, for
    the operations of one.

    Args:
      rule: treats every number by itself, and looks at no parameters: `scale_by_adam_he` does.

    Returns:
      An optax transformation with the same updates; its state is that of `rule` for the stacks, a
      dictionary of arrays (leaves, *shape) by shape, axes in the order of their lengths.

    Raises:
      ValueError: from `update`: gradients of another structure than the parameters, from JAX.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import on_stacks, scale_by_adam_he
      >>> rule = on_stacks(scale_by_adam_he(eps=1e-8))
      >>> params = {"query": jnp.zeros((2, 3)), "key": jnp.zeros((3, 2)), "head": jnp.zeros(3)}
      >>> {name: moment.shape for name, moment in rule.init(params).mean.items()}
      {'2 3': (2, 2, 3), '3': (1, 3)}
    """

    def stacks(tree: optax.Updates) -> dict[str, jax.Array]:
        found: dict[str, list[Any]] = {}
        for leaf in jax.tree.leaves(tree):
            found.setdefault(_shape(leaf), []).append(jnp.transpose(leaf, _order(leaf)))
        return {name: jnp.stack(leaves) for name, leaves in found.items()}

    def init(params: optax.Params) -> optax.OptState:
        return rule.init(stacks(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        made, state = rule.update(stacks(updates), state)
        rows = {name: iter(stack) for name, stack in cast(dict[str, jax.Array], made).items()}

        def step_of(leaf: jax.Array) -> jax.Array:
            axes = np.argsort(_order(leaf)).tolist()
            return jnp.transpose(next(rows[_shape(leaf)]), axes)

        return jax.tree.map(step_of, updates), state

    return optax.GradientTransformation(init, update)


def _order(leaf: jax.Array) -> list[int]:
    """Axes in the order of their lengths, those of one length as they are."""
    return sorted(range(leaf.ndim), key=lambda axis: leaf.shape[axis])


def _shape(leaf: jax.Array) -> str:
    return " ".join(map(str, sorted(leaf.shape)))


def adamw_he(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    weight_decay: float = 0.01,
    inv_sqrt: Callable[[jax.Array], jax.Array] | None = None,
    prescale: float = 1.0,
    mask: Any = None,
    stacked: bool = False,
) -> optax.GradientTransformation:
    """The paper's optimizer: `scale_by_adam_he`, decoupled weight decay, learning rate.

    Source: Rho et al. 2025, Algorithm 1. Every operation but the root is a sum or a product.

    Args:
      learning_rate: a number or an optax schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the second moment, inside the root.
      weight_decay: of parameters of any shape.
      inv_sqrt: an approximation of 1/sqrt, see `scale_by_adam_he`; None: the exact root.
      prescale: see `scale_by_adam_he`.
      mask: which parameters decay, as in `optax.add_decayed_weights`.
      stacked: moments of leaves of one shape are kept, and turned into steps, as one: see
        `on_stacks`. The state differs, the updates do not.

    Returns:
      An optax transformation; its updates have the shapes of the parameters.

    Raises:
      ValueError: from optax, where `update` gets no parameters to decay.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import adamw_he
      >>> optimizer = adamw_he(0.1, weight_decay=0.0)
      >>> updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
      >>> updates.shape, bool((updates < 0).all())
      ((2,), True)
    """
    rule = scale_by_adam_he(b1, b2, eps, inv_sqrt, prescale)
    return optax.chain(
        on_stacks(rule) if stacked else rule,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
