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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import approx
import hesim
from hesim.params import CKKSParams
from models import metrics
from models.buckets import cut, lengths_of, plan_epoch, whole
from models.checkpoint import CheckpointError, Checkpoints
from models.config import EncoderConfig
from models.encoder import Model
from models.encrypted_step import (
    ROOT_DOMAIN,
    PolynomialSoftmax,
    inverse_root,
    lora_update,
    root_outside,
    simulated_update,
)
from models.lora import Params, combine, is_adapter_or_head, partition
from models.lora import Path as Place
from models.losses import cross_entropy, mean_squared_error, share_outside
from models.optim import adamw_he
from models.recipe import Progress
from models.sites import (
    FitSettings,
    Range,
    Sites,
    fit_ranges,
    function_of,
    join_ranges,
    met_ranges,
)
from models.step import Step, TrainState, initial_state
from models.tasks import TaskData
from models.train import (
    Batch,
    Forward,
    Regularisation,
    TrainingError,
    exact_forward,
    make_step,
    run_steps,
    take,
)

__all__ = ["AsEncrypted", "Evaluated", "FineTune", "FineTuned", "finetune", "make_evaluate_task"]


@dataclasses.dataclass(frozen=True)
class AsEncrypted:
    """The ring that is simulated, and the polynomials of the twin.

    fit: degrees, and how far beyond the ranges met by the pre-trained model they must hold, since
    under encryption nothing can be clipped or penalised. domains: fixed ones by function, for what
    the pre-trained model says nothing about. softmax_bound: logits, less their mean, that the
    loss's exponential covers. range_rows: training rows on which the ranges are measured.
    """

    ckks: CKKSParams = CKKSParams(
        log_n=16, levels=12, scale_bits=42, first_bits=50, special_bits=60
    )
    profile: str = "seal"
    fit: FitSettings = FitSettings(
        degrees=(("exp", 15), ("gelu", 15), ("inv_sqrt", 15), ("relu", 15), ("tanh", 31)),
        margin=1.0,
    )
    domains: tuple[tuple[str, Range], ...] = (("tanh", (-5.0, 5.0)),)
    softmax_bound: float = 4.0
    range_rows: int = 1024


