"""Losses: cross-entropy, mean squares, their polynomial forms for encrypted training, and the range
penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from models.sites.sites import Range


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Mean of -sum_c y_c log softmax(z)_c in nats. logits (batch, c); labels (batch,) integers or
    (batch, c) shares.
    """
    classes = logits.shape[-1]
    target = jax.nn.one_hot(labels, classes) if labels.ndim == logits.ndim - 1 else labels
    target = (1 - smoothing) * target + smoothing / classes
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def mean_squared_error(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean of (z - y)^2; logits (batch, 1) or the shape of targets."""
    return jnp.mean(jnp.square(logits.reshape(targets.shape) - targets))


def squared_error(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum of (z - y)^2 over everything: its gradient 2 (z - y) costs no level, the mean's factor
    belongs to the step size.

    Traces with encrypted logits and targets of one shape.
    """
    error = logits - targets
    return jnp.sum(error * error)


def softmax_polynomial(
    logits: jax.Array,
    exp: Callable[[jax.Array], jax.Array],
    inverse: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """softmax(z) as exp(z) * inverse(sum exp(z)) with approximations of exp and 1/x, over the last
    axis.

    Fit exp on the range of the logits and inverse on that of the sum of `classes` exponentials.
    """
    powers = exp(logits)
    return powers * inverse(jnp.sum(powers, axis=-1, keepdims=True))


def cross_entropy_polynomial(
    logits: jax.Array,
    onehot: jax.Array,
    exp: Callable[[jax.Array], jax.Array],
    inverse: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """A polynomial whose gradient in the logits is that of the summed cross-entropy: softmax(z) -
    y, approximated.

    It is the inner product of that gradient, held constant, with the logits, so its value is not
    the cross-entropy; only its gradient is meant. logits and onehot (batch, classes) may both be
    encrypted.
    """
    gradient = softmax_polynomial(logits, exp, inverse) - onehot
    return jnp.sum(jax.lax.stop_gradient(gradient) * logits)


def range_penalty(
    values: Mapping[str, jax.Array],
    unit: Mapping[str, float],
    ranges: Mapping[str, Range],
    inner: float = 1.0,
) -> jax.Array:
    """Sum over sites of how far values lie beyond their range, in half-widths of that range.

    A differentiable form of the paper's range loss (section 5.1): zero, with zero gradient, where
    all values lie inside. Each site adds the mean excess of all its values and the mean excess of
    the offenders, weighted by their excess (a soft maximum: the gradient of a maximum is undefined
    where a compiler rounds its argument in two ways). values: u per site as
    `Model.forward_with_values` returns them; unit: `Model.units()`; ranges: canonical (low, high).
    inner: the penalty begins at this fraction of the half-width (0.9: before the edge is reached).
    What 1/sqrt and 1/x get is measured by its logarithm, by which they are as steep at both ends;
    of the Gaussian kernel's exponent only the low end counts, since it cannot exceed 0.
    """
    total = jnp.zeros(())
    for name, (low, high) in ranges.items():
        if name not in values:
            continue
        x = unit[name] * values[name]
        if name.endswith((".inv_sqrt", ".inv")):
            x, low, high = jnp.log(jnp.maximum(x, 1e-6)), float(np.log(low)), float(np.log(high))
        centre, half = (low + high) / 2, (high - low) / 2
        one_sided = name.endswith(".exp") and name != "loss.exp"
        distance = (centre - x) if one_sided else jnp.abs(x - centre)
        excess = jnp.maximum(distance / half - inner, 0.0)
        weight = jax.lax.stop_gradient(excess / (jnp.sum(excess) + 1e-6))
        total = total + jnp.mean(excess) + jnp.sum(weight * excess)
    return total


def share_outside(
    values: Mapping[str, jax.Array], unit: Mapping[str, float], ranges: Mapping[str, Range]
) -> dict[str, jax.Array]:
    """Per site the fraction of values outside its range; a NaN is outside."""
    return {
        name: jnp.mean(~((unit[name] * values[name] >= low) & (unit[name] * values[name] <= high)))
        for name, (low, high) in ranges.items()
        if name in values
    }
