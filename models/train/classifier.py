"""The step of a classifier or regression model: its loss, regularised, and its forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from models.data.batches import Batch
from models.nn.encoder import Model
from models.nn.lora import Params, combine
from models.objectives.losses import cross_entropy, mean_squared_error, range_penalty
from models.sites.sites import (
    Range,
)
from models.train.step import PLAIN_STEP, Loss, Step, StepOptions, make_update

Forward = Callable[
    [jax.Array, Params, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]
"""(key, params, x, mask) -> (logits, values at sites); the key is for simulated noise."""


@dataclasses.dataclass(frozen=True)
class Regularisation:
    """What is done to the training inputs and added to the loss.

    dropout: share of embedding features zeroed; word_dropout: share of tokens (never the first)
    replaced by `unknown_id`; smoothing: of labels; penalty: weight of the range penalty on `ranges`
    (canonical, per site) beginning at the fraction `inner` of each half-width.
    """

    dropout: float = 0.0
    word_dropout: float = 0.0
    unknown_id: int = 1
    smoothing: float = 0.0
    penalty: float = 0.0
    ranges: tuple[tuple[str, Range], ...] = ()
    inner: float = 0.9


NO_REGULARISATION = Regularisation()


def exact_forward(model: Model) -> Forward:
    """The model's forward without noise, as a step wants it."""

    def forward(
        key: jax.Array, params: Params, x: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del key
        return model.forward_with_values(params, x, mask)

    return forward


def task_loss(model: Model, logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """Mean squares for a regression model, cross-entropy otherwise."""
    if model.config.regression:
        return mean_squared_error(logits, targets)
    return cross_entropy(logits, targets, smoothing)


def compute_type(params: Params) -> Any:
    """The type in which a loss is to compute: that of the parameters it is given."""
    return params["embedding"]["word"].dtype


def make_task_loss(
    model: Model,
    regularisation: Regularisation = NO_REGULARISATION,
    forward: Forward | None = None,
) -> Loss:
    """The regularised loss of a classifier or regression model on a `Batch`; metrics {loss,
    penalty}. forward: a noisy forward pass, as `simulated_forward` gives it. Where the batch has a
    field `penalty`, it is a factor of the penalty's weight.
    """
    run = exact_forward(model) if forward is None else forward
    r = regularisation
    ranges = dict(r.ranges)
    unit = model.units()

    def loss(
        trained: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = combine(trained, frozen)
        dtype = compute_type(params)
        k_word, k_feature, k_noise = jax.random.split(key, 3)
        tokens = batch.tokens
        if r.word_dropout:
            gone = jax.random.bernoulli(k_word, r.word_dropout, tokens.shape) & (batch.mask > 0)
            tokens = jnp.where(gone.at[..., 0].set(False), r.unknown_id, tokens)
        x = model.embed(params, tokens, batch.types, dropout=r.dropout, key=k_feature)
        logits, values = run(k_noise, params, x.astype(dtype), batch.mask.astype(dtype))
        task = task_loss(model, logits.astype(jnp.float32), batch.targets, r.smoothing)
        extra = range_penalty(values, unit, ranges, r.inner) if r.penalty else jnp.zeros(())
        weight = r.penalty * getattr(batch, "penalty", 1.0)
        return task + weight * extra, {"loss": task, "penalty": extra}

    return loss


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    regularisation: Regularisation = NO_REGULARISATION,
    forward: Forward | None = None,
    options: StepOptions = PLAIN_STEP,
) -> Step:
    """The jitted pure step (state, batch) -> (state, metrics {loss, penalty, gradient_norm}).

    The step takes a third argument, parameters that are used but not trained (LoRA); the state
    then holds only the others.

    Args:
      model: exact, or a twin.
      optimizer: an optax transformation.
      regularisation: dropout, smoothing and the range penalty.
      forward: in place of the model's own, for instance one with simulated noise.
      options: accumulation, precision, donated buffers.

    Returns:
      The step; batches have tokens (n, sequence), metrics shape ().

    Raises:
      ArgumentError: from the step: rows that `accumulate` does not divide, or shapes that the
        configuration does not have.

    Examples:
      >>> import jax, optax
      >>> import numpy as np
      >>> from models import Batch, Model, initial_state, make_step, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> optimizer = optax.sgd(0.1)
      >>> state = initial_state(model.init(jax.random.key(0)), optimizer, jax.random.key(1))
      >>> rows = Batch(np.zeros((2, 4), int), np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> state, metrics = make_step(model, optimizer)(state, rows)
      >>> int(state.step), sorted(metrics)
      (1, ['gradient_norm', 'loss', 'penalty'])
    """
    return make_update(make_task_loss(model, regularisation, forward), optimizer, options)
