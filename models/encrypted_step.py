"""A whole LoRA training step as encryption can do it, and the same step under simulated CKKS noise.

Forward pass, polynomial gradient of the loss, backward pass and AdamW-HE are one function of sums,
products and polynomials: what `hesim.trace` reads, `hesim.simulate` disturbs and `he_backend.run`
encrypts. Encrypted are the embedded sentences, the labels, and what is trained with its moments;
the mask, the frozen matrices, the step number and the learning rate are public, so one compiled
step serves a whole training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

import approx
import hesim
from hesim.circuit.circuit import Circuit
from hesim.params import CKKSParams
from models.encoder import Model
from models.lora import Params, combine
from models.losses import cross_entropy_polynomial, squared_error
from models.optim import AdamHEState

__all__ = [
    "ROOT_DOMAIN",
    "PolynomialSoftmax",
    "Seen",
    "Update",
    "inverse_root",
    "polynomial_loss",
    "root_outside",
    "simulated_update",
    "lora_update",
]

ROOT_DOMAIN = (0.0005, 1.0)
"""Where AdamW-HE's polynomial 1/sqrt holds: Rho et al. 2025, Table 13."""

Seen = tuple[jax.Array, dict[str, jax.Array]]
"""Logits (batch, classes) and the values that the sites met, u per site."""

Update = Callable[..., tuple[Params, optax.OptState, Seen]]
"""(trained, optimizer state, frozen, x, mask, targets, rate) -> (trained, optimizer state, `Seen`);
the public `rate` is what the optimizer gets as its keyword `progress`, if it takes one."""


@dataclasses.dataclass(frozen=True)
class PolynomialSoftmax:
    """exp and 1/x of the loss's softmax over `classes` logits, each within `bound` of their mean.

    Subtracting the mean costs no level and changes no softmax, and it keeps the sum of exponentials
    in [classes, classes cosh(bound)], far from 0, where 1/x is steep.
    """

    classes: int
    bound: float
    exp: Any
    inverse: Any

    @classmethod
    def fit(
        cls, classes: int, bound: float = 4.0, exp_degree: int = 15, inverse_degree: int = 31
    ) -> PolynomialSoftmax:
        """Minimax polynomials on these ranges. ValueError for fewer than two classes."""
        if classes < 2:
            raise ValueError(f"a softmax has at least 2 classes, got {classes}")
        sums = (0.9 * classes, 1.05 * classes * math.cosh(bound))
        return cls(
            classes,
            bound,
            approx.fit("exp", (-bound, bound), degree=exp_degree),
            approx.fit("inv", sums, degree=inverse_degree),
        )

    def share_outside(self, logits: jax.Array) -> jax.Array:
        """Fraction of centred logits beyond the bound, for runs in the clear."""
        centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
        return jnp.mean(~(jnp.abs(centred) <= self.bound))


def inverse_root(tol: float = 1e-3) -> Any:
    """1/sqrt on `ROOT_DOMAIN`, a seed with Newton steps, for v + epsilon times a public factor."""
    return approx.composite("inv_sqrt", ROOT_DOMAIN, tol=tol)


def root_outside(
    state: optax.OptState, epsilon: float, multiplier: float, b2: float = 0.999
) -> jax.Array:
    """Fraction of AdamW-HE's second moments (bias corrected), after an update, that the root's
    domain does not hold, for runs in the clear: a tenth below it the root is still one, and a
    moment of 0 with noise is there. state: of `adamw_he`.
    """

    def is_moments(node: Any) -> bool:
        return isinstance(node, AdamHEState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_moments) if is_moments(s)]
    total, outside = 0, jnp.zeros(())
    for moments in found:
        for square in jax.tree.leaves(moments.square):
            u = multiplier * (square / (1 - b2**moments.count) + epsilon)
            inside = (u >= 0.9 * ROOT_DOMAIN[0]) & (u <= ROOT_DOMAIN[1])
            outside = outside + jnp.sum(~inside)
            total += square.size
    return outside / max(total, 1)


def polynomial_loss(
    logits: jax.Array, targets: jax.Array, softmax: PolynomialSoftmax | None, scale: float = 1.0
) -> jax.Array:
    """What is differentiated under encryption, `scale` times a mean over the batch.

    targets: (batch, classes) of 0 and 1 with a softmax, whose value is then not the cross-entropy
    but has its gradient; (batch, 1) ratings without, mean squares.
    """
    share = scale / logits.shape[0]
    if softmax is None:
        return share * squared_error(logits, targets)
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    return share * cross_entropy_polynomial(centred, targets, softmax.exp, softmax.inverse)


def lora_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    softmax: PolynomialSoftmax | None = None,
    scale: float = 1.0,
) -> Update:
    """The step without noise. ValueError for a regression model with a softmax or the reverse.

    scale: of the loss. Noise does not grow with it, gradients do; AdamW-HE takes the same steps
    with scale^2 times its epsilon.

    `model` should have polynomials at all sites and `low_rank=True`; `optimizer` be `adamw_he` with
    a polynomial root, without clipping, which compares. Otherwise it runs in the clear, but cannot
    be traced with encrypted arguments.
    """
    if (softmax is None) != model.config.regression:
        raise ValueError("a softmax for classes, none for a regression")
    transform = optax.with_extra_args_support(optimizer)

    def update(
        trained: Params,
        state: optax.OptState,
        frozen: Params,
        x: jax.Array,
        mask: jax.Array,
        targets: jax.Array,
        rate: jax.Array,
    ) -> tuple[Params, optax.OptState, Seen]:
        def loss(chosen: Params) -> tuple[jax.Array, Seen]:
            logits, values = model.forward_with_values(combine(chosen, frozen), x, mask)
            return polynomial_loss(logits, targets, softmax, scale), (logits, values)

        grads, seen = jax.grad(loss, has_aux=True)(trained)
        updates, state = transform.update(grads, state, trained, progress=rate)
        return cast(Params, optax.apply_updates(trained, updates)), state, seen

    return update


def encrypted_arguments(state: optax.OptState) -> tuple[Any, ...]:
    """Which arguments of an update are encrypted, as `hesim.trace` takes it: all but the counters
    of the optimizer, the frozen matrices, the mask and the step size.
    """
    moments = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), state)
    return (True, moments, False, True, False, True, False)


def simulated_update(
    update: Update,
    state: optax.OptState,
    ckks: CKKSParams,
    profile: str = "seal",
    circuit: Circuit | None = None,
) -> Callable[..., tuple[Params, optax.OptState, Seen]]:
    """(key, *arguments of the update) -> its result with the noise of an encrypted step.

    state: the optimizer's, for its structure. Each key is a fresh secret key. circuit: as for
    `hesim.simulate`, compiled from a trace of `update`: the noise is then that of its own levels,
    refreshes and rotations. Compiling a step takes seconds for a model of 8 features, and grows
    with the number of ciphertexts.
    """
    encrypted = encrypted_arguments(state)
    return hesim.simulate(update, ckks, encrypted, profile, tier="train", circuit=circuit)
