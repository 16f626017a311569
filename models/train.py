"""Training: a pure step function, a deterministic batch order, and a loop that evaluates, reports
and resumes.

A step depends on the state and the batch alone, and the batch on the seed and the step number, so a
run that resumes from a checkpoint ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hesim
from hesim.params import CKKSParams
from models.encoder import Model
from models.lora import Params, combine
from models.losses import cross_entropy, mean_squared_error, range_penalty
from models.sites import DEFAULT_FIT, FitSettings, Range, Sites, fit_ranges, join_ranges, met_ranges

Forward = Callable[
    [jax.Array, Params, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]
"""(key, params, x, mask) -> (logits, values at sites); the key is for simulated noise."""


class Batch(NamedTuple):
    """tokens int32 (n, sequence), mask float32 (n, sequence), targets (n,) labels or (n, classes)
    shares or ratings.
    """

    tokens: Any
    mask: Any
    targets: Any


class TrainState(NamedTuple):
    """Everything that a step changes. step: int32; key: the run's random key, never advanced (the
    step is folded in).
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    key: jax.Array


class Evaluation(NamedTuple):
    """Logits (n, classes) of a data set, and per site the canonical range met."""

    logits: np.ndarray
    ranges: dict[str, Range]


Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""A pure training step: (state, batch[, frozen parameters]) -> (state, metrics)."""

Loss = Callable[[Params, Params, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(trained, frozen parameters, batch, key) -> (what is minimised, metrics {"loss": ..., ...})."""


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


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """State before the first step; `params` are those that the optimizer changes."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def exact_forward(model: Model) -> Forward:
    """The model's forward without noise, as a step wants it."""

    def forward(
        key: jax.Array, params: Params, x: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del key
        return model.forward_with_values(params, x, mask)

    return forward


def simulated_forward(model: Model, ckks: CKKSParams, profile: str = "seal") -> Forward:
    """The model's forward with the noise of an encrypted run under these parameters."""
    return hesim.simulate(model.forward_with_values, ckks, encrypted=(1,), profile=profile)


def task_loss(model: Model, logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """Mean squares for a regression model, cross-entropy otherwise."""
    if model.config.regression:
        return mean_squared_error(logits, targets)
    return cross_entropy(logits, targets, smoothing)


def make_update(loss: Loss, optimizer: optax.GradientTransformation) -> Step:
    """The jitted pure step (state, batch[, frozen]) -> (state, metrics) of any loss: `loss`'s own
    metrics and `gradient_norm`.

    The loss gets the run's key with the step number folded in. Where the batch has a field
    `progress`, the optimizer's schedules get it (`schedules.scale_by_progress`).
    """
    transform = optax.with_extra_args_support(optimizer)

    def step(
        state: TrainState, batch: Any, frozen: Params | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        extra = {"progress": batch.progress} if hasattr(batch, "progress") else {}
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, frozen or {}, batch, key)
        updates, opt = transform.update(grads, state.optimizer, state.params, **extra)
        params = cast(Params, optax.apply_updates(state.params, updates))
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return TrainState(state.step + 1, params, opt, state.key), metrics

    return jax.jit(step)


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    regularisation: Regularisation = NO_REGULARISATION,
    forward: Forward | None = None,
) -> Step:
    """The jitted pure step (state, batch) -> (state, metrics {loss, penalty, gradient_norm}).

    forward: a noisy forward pass, as `simulated_forward` gives it. The step takes a third argument,
    parameters that are used but not trained (LoRA); the state then holds only the others.
    """
    run = exact_forward(model) if forward is None else forward
    r = regularisation
    ranges = dict(r.ranges)
    unit = model.units()

    def loss(
        trained: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = combine(trained, frozen)
        k_word, k_feature, k_noise = jax.random.split(key, 3)
        tokens = batch.tokens
        if r.word_dropout:
            gone = jax.random.bernoulli(k_word, r.word_dropout, tokens.shape) & (batch.mask > 0)
            tokens = jnp.where(gone.at[:, 0].set(False), r.unknown_id, tokens)
        x = model.embed(params, tokens, dropout=r.dropout, key=k_feature)
        logits, values = run(k_noise, params, x, batch.mask)
        task = task_loss(model, logits, batch.targets, r.smoothing)
        extra = range_penalty(values, unit, ranges, r.inner) if r.penalty else jnp.zeros(())
        return task + r.penalty * extra, {"loss": task, "penalty": extra}

    return make_update(loss, optimizer)


def batch_rows(seed: int, step: int, rows: int, size: int) -> np.ndarray:
    """Row numbers (size,) of the step's batch: epochs are permutations of all rows, drawn from
    (seed, epoch).
    """
    places = np.arange(step * size, (step + 1) * size)
    epochs = places // rows
    out = np.empty(size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch))).permutation(rows)
        chosen = epochs == epoch
        out[chosen] = order[places[chosen] % rows]
    return out


