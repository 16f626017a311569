"""Fine-tuning a pre-trained encoder on a task: all of it or LoRA, in the clear or as encrypted.

As encrypted means: polynomials at every site, the loss's softmax and the optimizer's root
polynomial too, and every step and every answer under simulated CKKS noise
(`models.encrypted.update`). A training that finds its own checkpoint goes on from it and ends with
the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hesim.errors import ParameterError
from models.checks import check_numbers
from models.config import EncoderConfig, Pairs, Pooling
from models.data import metrics
from models.data.batches import Batch
from models.data.buckets import check_buckets, lengths_of, plan_epoch, trim
from models.data.tasks import TaskData
from models.encrypted.settings import AsEncrypted
from models.encrypted.twin import merged, twin_of
from models.encrypted.update import (
    PolynomialSoftmax,
    lora_update,
    root_values,
    simulated_update,
    training_domains,
    training_sites,
)
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter_or_head, partition
from models.nn.lora import Path as Place
from models.objectives.losses import cross_entropy, mean_squared_error, share_outside
from models.sites.sites import TRAINING_SITES, Range, Sites, met_ranges, site_names, targets_of
from models.train.checkpoint import CheckpointError, Checkpoints, digest_of
from models.train.classifier import Regularisation, exact_forward, make_step
from models.train.compiling import announced, beside
from models.train.diagnose import ended_wrong, gone_wrong, not_finite, origin
from models.train.evaluate import Evaluated, make_evaluate
from models.train.loop import Progress, TrainingError, next_multiple, range_figures, run_rounds
from models.train.optim import scale_by_adam_he
from models.train.schedules import ramp, scale_by_progress
from models.train.sharding import (
    agreed,
    check_config,
    check_hosts,
    check_rows,
    place_batch,
    place_frozen,
    place_state,
)
from models.train.step import (
    SpreadState,
    Step,
    StepOptions,
    TrainState,
    initial_state,
    rematerialised,
)

__all__ = [
    "AsEncrypted",
    "FineTune",
    "FineTuned",
    "finetune",
    "learning_rates",
]


_ROOT = "optimizer.inv_sqrt"
_MOST_EPOCHS = 100_000


@dataclasses.dataclass(frozen=True)
class FineTune:
    """One fine-tuning.

    method: "full" trains every parameter with AdamW; "lora" trains adapters of `rank` on the
    projections `adapted`, pooler and head with AdamW-HE, whose `epsilon` stands inside the root and
    whose `multiplier` brings (v + epsilon) into the polynomial root's domain [0.0005, 1] (None:
    0.0005 / epsilon, which admits the largest gradients). The learning rate rises over `warmup`, a
    share of all steps, and falls by half a cosine to 0. Sequences are cut to the `buckets`
    (tokens). pairs: how sentence pairs are read, as in the configuration; the data must be of the
    same form. pooling: "token" or "mean", as in the configuration, or "model", what the model to
    start from has. encrypted: None in the clear with the exact functions.

    penalty: weight of the range penalty on the canonical `ranges`, each of a site or, under the
    name of a function, of all its sites, from the share `inner` of a half-width on; in the clear
    alone, since under encryption nobody sees a value leave. It rises in a line over the first half
    of the last share `penalty_last` of all steps, before which there is none; 1: all along.

    accumulate, precision: as in `step.StepOptions`; remat: compute what a layer kept a second time
    instead (`step.rematerialised`); all three in the clear alone. save_seconds: time between
    checkpoints within an epoch.
    """

    method: Literal["full", "lora"] = "lora"
    epochs: int = 5
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    epsilon: float = 6e-4
    multiplier: float | None = None
    dropout: float = 0.0
    rank: int = 2
    alpha: float = 1.0
    adapted: tuple[str, ...] = ("query", "key", "value")
    buckets: tuple[int, ...] = (32, 64, 128)
    pairs: Pairs = "joint"
    pooling: Pooling | Literal["model"] = "model"
    seed: int = 0
    penalty: float = 0.0
    penalty_last: float = 1.0
    ranges: tuple[tuple[str, Range], ...] = ()
    inner: float = 0.9
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    save_seconds: float = 180.0
    encrypted: AsEncrypted | None = None

    def __post_init__(self) -> None:
        for name in ("adapted", "buckets"):  # lists too, but settings have a hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.method not in ("full", "lora"):
            raise ValueError(f"method is 'full' or 'lora', not {self.method!r}")
        if self.encrypted is not None and self.method != "lora":
            raise ValueError(
                "under encryption only adapters and head are trained: use method='lora'"
            )
        if self.encrypted is not None and self.dropout:
            raise ValueError("there is no dropout in an encrypted step: set dropout to 0")
        if self.encrypted is not None and self.penalty:
            raise ValueError("there is no range penalty in an encrypted step: set penalty to 0")
        options = self.options  # knows what a step can do
        if self.encrypted is not None and (options != StepOptions(donate=True) or self.remat):
            raise ValueError(
                "an encrypted step is one whole of float32 numbers: accumulate=1, precision="
                "'float32', and no remat"
            )
        if self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch} is no multiple of accumulate={self.accumulate}")
        if self.penalty and not self.ranges:
            raise ValueError("the range penalty needs the ranges of sites")
        if self.method == "lora" and self.rank < 1:
            raise ValueError(f"LoRA's rank is at least 1, got {self.rank}")
        if self.method == "lora" and not self.adapted:
            raise ValueError("LoRA needs at least one projection in adapted")
        own = "token" if self.pooling == "model" else self.pooling
        EncoderConfig(lora_targets=self.adapted, pairs=self.pairs, pooling=own)  # knows the names
        if not 1 <= self.epochs <= _MOST_EPOCHS or self.batch < 1:
            raise ValueError(
                f"epochs={self.epochs} must be between 1 and {_MOST_EPOCHS:,}, batch={self.batch} "
                "at least 1"
            )
        if self.multiplier is not None:
            check_numbers(self, positive=("multiplier",))
        check_numbers(
            self,
            positive=("learning_rate", "epsilon", "alpha"),
            at_least_0=("weight_decay", "penalty", "save_seconds"),
            shares=("warmup", "penalty_last"),
            below_1=("dropout", "inner"),
            seeds=("seed",),
        )
        check_buckets(self.buckets)

    @property
    def options(self) -> StepOptions:
        """How a step computes; the state handed to it is overwritten."""
        return StepOptions(self.accumulate, self.precision, donate=True)

    def adapt(self, config: EncoderConfig) -> EncoderConfig:
        """The configuration that is trained, of a pre-trained one. ValueError where a setting does
        not fit it.
        """
        return config.replace(
            lora_rank=self.rank if self.method == "lora" else 0,
            lora_alpha=self.alpha,
            lora_targets=self.adapted,
            pairs=self.pairs,
            pooling=config.pooling if self.pooling == "model" else self.pooling,
        )


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model.

    trainable: numbers that training changed; history: one entry an epoch, with validation scores
    and the ranges met there; finished: False where it was stopped, its checkpoint then holds where;
    training: the approximations of an encrypted step beside the model's own.
    """

    model: Model
    params: Params
    trainable: int
    history: list[dict[str, Any]]
    finished: bool = True
    training: Sites = Sites()


