"""Knowledge distillation: a student learns what its teacher computes, by layer and at the end.

    layers: |student - teacher|^2 / |teacher|^2 of hidden states and of the attention's updates,
            over real tokens, means over the layers;
    pooled: the same of the mean of a text's final states; logits: the same of ratings, else the
            divergence of the classes' shares at a temperature (Hinton et al. 2015).

A student with another attention starts from the teacher's weights (`convert`), which keep most of
what a Gaussian kernel needs: it equals softmax up to the normalisation of its rows where queries
have one length and keys have one, and `warm_start` takes them as near to that as softmax allows.
A run that was stopped goes on, with a budget in steps to the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hesim.errors import ArgumentError
from models.checks import check_numbers
from models.data.batches import Batch
from models.data.buckets import check_buckets, lengths_of, plan_epoch, trim
from models.errors import CheckpointError
from models.nn.encoder import LayerOutputs, Model
from models.nn.lora import Params, combine, partition
from models.objectives.losses import range_penalty
from models.recipes.agreement import agreement, compared, layer_pairs
from models.sites.sites import Range, targets_of
from models.train.checkpoint import Checkpoints, digest_of
from models.train.classifier import compute_type
from models.train.compiling import announced
from models.train.diagnose import origin
from models.train.loop import Intervals, Progress, range_figures, spend_budget
from models.train.schedules import Budget, BudgetClock, one_cycle, scale_by_progress
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
    Loss,
    StepOptions,
    TrainState,
    closed,
    initial_state,
    make_update,
    rematerialised,
)

__all__ = ["DistilBatch", "Distillation", "Distilled", "distil"]

Part = Literal["attention", "blocks", "all"]


class DistilBatch(NamedTuple):
    """tokens int32 and mask float32 (n, tokens); progress: share of the budget behind. types:
    int32 (n, tokens) token types, None where all are 0.
    """

    tokens: Any
    mask: Any
    progress: Any
    types: Any = None


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Everything that decides a distillation, models and texts apart.

    Attributes:
      states, attention, pooled, logits: weights of what the module describes. The first three need
        one hidden width; logits mean something where the teacher's head was trained.
      temperature: by which logits are divided.
      trained: "attention" (its projections), "blocks" (everything between embedding and pooler) or
        "all"; pooler and head are trained with the logits.
      batch, budget, rate, rise, start, floor, weight_decay, clip, seed: as in `Pretraining`.
      penalty: weight of the range penalty on the student's sites; targets: canonical range by
        function; inner: share of its half-width at which the penalty begins.
      buckets: tokens that batches are cut to.
      accumulate, precision: as in `step.StepOptions`; relative errors are then means over the parts
        of a step, and the teacher computes in that precision too. remat: compute what a layer of
        the student kept a second time instead (`step.rematerialised`).
      log_every, evaluate_every: steps. save_seconds: time between checkpoints.
    """

    states: float = 1.0
    attention: float = 1.0
    pooled: float = 1.0
    logits: float = 0.0
    temperature: float = 2.0
    trained: Part = "blocks"
    batch: int = 32
    budget: Budget = Budget(steps=600)
    rate: float = 5e-4
    rise: float = 0.1
    start: float = 0.05
    floor: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    penalty: float = 0.0
    targets: tuple[tuple[str, Range], ...] = ()
    inner: float = 0.9
    buckets: tuple[int, ...] = (16, 32, 64, 128)
    seed: int = 0
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    log_every: int = 20
    evaluate_every: int = 200
    save_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("batch", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        weights = (self.states, self.attention, self.pooled, self.logits)
        check_numbers(self, at_least_0=("states", "attention", "pooled", "logits"))
        if not any(weights):
            raise ArgumentError(
                "states, attention, pooled and logits are all 0: nothing is learned"
            )
        if self.trained not in ("attention", "blocks", "all"):
            raise ArgumentError(f"trained={self.trained!r} is attention, blocks or all")
        check_numbers(
            self,
            positive=("temperature", "rate", "clip"),
            at_least_0=("weight_decay", "penalty", "save_seconds"),
            shares=("start", "floor"),
            below_1=("inner",),
            seeds=("seed",),
        )
        check_buckets(self.buckets)
        one_cycle(self.rise)
        self.options()
        if self.batch % self.accumulate:
            raise ArgumentError(
                f"batch={self.batch} is no multiple of accumulate={self.accumulate}"
            )

    def options(self) -> StepOptions:
        """How a step computes; the state handed to it is overwritten."""
        return StepOptions(self.accumulate, self.precision, donate=True)

    def is_trained(self, path: tuple[Any, ...]) -> bool:
        """Whether the parameter at this place changes."""
        if path[0] in ("pooler", "head"):
            return self.logits > 0
        if self.trained == "attention":
            return path[0] == "blocks" and path[2] == "attention"
        return self.trained == "all" or path[0] in ("blocks", "final_norm")


class Distilled(NamedTuple):
    """A distillation as far as it went: `finished` says whether its budget is spent."""

    model: Model
    params: Params
    step: int
    seconds: float
    finished: bool


def make_loss(teacher: Model, student: Model, settings: Distillation) -> Loss:
    """The weighted sum; frozen is {"teacher": its parameters, "student": those not trained}.

    Metrics: loss, the relative errors (roots) of the parts, and the penalty. CheckpointError where
    a part that has a weight cannot be compared.
    """
    _check(teacher, student, settings)
    pairs = layer_pairs(teacher, student)
    learn = functools.partial(_outputs, student)
    run = rematerialised(learn) if settings.remat else learn
    unit, ranges = student.units(), dict(targets_of(student.config, settings.targets))

    def loss(
        trained: Params, frozen: Params, batch: DistilBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del key
        params = combine(trained, frozen["student"])
        theirs, own = _outputs(teacher, frozen["teacher"], batch), run(params, batch)
        terms = compared(theirs, own, batch.mask, pairs)
        errors = {name: a / jnp.maximum(b, 1e-12) for name, (a, b) in terms.items()}
        total = jnp.zeros(())
        for part in ("states", "attention", "pooled"):
            weight = getattr(settings, part)
            found = [e for name, e in errors.items() if name.split("/")[0] == part]
            if weight:
                total += weight * sum(found, jnp.zeros(())) / len(found)
        if settings.logits:
            total += settings.logits * _logit_loss(theirs.logits, own.logits, settings)
        metrics = {"loss": total} | {name: jnp.sqrt(e) for name, e in errors.items()}
        if settings.penalty:
            metrics["penalty"] = range_penalty(own.values, unit, ranges, settings.inner)
            total += settings.penalty * metrics["penalty"]
        return total, metrics

    return loss


def _outputs(model: Model, params: Params, batch: DistilBatch) -> LayerOutputs:
    """What every layer computes, in the type of the parameters."""
    dtype = compute_type(params)
    x = model.embed(params, batch.tokens, batch.types).astype(dtype)
    return model.layer_outputs(params, x, jnp.asarray(batch.mask, dtype))


def _logit_loss(teacher: jax.Array, student: jax.Array, settings: Distillation) -> jax.Array:
    """Kullback-Leibler divergence times the temperature squared; of a rating the squared error."""
    teacher, student = teacher.astype(jnp.float32), student.astype(jnp.float32)
    if teacher.shape[-1] == 1:
        return jnp.mean(jnp.square(student - teacher))
    t = settings.temperature
    theirs, own = jax.nn.log_softmax(teacher / t), jax.nn.log_softmax(student / t)
    return t * t * jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - own), axis=-1))


