"""Training: the step of a classifier, a deterministic batch order, and the loop of every training,
which reports, resumes, and stops where numbers cease to be finite.

A step depends on the state and the batch alone, and the batch on the seed and the step number, so a
run that resumes from a checkpoint ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hesim
from hesim.circuit.circuit import Circuit
from hesim.params import CKKSParams
from models.nn.encoder import Model
from models.nn.lora import Params, combine
from models.objectives.losses import cross_entropy, mean_squared_error, range_penalty
from models.sites.sites import (
    DEFAULT_FIT,
    FitSettings,
    Range,
    Sites,
    fit_ranges,
    join_ranges,
    met_ranges,
)
from models.train.step import PLAIN_STEP, Loss, Step, StepOptions, TrainState, make_update
from models.train.step import initial_state as initial_state  # the start of every training

Forward = Callable[
    [jax.Array, Params, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]
"""(key, params, x, mask) -> (logits, values at sites); the key is for simulated noise."""


class Batch(NamedTuple):
    """Rows of token ids with their labels.

    Where the sentences of a pair are read apart, shapes are (n, 2, sequence) in place of
    (n, sequence).

    Attributes:
      tokens: int32 (n, sequence).
      mask: float32 (n, sequence), 1 for tokens and 0 for padding.
      targets: (n,) labels, or (n, classes) shares or ratings.
      types: int32 (n, sequence) token types; None where all are 0.

    Examples:
      >>> import numpy as np
      >>> from models import Batch
      >>> labels = np.array([0, 1, 0, 1])
      >>> rows = Batch(np.zeros((4, 8), np.int32), np.ones((4, 8), np.float32), labels)
      >>> rows.tokens.shape, rows.types
      ((4, 8), None)
    """

    tokens: Any
    mask: Any
    targets: Any
    types: Any = None


class Evaluation(NamedTuple):
    """Logits (n, classes) of a data set, and per site the canonical range met."""

    logits: np.ndarray
    ranges: dict[str, Range]


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


def simulated_forward(
    model: Model, ckks: CKKSParams, profile: str = "seal", circuit: Circuit | None = None
) -> Forward:
    """The model's forward with the noise of an encrypted run under these parameters.

    circuit: as for `hesim.simulate`, that of `forward_circuit`: the noise is then that of the
    circuit's own levels, refreshes and rotations, for batches of any size.
    """
    return hesim.simulate(
        model.forward_with_values, ckks, encrypted=(1,), profile=profile, circuit=circuit
    )


@functools.lru_cache(maxsize=2)
def forward_circuit(
    model: Model, ckks: CKKSParams, sentences: int, refresh_price: float | str | None = None
) -> Circuit:
    """The Circuit of `model.encrypted_forward` for a batch of this many sentences, rows encrypted,
    weights and mask public; kept for the last two calls. Needs no weights, only their shapes, and
    seconds to compile a small model. Raises as `hesim.compile` does.
    """
    config = model.config
    params = jax.eval_shape(model.init, jax.random.key(0))
    mask = jax.ShapeDtypeStruct((sentences, config.sequence), np.float32)
    rows = jax.ShapeDtypeStruct((*mask.shape, config.hidden), np.float32)
    program = hesim.trace(model.encrypted_forward, params, rows, mask, encrypted=(1,))
    return hesim.compile(program, ckks, refresh_price=refresh_price)


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
      ValueError: from the step: rows that `accumulate` does not divide, or shapes that the
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
    return Batch(*(None if field is None else np.asarray(field)[rows] for field in data))


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
    """A function that runs a model over rows, compiled once.

    Args:
      model: exact, or a twin.
      size: rows at a time.

    Returns:
      (params, `Batch` of (n, sequence) tokens) -> logits (n, classes) and the range met at each
        site.

    Raises:
      ValueError: from the function: shapes that the configuration does not have.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Batch, Model, make_evaluate, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> rows = Batch(np.zeros((2, 4), int), np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> make_evaluate(model)(model.init(jax.random.key(0)), rows).logits.shape
      (2, 2)
    """
    unit = model.units()

    @jax.jit
    def run(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = model.embed(params, batch.tokens, batch.types)
        logits, values = model.forward_with_values(params, x, batch.mask)
        return logits, met_ranges(values, unit)

    def evaluate(params: Params, data: Batch) -> Evaluation:
        logits: list[np.ndarray] = []
        ranges: list[Mapping[str, Any]] = []
        for batch, real in batches(data, min(size, len(data.tokens))):
            z, met = run(params, batch)
            logits.append(np.asarray(z)[:real])
            ranges.append(met)
        return Evaluation(np.concatenate(logits), join_ranges(ranges))

    return evaluate


def collect_ranges(model: Model, params: Params, data: Batch, size: int = 256) -> dict[str, Range]:
    """The range that every site meets on some rows, padding included (it is encrypted too).

    Args:
      model: exact, or a twin.
      params: its parameters.
      data: rows of tokens (n, sequence).
      size: rows at a time.

    Returns:
      (low, high) by site, of the function's own variable.

    Raises:
      ValueError: shapes that the configuration does not have.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Batch, Model, collect_ranges, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> rows = Batch(np.arange(8).reshape(2, 4), np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> met = collect_ranges(model, model.init(jax.random.key(0)), rows)
      >>> met["layer0.attention.exp"][1] <= 0.0
      True
    """
    return make_evaluate(model, size)(params, data).ranges


def fit_sites(
    model: Model, params: Params, data: Batch, settings: FitSettings = DEFAULT_FIT
) -> Sites:
    """Approximations for all sites over the ranges that a model meets on some rows, and a margin.

    Args:
      model: usually the exact one.
      params: its parameters.
      data: rows of tokens (n, sequence) that stand for real ones.
      settings: degrees, composites, margin.

    Returns:
      The sites, for `Model.with_sites`.

    Raises:
      ParameterError: a setting for a site that this model does not have.
      ApproxError: no such polynomial exists; the site is named.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Batch, FitSettings, Model, fit_sites, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> rows = Batch(np.arange(8).reshape(2, 4), np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> sites = fit_sites(model, model.init(jax.random.key(0)), rows, FitSettings(margin=0.3))
      >>> sites.get("layer0.ffn.relu").degree <= 7, len(sites.entries)
      (True, 5)
    """
    return fit_ranges(model.config, collect_ranges(model, params, data), settings)


Report = Callable[[int, dict[str, float]], None]


def shuffled(data: Batch, size: int, seed: int) -> Callable[[int], Batch]:
    """The batch of a step number: rows in an order that depends on the seed and the step alone.

    Args:
      data: rows of tokens (n, sequence).
      size: rows of a batch.
      seed: of the order; each pass over the data has another.

    Returns:
      A function from a step number to a `Batch` of `size` rows.

    Raises nothing of its own.

    Examples:
      >>> import numpy as np
      >>> from models import Batch, shuffled
      >>> rows = Batch(np.arange(6).reshape(6, 1), np.ones((6, 1)), np.zeros(6))
      >>> batch_of = shuffled(rows, 2, seed=0)
      >>> sorted(int(t) for n in range(3) for t in batch_of(n).tokens[:, 0])
      [0, 1, 2, 3, 4, 5]
    """
    rows = len(data.tokens)
    return lambda number: take(data, batch_rows(seed, number, rows, size))


class TrainingError(ValueError):
    """A training whose numbers ceased to be finite."""


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
    diagnose: Callable[[Params, Any], str] | None = None,
) -> TrainState:
    """Steps from the state's own number up to another, step n on `batch_of(n)`.

    Loss and gradient are looked at when they are reported; with `diagnose` the steps since the
    last report are run again, and the first bad one's parameters and batch are diagnosed. That
    keeps a copy of the state.

    Args:
      step: (state, batch) -> (state, metrics), as of `make_step`.
      state: to go on from.
      batch_of: the batch of a step number.
      until: the number to stop at.
      stop: asked before each step; the state so far is returned if it says so.
      report: called with the step number and metrics every `report_every` steps and at the end.
      report_every: in steps.
      save: called with the state every `save_every` steps.
      save_every: in steps; 0: never.
      diagnose: (params, batch) -> text, for the first step that goes wrong (`diagnose.origin`).

    Returns:
      The last state.

    Raises:
      TrainingError: loss or gradient are not finite.

    Examples:
      >>> import jax, optax
      >>> from models import initial_state, make_update, run_steps
      >>> def loss(trained, frozen, batch, key):
      ...     value = ((trained["w"] - batch) ** 2).sum()
      ...     return value, {"loss": value}
      >>> state = initial_state({"w": jax.numpy.zeros(2)}, optax.sgd(0.1), jax.random.key(0))
      >>> ones = jax.numpy.ones(2)
      >>> state = run_steps(make_update(loss, optax.sgd(0.1)), state, lambda n: ones, until=5)
      >>> int(state.step), bool((state.params["w"] > 0.5).all())
      (5, True)
    """
    kept = None if diagnose is None else _copy(state)
    for number in range(int(state.step), until):
        if stop():
            break
        state, metrics = step(state, batch_of(number))
        done = number + 1
        if done % report_every == 0 or done == until:
            figures = {name: float(value) for name, value in metrics.items()}
            if not _finite(figures):
                raise TrainingError(_told(step, kept, batch_of, done, figures, diagnose))
            if report is not None:
                report(done, figures)
            kept = None if diagnose is None else _copy(state)
        if save is not None and save_every and done % save_every == 0:
            save(state)
    return state


def _copy(state: TrainState) -> TrainState:
    """The state in buffers of its own, which a step that donates its input leaves alone."""
    return jax.tree.map(jnp.copy, state)


def _finite(figures: Mapping[str, float]) -> bool:
    return bool(np.isfinite([figures["loss"], figures.get("gradient_norm", 0.0)]).all())


def _told(
    step: Step,
    kept: TrainState | None,
    batch_of: Callable[[int], Any],
    done: int,
    figures: Mapping[str, float],
    diagnose: Callable[[Params, Any], str] | None,
) -> str:
    """What happened, from the steps since the last report run once more."""
    at, where = done, ""
    if kept is not None and diagnose is not None:
        for number in range(int(kept.step), done):
            before, batch = _copy(kept), batch_of(number)
            kept, metrics = step(kept, batch)
            if not _finite({name: float(value) for name, value in metrics.items()}):
                at, where = number + 1, f" ({diagnose(before.params, batch)})"
                break
    return (
        f"the loss is {figures['loss']} and the gradient's norm {figures['gradient_norm']} at step "
        f"{at}{where}: lower the learning rate, or clip the gradient"
    )
