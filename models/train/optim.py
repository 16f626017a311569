"""AdamW-HE as a chain of optax transformations: epsilon inside the root, which may be a polynomial.

Rho et al. 2025, Algorithm 1, with t from 1: m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2,
m' = m / (1 - b1^t), v' = v / (1 - b2^t), theta <- theta - lr (m' / sqrt(v' + eps) + wd theta).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


def adamw_he(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    weight_decay: float = 0.01,
    inv_sqrt: Callable[[jax.Array], jax.Array] | None = None,
    prescale: float = 1.0,
    mask: Any = None,
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
    return optax.chain(
        scale_by_adam_he(b1, b2, eps, inv_sqrt, prescale),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