@dataclasses.dataclass(frozen=True)
class FineTune:
    """One fine-tuning.

    method: "full" trains every parameter with AdamW; "lora" trains adapters, pooler and head with
    AdamW-HE, whose `epsilon` stands inside the root and whose `multiplier` brings (v + epsilon)
    into the polynomial root's domain [0.0005, 1] (None: 0.0005 / epsilon, which admits the largest
    gradients). The learning rate falls by half a cosine to 0
    after a linear `warmup`, a share of all steps. Sequences are cut to the `buckets` (tokens).
    encrypted: None in the clear with the exact functions.

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
    buckets: tuple[int, ...] = (32, 64, 128)
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
        if self.epochs < 1 or self.batch < 1:
            raise ValueError("epochs and batch must be at least 1")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Logits (n, classes), and per site the canonical range met and the share of values outside
    the polynomial's domain (empty for an exact model).
    """

    logits: np.ndarray
    ranges: dict[str, Range]
    outside: dict[str, float]


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model. trainable: numbers that training changed; history: one entry an epoch."""

    model: Model
    params: Params
    trainable: int
    history: list[dict[str, Any]]


def finetune(
    config: EncoderConfig,
    start: Params,
    data: TaskData,
    settings: FineTune,
    *,
    report: Callable[[Progress], None] | None = None,
    checkpoints: str | Path | None = None,
) -> FineTuned:
    """Fine-tune `start`, the parameters of an encoder of this configuration, on a task.

    Pooler, head and adapters are fresh, drawn from the seed. checkpoints: a folder; written after
    each epoch. TrainingError where the loss stops being finite; CheckpointError for a folder that
    holds another training.
    """
    adapted = config.replace(
        classes=data.classes,
        lora_rank=settings.rank if settings.method == "lora" else 0,
        lora_alpha=settings.alpha,
    )
    key = jax.random.key(settings.seed)
    model = Model(adapted)
    params = overlay(model.init(key), start)
    if settings.encrypted is not None:
        model = _twin(model, params, data, settings, settings.encrypted)
    chosen = is_adapter_or_head if settings.method == "lora" else _anything
    trained, frozen = partition(params, chosen)
    per_epoch = -(-len(data.train.tokens) // settings.batch)
    steps = per_epoch * settings.epochs
    seedless = dataclasses.replace(settings, seed=0)  # one compilation for all seeds
    optimizer, compiled = _step(model, seedless, steps)
    evaluate = make_evaluate_task(model, seedless)
    state = initial_state(trained, optimizer, key)
    batch_of = _batches(data.train, settings, per_epoch)

    step = _watched(compiled, frozen) if settings.encrypted else _closed(compiled, frozen)
    history: list[dict[str, Any]] = []
    notes = {"config": adapted.to_json(), "settings": repr(settings), "data": data.name}
    with contextlib.ExitStack() as stack:
        store = None
        if checkpoints is not None:
            store = stack.enter_context(Checkpoints(checkpoints))
            state, found = store.resume(state, notes, "fine-tuning")
            history = list(found.get("history", ()))
        while int(state.step) < steps:
            goal = (int(state.step) // per_epoch + 1) * per_epoch
            figures: dict[str, float] = {}
            state = run_steps(
                step,
                state,
                batch_of,
                until=goal,
                report=lambda _, met, into=figures: into.update(met),
                report_every=max(1, per_epoch // 4),
            )
            scores = evaluate(combine(state.params, frozen), data.validation)
            figures |= metrics.score(scores.logits, data.validation.targets)
            phase = "exact" if settings.encrypted is None else "as encrypted"
            history.append({"step": goal, "phase": phase, **figures})
            if report is not None:
                report(Progress(goal, steps, phase, figures))
            if store is not None:
                store.save(goal, state, notes | {"history": history})
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(state.params))
    return FineTuned(model, combine(state.params, frozen), count, history)


def _closed(step: Step, frozen: Params) -> Step:
    return lambda state, batch: step(state, batch, frozen)


def _watched(step: Step, frozen: Params) -> Step:
    """The encrypted step, which stops at the first loss that is not finite and says which sites
    were left in the step before; of the shares outside it reports the largest.
    """
    last: dict[str, float] = {}

    def watched(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        state, met = step(state, batch, frozen)
        figures: dict[str, Any] = dict(met)
        outside = {name: float(share) for name, share in figures["outside"].items()}
        if not np.isfinite(float(figures["loss"])):
            raise TrainingError(_gone_wrong(int(state.step), last))
        last.update(outside)
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

    body = {n: c for n, c in start.items() if n in ("embedding", "blocks", "final_norm")}
    if len(body) != 3:
        raise CheckpointError("no encoder: embedding, blocks and final_norm are wanted")
    return walk(fresh, body, "")


def make_optimizer(settings: FineTune, steps: int) -> optax.GradientTransformation:
    """AdamW, or AdamW-HE for LoRA, with a polynomial root where the step is as encrypted."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, max(1, round(settings.warmup * steps)), steps + 1
    )
    if settings.method == "full":
        return optax.adamw(schedule, weight_decay=settings.weight_decay)
    return adamw_he(
        schedule,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        inv_sqrt=None if settings.encrypted is None else inverse_root(),
        prescale=1.0 if settings.encrypted is None else _multiplier(settings),
    )


def _multiplier(settings: FineTune) -> float:
    return ROOT_DOMAIN[0] / settings.epsilon if settings.multiplier is None else settings.multiplier


def _gone_wrong(step: int, outside: Mapping[str, float]) -> str:
    """What to say of a loss that is not finite, given the shares outside in the step before."""
    met = sorted((-share, name) for name, share in outside.items() if share > 0)
    if not met:
        return f"the loss is not finite at step {step}: lower the learning rate"
    said = ", ".join(f"{name} ({-share:.2%} of its values)" for share, name in met[:4])
    return (
        f"the loss is not finite at step {step}; in the step before, these left their polynomial's "
        f"domain: {said}. Widen the domain (for optimizer.inv_sqrt: a larger epsilon), or "
        "lower the learning rate"
    )


def _anything(path: Place) -> bool:
    return bool(path)


def _twin(
    model: Model, params: Params, data: TaskData, settings: FineTune, how: AsEncrypted
) -> Model:
    """Polynomials over the ranges that the pre-trained model meets on training rows."""
    rows = np.arange(min(how.range_rows, len(data.train.tokens)))
    exact = make_evaluate_task(model, dataclasses.replace(settings, seed=0, encrypted=None))
    met = exact(params, take(data.train, rows)).ranges
    sites = fit_ranges(model.config, met, how.fit)
    for kind, domain in how.domains:
        fixed = {
            name: approx.fit(kind, domain, degree=how.fit.degree(name))
            for name, _ in sites.entries
            if function_of(name) == kind
        }
        sites = Sites.of(dict(sites.entries) | fixed)
    return Model(model.config, sites, low_rank=True)


