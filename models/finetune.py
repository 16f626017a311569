"""Fine-tuning a pre-trained encoder on a task: all of it or LoRA, in the clear or as encrypted.

As encrypted means: polynomials at every site, the loss's softmax and the optimizer's root
polynomial too, and every step and every answer under simulated CKKS noise
(`models.encrypted_step`). A training that finds its own checkpoint goes on from it and ends with
the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hesim.errors import ParameterError
from models import metrics
from models.as_encrypted import (
    AsEncrypted,
    Evaluated,
    make_evaluate_task,
    merged,
    twin_of,
)
from models.buckets import check_buckets, cut, lengths_of, plan_epoch
from models.checkpoint import CheckpointError, Checkpoints, digest_of
from models.config import EncoderConfig, Pairs, Pooling
from models.diagnose import origin
from models.encoder import Model
from models.encrypted_step import (
    ROOT_DOMAIN,
    PolynomialSoftmax,
    inverse_root,
    lora_update,
    root_outside,
    simulated_update,
)
from models.limits import check_numbers
from models.lora import Params, combine, is_adapter_or_head, partition
from models.lora import Path as Place
from models.losses import cross_entropy, mean_squared_error, share_outside
from models.optim import scale_by_adam_he
from models.recipe import Progress
from models.schedules import scale_by_progress
from models.sharding import check_config, check_rows, place_batch, place_state
from models.sites import TRAINING_SITES, site_names
from models.step import Step, TrainState, initial_state
from models.tasks import TaskData
from models.train import Batch, Regularisation, TrainingError, make_step, run_steps

__all__ = [
    "AsEncrypted",
    "Evaluated",
    "FineTune",
    "FineTuned",
    "finetune",
    "learning_rates",
    "make_evaluate_task",
]


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

    penalty: weight of the range penalty on the canonical `ranges` of sites, from the share `inner`
    of a half-width on; in the clear alone, since under encryption nobody sees a value leave.
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
    ranges: tuple[tuple[str, tuple[float, float]], ...] = ()
    inner: float = 0.9
    encrypted: AsEncrypted | None = None

    def __post_init__(self) -> None:
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
        if self.penalty and not self.ranges:
            raise ValueError("the range penalty needs the ranges of sites")
        if self.method == "lora" and self.rank < 1:
            raise ValueError(f"LoRA's rank is at least 1, got {self.rank}")
        if self.method == "lora" and not self.adapted:
            raise ValueError("LoRA needs at least one projection in adapted")
        own = "token" if self.pooling == "model" else self.pooling
        EncoderConfig(lora_targets=self.adapted, pairs=self.pairs, pooling=own)  # knows the names
        if self.epochs < 1 or self.batch < 1:
            raise ValueError("epochs and batch must be at least 1")
        if self.multiplier is not None:
            check_numbers(self, positive=("multiplier",))
        check_numbers(
            self,
            positive=("learning_rate", "epsilon", "alpha"),
            at_least_0=("weight_decay", "penalty"),
            shares=("warmup",),
            below_1=("dropout", "inner"),
            seeds=("seed",),
        )
        check_buckets(self.buckets)

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
    """A fine-tuned model. trainable: numbers that training changed; history: one entry an epoch;
    finished: False where it was stopped, its checkpoint then holds where.
    """

    model: Model
    params: Params
    trainable: int
    history: list[dict[str, Any]]
    finished: bool = True


class _Dose(NamedTuple):
    """A `Batch` with its step's learning rate, which the optimizer gets as `progress`."""

    tokens: Any
    mask: Any
    targets: Any
    types: Any
    progress: Any