class _Dose(NamedTuple):
    """A `Batch`, its step's learning rate, which the optimizer gets as `progress`, and a factor of
    the range penalty's weight.
    """

    tokens: Any
    mask: Any
    targets: Any
    types: Any
    progress: Any
    penalty: Any


def finetune(
    config: EncoderConfig,
    start: Params,
    data: TaskData,
    settings: FineTune,
    *,
    report: Callable[[Progress], None] | None = None,
    waiting: Callable[[str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    checkpoints: str | Path | None = None,
    mesh: Mesh | None = None,
) -> FineTuned:
    """Fine-tune `start`, the parameters of an encoder of this configuration, on a task.

    Pooler, head and adapters are fresh, drawn from the seed. report is called four times an epoch,
    the last time with the validation scores and the ranges met there. waiting is called with a
    phrase while the step is compiled, when `stop` is asked, too, and then with "". checkpoints: a
    folder; written after each epoch, every `save_seconds` within one, and where `stop`, asked
    before each step, says so. mesh: devices, of several hosts where they are joined, over which
    batches and model are spread (`sharding.make_mesh`); a training may go on with another, to the
    same numbers up to rounding.

    Raises:
      TrainingError: the loss or the gradient stops being finite; it names the site.
      CheckpointError: a folder that holds another training, or a start of another shape.
      Abandoned: with `waiting`, `stop` said so before the first step was made.
      ParameterError: a rank above the model's number of features; softmax attention as encrypted;
        rows of another form than `settings.pairs`; a range of a site that the model has not; a mesh
        that does not divide the rows of a step, the heads or the features.
    """
    if settings.encrypted is not None and config.attention == "softmax":
        raise ParameterError(
            "softmax attention takes a maximum, which encryption cannot: start from a model with "
            "Gaussian attention"
        )
    if (np.ndim(data.train.tokens) == 3) != (settings.pairs == "apart"):
        raise ParameterError(
            f"the tokens of {data.name} have the shape {np.shape(data.train.tokens)}, which pairs="
            f"{settings.pairs!r} does not read: prepare the task with the same pairs"
        )
    try:
        adapted = settings.adapt(config).replace(classes=data.classes)
    except ValueError as error:
        raise ParameterError(str(error)) from error
    if mesh is not None:
        check_config(adapted, mesh)
        check_rows(settings.batch // settings.accumulate, mesh)
        check_hosts(jax.process_count(), seconds=0.0, save_seconds=settings.save_seconds)
    several = mesh is not None and jax.process_count() > 1
    settings = dataclasses.replace(settings, ranges=targets_of(adapted, settings.ranges))
    key = jax.random.key(settings.seed)
    model = Model(adapted)
    params = overlay(model.init(key), start)
    if settings.encrypted is not None:
        how, exact = settings.encrypted, model
        fitted = lambda: twin_of(exact, params, data.train, settings.buckets, how)
        model = beside(fitted, stop, waiting, "fitting polynomials to what the model meets ...")
    chosen = is_adapter_or_head if settings.method == "lora" else _anything
    trained, frozen = partition(params, chosen)
    per_epoch = -(-len(data.train.tokens) // settings.batch)
    steps = per_epoch * settings.epochs
    optimizer, compiled = _step(model, _of_a_step(settings))
    # The step overwrites its state, and what the caller gave may be part of it.
    state = initial_state(jax.tree.map(jnp.copy, trained), optimizer, key)
    batch_of = _doses(data.train, settings, per_epoch, mesh)
    watched = settings.encrypted is not None
    names = (*site_names(adapted), *TRAINING_SITES)
    phase = "as encrypted" if watched else "exact"
    history: list[dict[str, Any]] = []
    notes = {
        "config": adapted,
        "settings": settings,
        "data": f"{data.name} {digest_of((data.train, data.validation))}",
        "start": digest_of(start),
    }

    def diagnose(trained: Params, batch: Any) -> str:
        return origin(model, combine(trained, frozen), batch)

    def tell(at: int, figures: Mapping[str, float]) -> None:
        if report is not None:
            report(Progress(at, at / steps, dict(figures), phase=phase, steps=steps))

    with contextlib.ExitStack() as stack:
        store = None
        if checkpoints is not None:
            store = stack.enter_context(Checkpoints(checkpoints))
            state, found = store.resume(state, notes, "fine-tuning")
            history = list(found.get("history", ()))
        fixed = frozen
        if mesh is not None:
            state = place_state(state, mesh)
            # Noise is drawn for values of the shapes that one device has.
            fixed = place_frozen(frozen, mesh, halves=not watched)
            if not several:  # of several hosts each evaluates by itself
                frozen = place_state(frozen, mesh)
        step = _watched(compiled, fixed, names) if watched else _closed(compiled, fixed)
        step = announced(step, stop, waiting)
        saved = time.monotonic()

        def save(state: TrainState) -> None:
            nonlocal saved
            if store is not None:
                store.save(int(state.step), state, notes | {"history": history})
            saved = time.monotonic()

        def save_in_time(state: TrainState) -> None:
            if time.monotonic() - saved >= settings.save_seconds:
                save(state)

        def goal_of(number: int) -> int | None:
            return next_multiple(number, per_epoch) if number < steps else None

        def at_goal(state: TrainState, figures: dict[str, float]) -> None:
            _check_finite(state, figures)
            scores = _evaluate(model, combine(state.params, frozen), data.validation, settings)
            figures |= metrics.score(scores.answers, data.validation.targets)
            figures |= range_figures(scores.ranges)
            done = int(state.step)
            history.append({"step": done, "phase": phase, **figures})
            tell(done, figures)
            save(state)

        state = run_rounds(
            step,
            state,
            batch_of,
            goal_of=goal_of,
            at_goal=at_goal,
            between=tell,
            report_every=max(1, per_epoch // 4),
            stop=agreed(stop),
            save=None if store is None else save_in_time,
            save_every=1,
            diagnose=None if watched or several else diagnose,
        )
        if int(state.step) < steps:
            _check_finite(state, {})
            save(state)
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(state.params))
    finished = int(state.step) == steps
    training = Sites()
    if settings.encrypted is not None:
        training = training_sites(data.classes, settings.encrypted.fit)
    return FineTuned(model, combine(state.params, frozen), count, history, finished, training)


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


def _evaluate(model: Model, params: Params, data: Batch, settings: FineTune) -> Evaluated:
    """Exact models without their adapters, so that one compilation serves both methods."""
    if settings.encrypted is None:
        model, params = merged(model, params)
    return make_evaluate(model, buckets=settings.buckets, how=settings.encrypted)(params, data)


def _closed(step: Step, frozen: Params) -> Step:
    return lambda state, batch: step(state, batch, frozen)


def _watched(step: Step, frozen: Params, sites: Sequence[str]) -> Step:
    """The encrypted step, which stops at the first loss that is not finite and says which sites
    were left. It reports the largest share outside as `outside`, that of each site that was left as
    `outside/SITE`, and what the training's own sites met as `range/SITE/low` and `high`. sites: as
    a forward pass meets them.
    """
    before: dict[str, float] = {}

    def watched(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        state, found = step(state, batch, frozen)
        met: dict[str, Any] = dict(found)
        outside = {name: float(share) for name, share in met["outside"].items()}
        if not np.isfinite(float(met["loss"])):
            raise TrainingError(gone_wrong(int(state.step), before, outside, sites))
        before.update(outside)
        figures = {"loss": met["loss"], "outside": max(outside.values())}
        figures |= {f"outside/{name}": share for name, share in outside.items() if share > 0}
        return state, figures | range_figures(met["ranges"])

    return watched


def overlay(fresh: Params, start: Params) -> Params:
    """`fresh` with the embedding, the blocks and the final LayerNorm of `start`.

    Raises CheckpointError where `start` holds another shape, or something that has no place.
    """

    def walk(into: Params, source: Params, path: str) -> Params:
        out = dict(into)
        for name, child in source.items():
            here = f"{path}{name}"
            if name not in into:
                raise CheckpointError(f"the model has no place for {here}: is it of this preset?")
            if isinstance(child, dict):
                out[name] = walk(into[name], child, here + ".")
            elif child.shape != into[name].shape:
                raise CheckpointError(
                    f"{here} has the shape {child.shape}, the model wants {into[name].shape}"
                )
            else:
                out[name] = jnp.asarray(child, into[name].dtype)
        return out

    names = ("embedding", "blocks", "final_norm")
    parts = [name for name in names if name in fresh or name in start]
    missing = [name for name in parts if name not in start]
    if missing:
        raise CheckpointError(f"no encoder of this kind: {' and '.join(missing)} is missing")
    return walk(fresh, {name: start[name] for name in parts}, "")


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
        epsilon, multiplier = _scaled(settings, settings.encrypted)
        adam = scale_by_adam_he(eps=epsilon, inv_sqrt=root, prescale=multiplier)
    return optax.chain(
        adam,
        optax.add_decayed_weights(settings.weight_decay),
        scale_by_progress(1.0, lambda rate: rate),
    )


def _of_a_step(settings: FineTune) -> FineTune:
    """What a compiled step depends on, everything else at its default: one for all seeds, rates and
    lengths of training, and for all tasks of equally many classes.
    """
    names = (
        *("epochs", "learning_rate", "warmup", "buckets", "seed"),
        *("penalty_last", "save_seconds"),
    )
    fields = {field.name: field.default for field in dataclasses.fields(FineTune)}
    return dataclasses.replace(settings, **{name: fields[name] for name in names})


def _scaled(settings: FineTune, how: AsEncrypted) -> tuple[float, float]:
    """Epsilon and multiplier of the root for gradients that are `loss_scale` times as large."""
    low, _ = training_sites(1, how.fit).ranges()[_ROOT]
    multiplier = low / settings.epsilon if settings.multiplier is None else settings.multiplier
    return settings.epsilon * how.loss_scale**2, multiplier / how.loss_scale**2


def _check_finite(state: TrainState, figures: Mapping[str, float]) -> None:
    """Raises TrainingError where a step of finite loss left a parameter that is not finite."""
    if (bad := not_finite(state.params)) is not None:
        outside = figures.get("outside", 0.0)
        raise TrainingError(ended_wrong(int(state.step), bad, outside))


def _anything(path: Place) -> bool:
    return bool(path)


def _doses(
    data: Batch, settings: FineTune, per_epoch: int, mesh: Mesh | None
) -> Callable[[int], _Dose]:
    lengths = lengths_of(data)
    steps = per_epoch * settings.epochs
    rates, penalties = learning_rates(settings, steps), penalty_factors(settings, steps)

    @functools.lru_cache(maxsize=1)
    def plans(epoch: int):
        return plan_epoch(lengths, settings.batch, settings.buckets, settings.seed, epoch)

    def batch_of(number: int) -> _Dose:
        epoch, place = divmod(number, per_epoch)
        dose = _Dose(*trim(data, plans(epoch)[place]), rates[number], penalties[number])
        return dose if mesh is None else place_batch(dose, mesh)

    return batch_of


@functools.lru_cache(maxsize=64)
def _step(model: Model, settings: FineTune) -> tuple[optax.GradientTransformation, Step]:
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
    epsilon, multiplier = _scaled(settings, how)
    unit = model.units() | dict.fromkeys(TRAINING_SITES, 1.0)
    domains = model.sites.ranges() | training_domains(sites)

    def step(state: Any, batch: _Dose, frozen: Params) -> tuple[Any, dict[str, Any]]:
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