def _check(teacher: Model, student: Model, settings: Distillation) -> None:
    a, b = teacher.config, student.config
    wrong: list[str] = []
    if a.vocabulary != b.vocabulary:
        wrong.append(f"vocabularies of {a.vocabulary} and {b.vocabulary} tokens")
    if a.hidden != b.hidden and (settings.states or settings.attention or settings.pooled):
        wrong.append(
            f"hidden widths {a.hidden} and {b.hidden}, with which only logits can be compared: set "
            "states, attention and pooled to 0"
        )
    if settings.logits and a.classes != b.classes:
        wrong.append(f"{a.classes} and {b.classes} logits: set the weight of logits to 0")
    if "bi-encoder" in (a.pairs, b.pairs):
        wrong.append(
            "pairs read apart, while texts are distilled one by one: distil before fine-tuning"
        )
    if b.layers > a.layers:
        wrong.append(f"{a.layers} layers that should teach {b.layers}")
    if wrong:
        raise CheckpointError("teacher and student have " + "; ".join(wrong))


def make_optimizer(settings: Distillation) -> optax.GradientTransformation:
    """Clipping, AdamW, and the one-cycle rate of the batch's progress."""
    s = settings
    return optax.chain(
        optax.clip_by_global_norm(s.clip),
        optax.scale_by_adam(0.9, 0.98),
        optax.add_decayed_weights(s.weight_decay),
        scale_by_progress(s.rate, one_cycle(s.rise, s.start, s.floor)),
    )