def finetune(
    config: EncoderConfig,
    start: Params,
    data: TaskData,
    settings: FineTune,
    *,
    report: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    checkpoints: str | Path | None = None,
    mesh: Mesh | None = None,
) -> FineTuned:
    """Fine-tune `start`, the parameters of an encoder of this configuration, on a task.

    Pooler, head and adapters are fresh, drawn from the seed. report is called four times an epoch,
    the last time with the validation scores. checkpoints: a folder; written after each epoch, and
    where `stop`, asked before each step, says so. mesh: devices of this host over which batches and
    model are spread (`sharding.make_mesh`); a training may go on with another, to the same numbers
    up to rounding.

    Raises:
      TrainingError: the loss or the gradient stops being finite; it names the site.
      CheckpointError: a folder that holds another training, or a start of another shape.
      ParameterError: a rank above the model's number of features; softmax attention as encrypted;
        rows of another form than `settings.pairs`; a mesh that does not divide the rows of a step,
        the heads or the features.
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
        check_rows(settings.batch, mesh)
    key = jax.random.key(settings.seed)
    model = Model(adapted)
    params = overlay(model.init(key), start)
    if settings.encrypted is not None:
        model = twin_of(model, params, data.train, settings.buckets, settings.encrypted)
    chosen = is_adapter_or_head if settings.method == "lora" else _anything
    trained, frozen = partition(params, chosen)
    per_epoch = -(-len(data.train.tokens) // settings.batch)
    steps = per_epoch * settings.epochs
    optimizer, compiled = _step(model, _of_a_step(settings))
    state = initial_state(trained, optimizer, key)
    batch_of = _doses(data.train, settings, per_epoch, mesh)
    watched = settings.encrypted is not None
    names = (*site_names(adapted), *TRAINING_SITES)
    phase = "as encrypted" if watched else "exact"
    history: list[dict[str, Any]] = []
    notes = {
        "config": adapted.to_json(),
        "settings": json.dumps(dataclasses.asdict(settings), default=repr, sort_keys=True),
        "data": f"{data.name} {digest_of((data.train, data.validation))}",
        "start": digest_of(start),
    }

    def diagnose(trained: Params, batch: Any) -> str:
        return origin(model, combine(trained, frozen), batch)

    def tell(at: int, figures: Mapping[str, float]) -> None:
        if report is not None:
            report(Progress(at, steps, phase, dict(figures)))

    with contextlib.ExitStack() as stack:
        store = None
        if checkpoints is not None:
            store = stack.enter_context(Checkpoints(checkpoints))
            state, found = store.resume(state, notes, "fine-tuning")
            history = list(found.get("history", ()))
        if mesh is not None:
            state, frozen = place_state(state, mesh), place_state(frozen, mesh)
        step = _watched(compiled, frozen, names) if watched else _closed(compiled, frozen)
        while int(state.step) < steps:
            goal = (int(state.step) // per_epoch + 1) * per_epoch
            figures: dict[str, float] = {}

            def seen(
                at: int, met: dict[str, float], last: int = goal, into: dict[str, float] = figures
            ) -> None:
                into.update(met)
                if at < last:
                    tell(at, met)

            state = run_steps(
                step,
                state,
                batch_of,
                until=goal,
                stop=stop,
                report=seen,
                report_every=max(1, per_epoch // 4),
                diagnose=None if watched else diagnose,
            )
            done = int(state.step)
            if (bad := _not_finite(state.params)) is not None:
                raise TrainingError(_ended_wrong(done, bad, figures.get("outside", 0.0)))
            if done == goal:
                scores = _evaluate(model, combine(state.params, frozen), data.validation, settings)
                figures |= metrics.score(scores.answers, data.validation.targets)
                history.append({"step": goal, "phase": phase, **figures})
                tell(goal, figures)
            if store is not None:
                store.save(done, state, notes | {"history": history})
            if done < goal:
                break
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(state.params))
    finished = int(state.step) == steps
    return FineTuned(model, combine(state.params, frozen), count, history, finished)


def learning_rates(settings: FineTune, steps: int) -> np.ndarray:
    """The rate of each step, float32 (steps,): up from 0 in a line over the warm-up, then down by
    half a cosine.
    """
    rise = max(1, round(settings.warmup * steps))
    number = np.arange(steps)
    fall = 0.5 * (1 + np.cos(np.pi * np.maximum(number - rise, 0) / (steps + 1 - rise)))
    factor = np.where(number < rise, number / rise, fall)
    return (settings.learning_rate * factor).astype(np.float32)


def _evaluate(model: Model, params: Params, data: Batch, settings: FineTune) -> Evaluated:
    """Exact models without their adapters, so that one compilation serves both methods."""
    if settings.encrypted is None:
        model, params = merged(model, params)
    return make_evaluate_task(model, settings.buckets, settings.encrypted)(params, data)


def _closed(step: Step, frozen: Params) -> Step:
    return lambda state, batch: step(state, batch, frozen)


def _watched(step: Step, frozen: Params, sites: Sequence[str]) -> Step:
    """The encrypted step, which stops at the first loss that is not finite and says which sites
    were left; of the shares outside it reports the largest. sites: as a forward pass meets them.
    """
    before: dict[str, float] = {}

    def watched(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        state, met = step(state, batch, frozen)
        figures: dict[str, Any] = dict(met)
        outside = {name: float(share) for name, share in figures["outside"].items()}
        if not np.isfinite(float(figures["loss"])):
            raise TrainingError(_gone_wrong(int(state.step), before, outside, sites))
        before.update(outside)
        return state, figures | {"outside": max(outside.values())}

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
        epsilon, multiplier = _scaled(settings, settings.encrypted.loss_scale)
        adam = scale_by_adam_he(eps=epsilon, inv_sqrt=inverse_root(), prescale=multiplier)
    return optax.chain(
        adam,
        optax.add_decayed_weights(settings.weight_decay),
        scale_by_progress(1.0, lambda rate: rate),
    )


def _of_a_step(settings: FineTune) -> FineTune:
    """What a compiled step depends on, everything else at its default: one for all seeds, rates and
    lengths of training, and for all tasks of equally many classes.
    """
    names = ("epochs", "learning_rate", "warmup", "buckets", "seed")
    fields = {field.name: field.default for field in dataclasses.fields(FineTune)}
    return dataclasses.replace(settings, **{name: fields[name] for name in names})


def _scaled(settings: FineTune, scale: float) -> tuple[float, float]:
    """Epsilon and multiplier of the root for gradients that are `scale` times as large."""
    own = settings.multiplier
    multiplier = ROOT_DOMAIN[0] / settings.epsilon if own is None else own
    return settings.epsilon * scale**2, multiplier / scale**2


def _gone_wrong(
    step: int, before: Mapping[str, float], now: Mapping[str, float], sites: Sequence[str]
) -> str:
    """What to say of a loss that is not finite, given the shares outside in the step before and in
    this one, where the first site that was left took the others along.
    """
    met = sorted((-share, name) for name, share in before.items() if share > 0)
    first = next((name for name in sites if now.get(name, 0.0) > 0), None)
    said = []
    if met:
        names = ", ".join(f"{name} ({-share:.2%} of its values)" for share, name in met[:4])
        said.append(f"in the step before, these left their polynomial's domain: {names}")
    if first is not None:
        said.append(f"in this step {first} was the first to leave it ({now[first]:.2%})")
    if not said:
        return f"the loss is not finite at step {step}: lower the learning rate"
    return (
        f"the loss is not finite at step {step}; {'; '.join(said)}. Widen the domain (for "
        "optimizer.inv_sqrt: a larger epsilon), or lower the learning rate"
    )


def _not_finite(params: Params) -> str | None:
    """The first parameter with a NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.isfinite(leaf).all():
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None


