"""A whole LoRA training step as encryption can do it, and the same step under simulated CKKS noise.

Forward pass, polynomial gradient of the loss, backward pass and AdamW-HE are one function of sums,
products and polynomials: what `hesim.trace` reads, `hesim.simulate` disturbs and `he_backend.run`
encrypts. Encrypted are the embedded sentences, the labels, and what is trained with its moments;
the mask, the frozen matrices, the step number and the learning rate are public, so one compiled
step serves a whole training.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

import hesim
from hesim.circuit.circuit import Circuit
from hesim.errors import ArgumentError
from hesim.params import CKKSParams
from models.nn.encoder import Model
from models.nn.lora import Params, combine
from models.objectives.losses import cross_entropy_polynomial, squared_error
from models.sites.sites import DEFAULT_FIT, TRAINING_SITES, FitSettings, Sites, hull
from models.train.optim import AdamHEState

__all__ = [
    "PolynomialSoftmax",
    "Seen",
    "Update",
    "lora_gradient",
    "lora_update",
    "polynomial_loss",
    "root_values",
    "simulated_update",
    "training_domains",
    "training_sites",
]

_RANGES = {"loss.exp": (-4.0, 4.0), "optimizer.inv_sqrt": (0.0005, 1.0)}
"""Of logits less their mean, and of the second moment, epsilon included, times a public factor
(Rho et al. 2025, Table 13)."""
_DEGREES = {"loss.exp": 15, "loss.inv": 31}
_COMPOSITES = {"optimizer.inv_sqrt": (("tol", 1e-3),)}

Seen = tuple[jax.Array, dict[str, jax.Array]]
"""Logits (batch, classes) and the values that the sites met, u per site."""

Update = Callable[..., tuple[Params, optax.OptState, Seen]]
"""(trained, optimizer state, frozen, x, mask, targets, rate) -> (trained, optimizer state, `Seen`);
the public `rate` is what the optimizer gets as its keyword `progress`, if it takes one."""


@functools.lru_cache(maxsize=16)
def training_sites(classes: int, fit: FitSettings = DEFAULT_FIT) -> Sites:
    """The approximations of a step beside the model's own: exp and 1/x of the loss's softmax over
    `classes` logits, none for one (a regression), and AdamW-HE's 1/sqrt.

    fit: an entry under the site's own name counts, one of its function is the model's. By default
    exp has the degree 15 on [-4, 4], where the logits less their mean are to lie, 1/x the degree
    31 where the sum of the exponentials then is, and 1/sqrt is a seed with Newton steps within
    1e-3 on [0.0005, 1], where the second moments are brought by a public factor.
    """

    def own(table: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
        return {name: value for name, value in table if name in TRAINING_SITES}

    degrees, ranges = own(fit.degrees), own(fit.ranges)
    composites = {n: knobs for n, knobs in _COMPOSITES.items() if n not in degrees}
    ranges = _RANGES | ranges
    if "loss.inv" not in ranges:
        reach = max(map(abs, ranges["loss.exp"]))
        ranges["loss.inv"] = (0.9 * classes, 1.05 * classes * math.cosh(reach))
    settings = FitSettings(
        degrees=tuple((_DEGREES | degrees).items()),
        composites=tuple((composites | own(fit.composites)).items()),
        ranges=tuple(ranges.items()),
        method=fit.method,
    )
    names = TRAINING_SITES if classes > 1 else ("optimizer.inv_sqrt",)
    return Sites.of({name: settings.build(name, settings.domain(name, None)) for name in names})


@dataclasses.dataclass(frozen=True)
class PolynomialSoftmax:
    """exp and 1/x of the loss's softmax, functions of arrays.

    The mean of the logits is subtracted before, which costs no level and changes no softmax, and
    keeps the sum of the exponentials at the number of classes or above, far from 0, where 1/x is
    steep.
    """

    exp: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]

    @classmethod
    def of(cls, sites: Sites) -> PolynomialSoftmax | None:
        """That of `training_sites`; None for a regression, which has none."""
        exp, inverse = sites.get("loss.exp"), sites.get("loss.inv")
        return None if exp is None or inverse is None else cls(exp, inverse)

    def values(self, logits: jax.Array) -> dict[str, jax.Array]:
        """What `loss.exp` and `loss.inv` meet of logits (batch, classes), for runs in the clear."""
        centred = _centred(logits)
        return {"loss.exp": centred, "loss.inv": jnp.sum(self.exp(centred), axis=-1)}


def _centred(logits: jax.Array) -> jax.Array:
    return logits - jnp.mean(logits, axis=-1, keepdims=True)


def root_values(
    state: optax.OptState, epsilon: float, multiplier: float, b2: float = 0.999
) -> jax.Array:
    """What `optimizer.inv_sqrt` met in the update that led to this state of `adamw_he`, for runs in
    the clear: (numbers trained,) second moments, bias corrected, with epsilon, times the factor.
    """

    def is_moments(node: Any) -> bool:
        return isinstance(node, AdamHEState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_moments) if is_moments(s)]
    return jnp.concatenate(
        [
            multiplier * (jnp.ravel(square) / (1 - b2**moments.count) + epsilon)
            for moments in found
            for square in jax.tree.leaves(moments.square)
        ]
    )


def training_domains(sites: Sites) -> dict[str, tuple[float, float]]:
    """Where the approximations of `training_sites` hold. A tenth below its domain the optimizer's
    root is still one, and a moment of 0 with noise lies there.
    """
    found = {name: hull(function.domain) for name, function in sites.entries}
    low, high = found["optimizer.inv_sqrt"]
    return found | {"optimizer.inv_sqrt": (0.9 * low, high)}


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
    return share * cross_entropy_polynomial(_centred(logits), targets, softmax.exp, softmax.inverse)


def lora_gradient(
    model: Model, softmax: PolynomialSoftmax | None = None, scale: float = 1.0
) -> Callable[..., tuple[Params, Seen]]:
    """(trained, frozen, x, mask, targets) -> (gradients of the loss, `Seen`): a step's first part.

    Arguments and errors as of `lora_update`.
    """
    if (softmax is None) != model.config.regression:
        raise ArgumentError("a softmax for classes, none for a regression")

    def gradient(
        trained: Params, frozen: Params, x: jax.Array, mask: jax.Array, targets: jax.Array
    ) -> tuple[Params, Seen]:
        def loss(chosen: Params) -> tuple[jax.Array, Seen]:
            logits, values = model.forward_with_values(combine(chosen, frozen), x, mask)
            return polynomial_loss(logits, targets, softmax, scale), (logits, values)

        return jax.grad(loss, has_aux=True)(trained)

    return gradient


def lora_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    softmax: PolynomialSoftmax | None = None,
    scale: float = 1.0,
) -> Update:
    """The step without noise. ArgumentError for a regression model with a softmax or the reverse.

    scale: of the loss. Noise does not grow with it, gradients do; AdamW-HE takes the same steps
    with scale^2 times its epsilon.

    `model` should have polynomials at all sites and `low_rank=True`; `optimizer` be `adamw_he` with
    a polynomial root, without clipping, which compares. Otherwise it runs in the clear, but cannot
    be traced with encrypted arguments.
    """
    transform = optax.with_extra_args_support(optimizer)
    gradient = lora_gradient(model, softmax, scale)

    def update(
        trained: Params,
        state: optax.OptState,
        frozen: Params,
        x: jax.Array,
        mask: jax.Array,
        targets: jax.Array,
        rate: jax.Array,
    ) -> tuple[Params, optax.OptState, Seen]:
        grads, seen = gradient(trained, frozen, x, mask, targets)
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
