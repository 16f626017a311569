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
    """Mean of -sum_c y_c log softmax(z)_c, in nats.

    Args:
      logits: (batch, classes).
      labels: (batch,) integers or (batch, classes) shares.
      smoothing: share of each label that is spread over all classes.

    Returns:
      A number, shape ().

    Raises:
      TypeError: shapes that do not fit each other, from JAX.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import cross_entropy
      >>> round(float(cross_entropy(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))), 4)
      0.6931
    """
    classes = logits.shape[-1]
    target = jax.nn.one_hot(labels, classes) if labels.ndim == logits.ndim - 1 else labels
    target = (1 - smoothing) * target + smoothing / classes
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def mean_squared_error(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean of (z - y)^2.

    Args:
      logits: (batch, 1), or the shape of the targets.
      targets: (batch,) ratings.

    Returns:
      A number, shape ().

    Raises:
      TypeError: logits of another size than the targets, from JAX.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import mean_squared_error
      >>> float(mean_squared_error(jnp.zeros((2, 1)), jnp.array([1.0, 3.0])))
      5.0
    """
    return jnp.mean(jnp.square(logits.reshape(targets.shape) - targets))


def squared_error(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum of (z - y)^2 over everything: its gradient 2 (z - y) costs no level.

    The mean's factor belongs to the step size. Traces with encrypted logits and targets.

    Args:
      logits: of any shape.
      targets: of the same shape.

    Returns:
      A number, shape ().

    Raises:
      TypeError: shapes that do not broadcast, from JAX.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import squared_error
      >>> float(squared_error(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]])))
      10.0
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
    """A polynomial whose gradient in the logits is that of the summed cross-entropy, approximated.

    It is the inner product of softmax(z) - y, held constant, with the logits, so its value is not
    the cross-entropy; only its gradient is meant. Logits and labels may both be encrypted.

    Args:
      logits: (batch, classes).
      onehot: labels, (batch, classes).
      exp: an approximation on the range of the logits.
      inverse: an approximation of 1/x on the range of the sum of `classes` exponentials.

    Returns:
      A number, shape ().

    Raises:
      TypeError: shapes that do not fit each other, from JAX.

    Examples:
      >>> import approx, jax, jax.numpy as jnp
      >>> from models import cross_entropy_polynomial
      >>> exp = approx.fit("exp", (-2, 2), degree=15)
      >>> inverse = approx.fit("inv", (0.2, 15), degree=31)
      >>> slope = jax.grad(cross_entropy_polynomial)(
      ...     jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), exp, inverse)
      >>> [round(float(g), 2) for g in slope[0]]
      [-0.5, 0.5]
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
    where a compiler rounds its argument in two ways). What 1/sqrt and 1/x get is measured by its
    logarithm, by which they are as steep at both ends; of the Gaussian kernel's exponent only the
    low end counts, since it cannot exceed 0.

    Args:
      values: u per site, arrays of any shape, as `Model.forward_with_values` returns them.
      unit: factor of each, `Model.units()`.
      ranges: canonical (low, high) of each; sites without values are left out.
      inner: the penalty begins at this fraction of the half-width (0.9: before the edge is
        reached).

    Returns:
      A number, shape ().

    Raises:
      KeyError: a site without a unit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import range_penalty
      >>> def penalty(*values):
      ...     site = "layer0.ffn.relu"
      ...     ranges = {site: (-2.0, 2.0)}
      ...     return float(range_penalty({site: jnp.array(values)}, {site: 1.0}, ranges))
      >>> penalty(1.0, 2.0), penalty(1.0, 4.0) > 0.5
      (0.0, True)
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