def _ended_wrong(step: int, name: str, outside: float) -> str:
    """What to say of a parameter that a step, whose own loss was finite, left without value.
    outside: the largest share of values out of a domain.
    """
    left = f"; {outside:.2%} of a site's values had left their domain" if outside else ""
    return (
        f"step {step} left the parameter {name} not finite{left}: lower the learning rate, or "
        "widen the domains (for optimizer.inv_sqrt: a larger epsilon)"
    )


def _anything(path: Place) -> bool:
    return bool(path)


def _doses(
    data: Batch, settings: FineTune, per_epoch: int, mesh: Mesh | None
) -> Callable[[int], _Dose]:
    lengths = lengths_of(data)
    rates = learning_rates(settings, per_epoch * settings.epochs)

    @functools.lru_cache(maxsize=1)
    def plans(epoch: int):
        return plan_epoch(lengths, settings.batch, settings.buckets, settings.seed, epoch)

    def batch_of(number: int) -> _Dose:
        epoch, place = divmod(number, per_epoch)
        dose = _Dose(*cut(data, plans(epoch)[place]), rates[number])
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
        return optimizer, make_step(model, optimizer, inputs)
    regression, classes = model.config.regression, model.config.classes
    softmax = None if regression else PolynomialSoftmax.fit(classes, how.softmax_bound)
    update = lora_update(model, optimizer, softmax, how.loss_scale)
    epsilon, multiplier = _scaled(settings, how.loss_scale)
    unit, domains = model.units(), model.sites.ranges()

    def step(state: TrainState, batch: _Dose, frozen: Params) -> tuple[TrainState, dict[str, Any]]:
        noisy = simulated_update(update, state.optimizer, how.ckks, how.profile)
        key = jax.random.fold_in(state.key, state.step)
        x = model.embed(combine(state.params, frozen), batch.tokens, batch.types)
        targets = batch.targets[:, None] if regression else jax.nn.one_hot(batch.targets, classes)
        trained, opt, (logits, values) = noisy(
            key, state.params, state.optimizer, frozen, x, batch.mask, targets, batch.progress
        )
        outside = share_outside(values, unit, domains)
        if softmax is not None:
            outside["loss.exp"] = softmax.share_outside(logits)
        outside["optimizer.inv_sqrt"] = root_outside(opt, epsilon, multiplier)
        task = mean_squared_error if regression else cross_entropy
        figures = {"loss": task(logits, batch.targets), "outside": outside}
        return TrainState(state.step + 1, trained, opt, state.key), figures

    return optimizer, jax.jit(step)