def distil(
    teacher: Model,
    teacher_params: Params,
    student: Model,
    params: Params,
    rows: Batch,
    settings: Distillation,
    folder: str | Path,
    *,
    held_out: Batch | None = None,
    report: Callable[[Progress], None] | None = None,
    waiting: Callable[[str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    mesh: Mesh | None = None,
) -> Distilled:
    """Train until the budget is spent or `stop` says so; a checkpoint is written in both cases.

    rows: texts (targets are not looked at). held_out: others, on which errors are reported every
    `evaluate_every` steps. folder: its `checkpoints` hold the state; a run that finds its own there
    goes on from the newest, another's raises CheckpointError. TrainingError where the loss ceases
    to be finite. mesh: devices over which batches and both models are spread
    (`sharding.make_mesh`); a run may go on with another, to the same numbers up to rounding. Where
    they are those of several hosts, all of them call this, each with a folder of its own.
    ParameterError where it does not divide the rows of a part of a step, the heads or the features.
    """
    if mesh is not None:
        for model in (teacher, student):
            check_config(model.config, mesh)
        check_rows(settings.batch // settings.accumulate, mesh)
        check_hosts(
            jax.process_count(),
            seconds=settings.budget.seconds,
            save_seconds=settings.save_seconds,
        )
    several = mesh is not None and jax.process_count() > 1
    loss = make_loss(teacher, student, settings)
    trained, frozen = partition(params, settings.is_trained)
    optimizer = make_optimizer(settings)
    identity = {
        "settings": settings,
        "teacher": teacher.config,
        "config": student.config,
        "rows": digest_of((rows.tokens, rows.mask, rows.types)),
        "fixed": digest_of((teacher_params, frozen)),
    }
    lengths = lengths_of(rows)
    per_epoch = -(-len(lengths) // settings.batch)
    rates = one_cycle(settings.rise, settings.start, settings.floor)

    @functools.lru_cache(maxsize=1)
    def plans(epoch: int):
        return plan_epoch(lengths, settings.batch, settings.buckets, settings.seed, epoch)

    with Checkpoints(Path(folder) / "checkpoints") as store:
        copied = jax.tree.map(jnp.copy, trained)  # the step overwrites its state
        state = initial_state(copied, optimizer, jax.random.key(settings.seed))
        state, notes = store.resume(state, identity, "distillation")
        fixed = {"teacher": teacher_params, "student": frozen}
        if mesh is not None:
            state = place_state(state, mesh)
            fixed = {name: place_frozen(tree, mesh) for name, tree in fixed.items()}
            if not several:  # of several hosts each evaluates by itself
                teacher_params, frozen = fixed["teacher"], place_state(frozen, mesh)
        step = closed(make_update(loss, optimizer, settings.options()), fixed)
        clock = BudgetClock(settings.budget, float(notes.get("seconds", 0.0)))

        def save(state: TrainState) -> None:
            store.save(int(state.step), state, {**identity, "seconds": clock.seconds})

        def batch_of(number: int) -> DistilBatch:
            epoch, place = divmod(number, per_epoch)
            part = trim(rows, plans(epoch)[place])
            mask, progress = np.asarray(part.mask, np.float32), np.float32(clock.progress(number))
            batch = DistilBatch(part.tokens, mask, progress, part.types)
            return batch if mesh is None else place_batch(batch, mesh)

        def figures_of(state: TrainState) -> dict[str, float]:
            if held_out is None:
                return {}
            found = agreement(
                teacher,
                teacher_params,
                student,
                combine(state.params, frozen),
                held_out,
                batch=settings.batch,
                buckets=settings.buckets,
            )
            figures = {
                f"held_out/{name}/{i}": error
                for name in ("states", "attention")
                for i, error in enumerate(getattr(found, name))
            }
            return figures | {"held_out/pooled": found.pooled} | range_figures(found.ranges)

        def diagnose(part: Params, batch: Any) -> str:
            return origin(student, combine(part, frozen), batch)

        state = spend_budget(
            announced(step, stop, waiting),
            state,
            batch_of,
            clock,
            Intervals(settings.log_every, settings.evaluate_every, settings.save_seconds),
            learning_rate=lambda share: settings.rate * float(rates(share)),
            evaluate=figures_of,
            save=save,
            report=report,
            stop=agreed(stop),
            diagnose=None if several else diagnose,
        )
        number = int(state.step)
        finished = clock.progress(number) >= 1
        return Distilled(student, combine(state.params, frozen), number, clock.seconds, finished)
