"""The step of a fine-tuning and its batches: in the clear, or as encrypted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from models.data.batches import Batch
from models.data.buckets import lengths_of, plan_epoch, trim
from models.encrypted.settings import EncryptionSettings
from models.encrypted.update import (
    PolynomialSoftmax,
    lora_update,
    root_values,
    simulated_update,
    training_domains,
    training_sites,
)
from models.nn.encoder import Model
from models.nn.lora import Params, combine
from models.objectives.losses import cross_entropy, mean_squared_error, share_outside
from models.recipes.finetune_settings import FineTune
from models.sites.sites import TRAINING_SITES, met_ranges
from models.train.classifier import Regularisation, exact_forward, make_step
from models.train.optim import scale_by_adam_he
from models.train.schedules import ramp, scale_by_progress
from models.train.sharding import (
    place_batch,
)
from models.train.step import (
    SpreadState,
    Step,
    rematerialised,
)

__all__ = [
    "TaskBatch",
    "compiled_step",
    "learning_rates",
    "make_optimizer",
    "penalty_factors",
    "scaled_root",
    "task_batches",
]

_ROOT = "optimizer.inv_sqrt"


class TaskBatch(NamedTuple):
    """A `Batch`, its step's learning rate, which the optimizer gets as `progress`, and a factor of
    the range penalty's weight.
    """

    tokens: Any
    mask: Any
    targets: Any
    types: Any
    progress: Any
    penalty: Any


def learning_rates(settings: FineTune, steps: int) -> np.ndarray:
    """The rate of each step, float32 (steps,): up from 0 in a line over the warm-up, then down by
    half a cosine. Where the warm-up is less than half a step the first one has the whole rate, and
    no warm-up takes all of the steps.
    """
    rise = min(round(settings.warmup * steps), steps - 1)
    number = np.arange(steps)
    fall = 0.5 * (1 + np.cos(np.pi * np.maximum(number - rise, 0) / (steps + 1 - rise)))
    factor = np.where(number < rise, number / max(rise, 1), fall)
    return (settings.learning_rate * factor).astype(np.float32)


def penalty_factors(settings: FineTune, steps: int) -> np.ndarray:
    """Of the range penalty's weight at each step, float32 (steps,)."""
    if settings.penalty_last == 1:
        return np.ones(steps, np.float32)
    return np.asarray(ramp(settings.penalty_last)(np.arange(steps) / steps), np.float32)


def make_optimizer(settings: FineTune) -> optax.GradientTransformationExtraArgs:
    """AdamW, or AdamW-HE for LoRA, with a polynomial root where the step is as encrypted; `update`
    takes the step's learning rate as `progress`.
    """
    if settings.method == "full":
        adam = optax.scale_by_adam()
    elif settings.encrypted is None:
        adam = scale_by_adam_he(eps=settings.epsilon)
    else:
        root = training_sites(1, settings.encrypted.fit).get(_ROOT)
        epsilon, multiplier = scaled_root(settings, settings.encrypted)
        adam = scale_by_adam_he(eps=epsilon, inv_sqrt=root, prescale=multiplier)
    return optax.chain(
        adam,
        optax.add_decayed_weights(settings.weight_decay),
        scale_by_progress(1.0, lambda rate: rate),
    )


def _shared(settings: FineTune) -> FineTune:
    """What a compiled step depends on, everything else at its default: one for all seeds, rates and
    lengths of training, and for all tasks of equally many classes.
    """
    names = (
        *("epochs", "learning_rate", "warmup", "buckets", "seed"),
        *("penalty_last", "save_seconds"),
    )
    fields = {field.name: field.default for field in dataclasses.fields(FineTune)}
    return dataclasses.replace(settings, **{name: fields[name] for name in names})


def scaled_root(settings: FineTune, how: EncryptionSettings) -> tuple[float, float]:
    """Epsilon and multiplier of the root for gradients that are `loss_scale` times as large."""
    low, _ = training_sites(1, how.fit).ranges()[_ROOT]
    multiplier = low / settings.epsilon if settings.multiplier is None else settings.multiplier
    return settings.epsilon * how.loss_scale**2, multiplier / how.loss_scale**2


def task_batches(
    data: Batch, settings: FineTune, per_epoch: int, mesh: Mesh | None
) -> Callable[[int], TaskBatch]:
    lengths = lengths_of(data)
    steps = per_epoch * settings.epochs
    rates, penalties = learning_rates(settings, steps), penalty_factors(settings, steps)

    @functools.lru_cache(maxsize=1)
    def plans(epoch: int):
        return plan_epoch(lengths, settings.batch, settings.buckets, settings.seed, epoch)

    def batch_of(number: int) -> TaskBatch:
        epoch, place = divmod(number, per_epoch)
        batch = TaskBatch(*trim(data, plans(epoch)[place]), rates[number], penalties[number])
        return batch if mesh is None else place_batch(batch, mesh)

    return batch_of


@functools.lru_cache(maxsize=64)
def compiled_step(model: Model, settings: FineTune) -> tuple[optax.GradientTransformation, Step]:
    optimizer = make_optimizer(settings)
    how = settings.encrypted
    if how is None:
        inputs = Regularisation(
            dropout=settings.dropout,
            penalty=settings.penalty,
            ranges=settings.ranges,
            inner=settings.inner,
        )
        forward = rematerialised(exact_forward(model)) if settings.remat else None
        return optimizer, make_step(model, optimizer, inputs, forward, settings.options)
    regression, classes = model.config.regression, model.config.classes
    sites = training_sites(classes, how.fit)
    softmax = PolynomialSoftmax.of(sites)
    update = lora_update(model, optimizer, softmax, how.loss_scale)
    epsilon, multiplier = scaled_root(settings, how)
    unit = model.units() | dict.fromkeys(TRAINING_SITES, 1.0)
    domains = model.sites.ranges() | training_domains(sites)

    def step(state: Any, batch: TaskBatch, frozen: Params) -> tuple[Any, dict[str, Any]]:
        before = state.laid if isinstance(state, SpreadState) else state.params
        noisy = simulated_update(update, state.optimizer, how.ckks, how.profile)
        key = jax.random.fold_in(state.key, state.step)
        x = model.embed(combine(before, frozen), batch.tokens, batch.types)
        targets = batch.targets[:, None] if regression else jax.nn.one_hot(batch.targets, classes)
        trained, opt, (logits, values) = noisy(
            key, before, state.optimizer, frozen, x, batch.mask, targets, batch.progress
        )
        own = {} if softmax is None else softmax.values(logits)
        own[_ROOT] = root_values(opt, epsilon, multiplier)
        task = mean_squared_error if regression else cross_entropy
        figures = {
            "loss": task(logits, batch.targets),
            "outside": share_outside({**values, **own}, unit, domains),
            "ranges": met_ranges(own, unit),
        }
        return type(state)(state.step + 1, trained, opt, state.key), figures

    return optimizer, jax.jit(step, donate_argnums=(0,))