def take(data: Batch, rows: np.ndarray) -> Batch:
    """Rows of every field."""
    return Batch(*(np.asarray(field)[rows] for field in data))


def batches(data: Batch, size: int) -> Iterator[tuple[Batch, int]]:
    """Consecutive batches of one shape and how many of their rows count (the last is padded by
    repeating rows).
    """
    total = len(data.tokens)
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        yield take(data, rows % total), min(size, total - start)


@functools.lru_cache(maxsize=8)
def make_evaluate(model: Model, size: int = 256) -> Callable[[Params, Batch], Evaluation]:
    """A function (params, data) -> `Evaluation`, compiled once for batches of `size` rows."""
    unit = model.units()

    @jax.jit
    def run(
        params: Params, tokens: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, values = model.forward_with_values(params, model.embed(params, tokens), mask)
        return logits, met_ranges(values, unit)

    def evaluate(params: Params, data: Batch) -> Evaluation:
        logits: list[np.ndarray] = []
        ranges: list[Mapping[str, Any]] = []
        for batch, real in batches(data, min(size, len(data.tokens))):
            z, met = run(params, batch.tokens, batch.mask)
            logits.append(np.asarray(z)[:real])
            ranges.append(met)
        return Evaluation(np.concatenate(logits), join_ranges(ranges))

    return evaluate


def collect_ranges(model: Model, params: Params, data: Batch, size: int = 256) -> dict[str, Range]:
    """Canonical range that every site meets on `data`, padding rows included (they are encrypted
    too).
    """
    return make_evaluate(model, size)(params, data).ranges


def fit_sites(
    model: Model, params: Params, data: Batch, settings: FitSettings = DEFAULT_FIT
) -> Sites:
    """Polynomials for all sites over the ranges that `model` meets on `data`, widened by the
    settings' margin.
    """
    return fit_ranges(model.config, collect_ranges(model, params, data), settings)


Report = Callable[[int, dict[str, float]], None]


def shuffled(data: Batch, size: int, seed: int) -> Callable[[int], Batch]:
    """The batch of a step number: `size` rows of `data`, as `batch_rows` says."""
    rows = len(data.tokens)
    return lambda number: take(data, batch_rows(seed, number, rows, size))


def run_steps(
    step: Step,
    state: TrainState,
    batch_of: Callable[[int], Any],
    *,
    until: int,
    stop: Callable[[], bool] = lambda: False,
    report: Report | None = None,
    report_every: int = 50,
    save: Callable[[TrainState], None] | None = None,
    save_every: int = 0,
) -> TrainState:
    """Steps from the state's own number up to `until`, step n on `batch_of(n)`; ValueError names
    the step where the loss stopped being finite.

    report(step, metrics) is called every `report_every` steps and at the end, save(state) every
    `save_every`. `stop` is asked before each step: the state so far is returned if it says so.
    """
    for number in range(int(state.step), until):
        if stop():
            break
        state, metrics = step(state, batch_of(number))
        done = number + 1
        if done % report_every == 0 or done == until:
            figures = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite(figures["loss"]):
                raise ValueError(
                    f"the loss is {figures['loss']} at step {done}: lower the learning rate"
                )
            if report is not None:
                report(done, figures)
        if save is not None and save_every and done % save_every == 0:
            save(state)
    return state