def _batches(data: Batch, settings: FineTune, per_epoch: int) -> Callable[[int], Batch]:
    lengths = lengths_of(data)

    @functools.lru_cache(maxsize=1)
    def plans(epoch: int):
        return plan_epoch(lengths, settings.batch, settings.buckets, settings.seed, epoch)

    def batch_of(number: int) -> Batch:
        epoch, place = divmod(number, per_epoch)
        return cut(data, plans(epoch)[place])

    return batch_of


@functools.lru_cache(maxsize=8)
def _step(
    model: Model, settings: FineTune, steps: int
) -> tuple[optax.GradientTransformation, Step]:
    optimizer = make_optimizer(settings, steps)
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
    update = lora_update(model, optimizer, softmax)
    unit, domains = model.units(), model.sites.ranges()

    def step(state: TrainState, batch: Batch, frozen: Params) -> tuple[TrainState, dict[str, Any]]:
        noisy = simulated_update(update, state.optimizer, how.ckks, how.profile)
        key = jax.random.fold_in(state.key, state.step)
        x = model.embed(combine(state.params, frozen), batch.tokens)
        targets = batch.targets[:, None] if regression else jax.nn.one_hot(batch.targets, classes)
        trained, opt, (logits, values) = noisy(
            key, state.params, state.optimizer, frozen, x, batch.mask, targets
        )
        outside = share_outside(values, unit, domains)
        if softmax is not None:
            outside["loss.exp"] = softmax.share_outside(logits)
        outside["optimizer.inv_sqrt"] = root_outside(opt, settings.epsilon, _multiplier(settings))
        task = mean_squared_error if regression else cross_entropy
        figures = {"loss": task(logits, batch.targets), "outside": outside}
        return TrainState(state.step + 1, trained, opt, state.key), figures

    return optimizer, jax.jit(step)


@functools.lru_cache(maxsize=8)
def make_evaluate_task(
    model: Model, settings: FineTune, size: int = 128
) -> Callable[[Params, Batch], Evaluated]:
    """A function (params, data) -> `Evaluated`, compiled once per bucket.

    As encrypted, each batch is answered under the noise of a fresh key, the sentences and whatever
    was trained being encrypted.
    """
    how = settings.encrypted
    forward: Forward = exact_forward(model)
    if how is not None:
        forward = _noisy(model, how)
    unit, domains = model.units(), model.sites.ranges()

    @jax.jit
    def run(key: jax.Array, params: Params, tokens: jax.Array, mask: jax.Array):
        logits, values = forward(key, params, model.embed(params, tokens), mask)
        return logits, met_ranges(values, unit), share_outside(values, unit, domains)

    def evaluate(params: Params, data: Batch) -> Evaluated:
        logits = np.zeros((len(data.tokens), model.config.classes), np.float32)
        ranges: list[Mapping[str, Any]] = []
        outside: dict[str, float] = {}
        for number, plan in enumerate(whole(lengths_of(data), size, settings.buckets)):
            batch = cut(data, plan)
            key = jax.random.key(number)
            found, met, share = run(key, params, jnp.asarray(batch.tokens), jnp.asarray(batch.mask))
            own = plan.rows[: plan.count]
            logits[own] = np.asarray(found)[: plan.count]
            ranges.append(met)
            for name, value in share.items():
                weight = plan.count / len(data.tokens)
                outside[name] = outside.get(name, 0.0) + weight * float(value)
        return Evaluated(logits, join_ranges(ranges), outside)

    return evaluate


def _noisy(model: Model, how: AsEncrypted) -> Forward:
    """The forward pass under noise, with whatever LoRA trains encrypted beside the sentences."""

    def forward(key: jax.Array, params: Params, x: jax.Array, mask: jax.Array):
        trained, frozen = partition(params, is_adapter_or_head)
        flags = combine(
            jax.tree.map(lambda _: True, trained), jax.tree.map(lambda _: False, frozen)
        )
        noisy = hesim.simulate(
            model.forward_with_values,
            how.ckks,
            encrypted=(flags, True, False),
            profile=how.profile,
            tier="train",
        )
        return noisy(key, params, x, mask)

    return forward
