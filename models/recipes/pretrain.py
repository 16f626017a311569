"""Pre-training on a folder of text: an encoder guesses hidden words, a decoder the next one.

    corpus = Corpus.read("texts", length=128, cache="out")
    pretrain(Pretraining(), corpus, "out", report=print)

The learning rate rises and falls once over the budget; the range penalty comes in over its last
share, so that inputs of the later polynomials stay in their ranges. Everything that a step uses
follows from the settings, the text and the step number, and a checkpoint holds the rest: a run that
was stopped goes on, with a budget in steps to the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hesim.errors import ArgumentError, ParameterError
from models.checks import check_numbers
from models.config import EncoderConfig, preset
from models.data.batches import batch_rows
from models.data.corpus import Corpus
from models.data.tokenizer import Tokenizer
from models.nn.encoder import Model
from models.nn.lora import Params
from models.objectives.losses import range_penalty
from models.objectives.mlm import (
    MaskedBatch,
    Masking,
    linear_cross_entropy,
    mlm_scores,
    word_matrix,
    word_states,
)
from models.objectives.next_word import NextWord
from models.sites.sites import Range, function_of, join_ranges, met_ranges, site_names, targets_of
from models.start.corpus import corpus_start, obstacle
from models.train.checkpoint import Checkpoints
from models.train.compiling import announced
from models.train.diagnose import origin
from models.train.loop import Intervals, Progress, range_figures, spend_budget
from models.train.schedules import Budget, BudgetClock, one_cycle, ramp, scale_by_progress
from models.train.sharding import (
    agreed,
    check_config,
    check_hosts,
    check_rows,
    place_batch,
    place_state,
)
from models.train.step import (
    Loss,
    Step,
    StepOptions,
    TrainState,
    initial_state,
    make_update,
    rematerialised,
)

__all__ = [
    "HeldOut",
    "Guessing",
    "Initial",
    "Pretrained",
    "Pretraining",
    "evaluate",
    "guessing_of",
    "pretrain",
]

Initial = Literal["corpus", "random"]
"""What a training starts from: the text's statistics (`corpus_start`), or nothing."""

Guessing = Masking | NextWord
"""What is guessed of a row: it makes the batches of a step, from which all else follows."""


def guessing_of(config: EncoderConfig, tokenizer: Tokenizer, share: float) -> Guessing:
    """The next word where the model is causal, else hidden words, a `share` of a row's tokens."""
    return NextWord.of(tokenizer) if config.causal else Masking.of(tokenizer, share)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Everything that decides a pre-training, its text apart.

    Attributes:
      config: the model; its vocabulary is that of the corpus, and `lm_head` must not be "none". A
        causal one guesses each next token, any other one hidden words.
      share: of a row's tokens that are hidden (not looked at where the model is causal).
      batch: rows of a step.
      budget: when it ends.
      rate: highest learning rate;
      rise: share of the budget at which it is reached, from `start` times it; it falls to `floor`
        times it.
      weight_decay: decoupled, on matrices.
      clip: largest norm of a gradient.
      b1, b2, eps: of AdamW.
      dropout: share of embedding features.
      penalty: weight of the range penalty, reached half-way through the last share `penalty_last`
        of the budget (k / n for the last k of n steps; a share, since a budget in seconds has no
        number of steps);
      targets: canonical range by function;
      inner: share of its half-width at which the penalty begins.
      seed: of weights, order and masks.
      initial: what the training starts from; None: from the text's statistics where the model can
        (`corpus_start.obstacle`), else from nothing.
      chunk: guessed words whose logits exist at a time (0: all of a part of a step).
      accumulate, precision: as in `step.StepOptions`.
      remat: compute what a layer kept a second time instead (`step.rematerialised`).
      log_every, evaluate_every: steps.
      save_seconds: time between checkpoints.
      held_out_rows: at most so many rows are evaluated.

    Examples:
      >>> from models import Budget, Pretraining
      >>> Pretraining(budget=Budget(steps=100), batch=8).config.lm_head
      'tied'
    """

    config: EncoderConfig = preset("tiny", sequence=128, lm_head="tied")
    share: float = 0.25
    batch: int = 32
    budget: Budget = Budget(steps=4000)
    rate: float = 2e-3
    rise: float = 0.1
    start: float = 0.05
    floor: float = 0.0
    weight_decay: float = 0.01
    clip: float = 0.5
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    dropout: float = 0.0
    penalty: float = 0.0
    penalty_last: float = 0.1
    targets: tuple[tuple[str, Range], ...] = ()
    inner: float = 0.9
    seed: int = 0
    initial: Initial | None = None
    chunk: int = 256
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    log_every: int = 20
    evaluate_every: int = 500
    save_seconds: float = 180.0
    held_out_rows: int = 512

    def __post_init__(self) -> None:
        for name in ("batch", "log_every", "evaluate_every", "held_out_rows"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.config.lm_head == "none":
            raise ArgumentError('pre-training guesses words: set lm_head="tied" or "own"')
        if self.initial not in (None, *get_args(Initial)):
            raise ArgumentError(f"initial={self.initial!r} is {' or '.join(get_args(Initial))}")
        self.starts_from()
        check_numbers(
            self,
            positive=("share", "rate", "clip", "eps"),
            at_least_0=("weight_decay", "penalty", "chunk", "save_seconds"),
            shares=("share", "start", "floor", "penalty_last"),
            below_1=("b1", "b2", "dropout", "inner"),
            seeds=("seed",),
        )
        one_cycle(self.rise)
        self.options()
        if self.batch % self.accumulate:
            raise ArgumentError(
                f"batch={self.batch} is no multiple of accumulate={self.accumulate}"
            )
        unknown = {name for name, _ in self.targets} - {
            function_of(name) for name in site_names(self.config)
        }
        if unknown:
            raise ArgumentError(f"the model has no site of {', '.join(sorted(unknown))}")

    def options(self) -> StepOptions:
        """How a step computes; the state handed to it is overwritten."""
        return StepOptions(self.accumulate, self.precision, donate=True)

    def starts_from(self, words: int | None = None) -> Initial:
        """What a training on a text with a vocabulary of `words` (None: not known yet) starts from;
        ParameterError where `initial="corpus"` asks for what the model cannot.
        """
        reason = obstacle(self.config, words)
        if self.initial == "corpus" and reason:
            raise ParameterError(
                f'initial="corpus" cannot be with {reason}: set initial="random", or leave it out'
            )
        return self.initial or ("random" if reason else "corpus")

    def site_targets(self) -> dict[str, Range]:
        """The target range of every site whose function has one."""
        return dict(targets_of(self.config, self.targets))


class HeldOut(NamedTuple):
    """Held-out text: loss in nats a guessed word, share guessed right, canonical ranges met."""

    loss: float
    accuracy: float
    ranges: dict[str, Range]


class Pretrained(NamedTuple):
    """A pre-training as far as it went: `finished` says whether its budget is spent."""

    model: Model
    params: Params
    step: int
    seconds: float
    finished: bool
    evaluated: HeldOut | None


def make_optimizer(settings: Pretraining) -> optax.GradientTransformation:
    """Clipping, AdamW without decay on vectors, and the one-cycle rate of the batch's progress."""

    def matrices(params: Params) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    s = settings
    return optax.chain(
        optax.clip_by_global_norm(s.clip),
        optax.scale_by_adam(s.b1, s.b2, s.eps),
        optax.add_decayed_weights(s.weight_decay, matrices),
        scale_by_progress(s.rate, one_cycle(s.rise, s.start, s.floor)),
    )


def make_loss(model: Model, settings: Pretraining, *, penalised: bool) -> Loss:
    """Mean cross-entropy of the guessed words, plus the range penalty where `penalised`."""
    weight = ramp(settings.penalty_last)
    unit, ranges = model.units(), settings.site_targets()

    def forward(params: Params, batch: MaskedBatch, key: jax.Array) -> Any:
        return word_states(model, params, batch, dropout=settings.dropout, key=key)

    run = rematerialised(forward) if settings.remat else forward

    def loss(
        params: Params, frozen: Params, batch: MaskedBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del frozen
        states, values = run(params, batch, key)
        labels, weights = jnp.ravel(batch.words), jnp.ravel(batch.weights)
        matrix, bias = word_matrix(model, params)
        total: Any = linear_cross_entropy(states, matrix, bias, labels, weights, settings.chunk)
        task = total / jnp.maximum(jnp.sum(weights), 1.0)
        if not penalised:
            return task, {"loss": task}
        extra = range_penalty(values, unit, ranges, settings.inner)
        factor = settings.penalty * weight(batch.progress)
        return task + factor * extra, {"loss": task, "penalty": extra}

    return loss


def make_pretraining_step(model: Model, settings: Pretraining) -> Step:
    """The step of a batch: with the range penalty once its share of the budget has begun."""
    optimizer, options = make_optimizer(settings), settings.options()
    plain = make_update(make_loss(model, settings, penalised=False), optimizer, options)
    if not (settings.penalty and settings.penalty_last and settings.targets):
        return plain
    penalised = make_update(make_loss(model, settings, penalised=True), optimizer, options)

    def step(state: TrainState, batch: MaskedBatch, *rest: Any) -> Any:
        # Both rounded alike: a share k / n is then exactly the last k of n steps.
        late = np.float32(batch.progress) >= np.float32(1 - settings.penalty_last)
        return (penalised if late else plain)(state, batch, *rest)

    return step


@functools.lru_cache(maxsize=4)
def _scores(model: Model) -> Callable[[Params, MaskedBatch], Any]:
    unit = model.units()

    @jax.jit
    def run(params: Params, batch: MaskedBatch) -> Any:
        states, values = word_states(model, params, batch)
        return mlm_scores(model, params, states, batch), met_ranges(values, unit)

    return run


def evaluate(
    model: Model, params: Params, corpus: Corpus, guessing: Guessing, *, rows: int, batch: int
) -> HeldOut:
    """Loss, accuracy and ranges on the first `rows` held-out rows, always with the same words to
    guess; whole batches only, so a few rows may be left out.
    """
    size = min(batch, corpus.held_out.rows)
    sums = {"loss": 0.0, "right": 0.0, "words": 0.0}
    met: list[Mapping[str, Any]] = []
    for number in range(max(1, min(rows, corpus.held_out.rows) // size)):
        places = np.arange(number * size, (number + 1) * size)
        found, ranges = _scores(model)(params, guessing.batch(corpus.held_out, places, 0, number))
        sums = {name: sums[name] + float(found[name]) for name in sums}
        met.append(ranges)
    words = max(sums["words"], 1.0)
    return HeldOut(sums["loss"] / words, sums["right"] / words, join_ranges(met))


def pretrain(
    settings: Pretraining,
    corpus: Corpus,
    folder: str | Path,
    *,
    report: Callable[[Progress], None] | None = None,
    waiting: Callable[[str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    keep: int = 3,
    mesh: Mesh | None = None,
) -> Pretrained:
    """Train until the budget is spent or `stop` says so; a checkpoint is written in both cases.

    folder: its `checkpoints` hold the state every `save_seconds`; a run that finds its own there
    goes on from the newest, another's raises CheckpointError. report is called every `log_every`
    steps with loss, gradient norm, learning rate and tokens a second, and every `evaluate_every`
    with the held-out figures. mesh: devices over which batches and model are spread
    (`sharding.make_mesh`), of several hosts where they are joined, which then all call this; a run
    may go on with another, to the same numbers up to rounding.
    ParameterError where it does not divide the rows of a part of a step, the heads or the features,
    where several hosts would follow their clocks (`sharding.check_hosts`), and where
    `initial="corpus"` asks for more words than the text has.
    """
    initial = settings.starts_from(corpus.tokenizer.size)
    config = settings.config.replace(
        vocabulary=corpus.tokenizer.size, padding_id=corpus.tokenizer.pad_id
    )
    if mesh is not None:
        check_config(config, mesh)
        check_rows(settings.batch // settings.accumulate, mesh)
        check_hosts(
            jax.process_count(),
            seconds=settings.budget.seconds,
            save_seconds=settings.save_seconds,
        )
    several = mesh is not None and jax.process_count() > 1
    model = Model(config)
    guessing = guessing_of(config, corpus.tokenizer, settings.share)
    key = jax.random.key(settings.seed)
    params = model.init(key)
    step = make_pretraining_step(model, settings)
    named = dataclasses.replace(settings, initial=settings.starts_from())
    identity = {"settings": named, "corpus": corpus.digest}
    rates = one_cycle(settings.rise, settings.start, settings.floor)
    with Checkpoints(Path(folder) / "checkpoints", keep=keep) as store:
        if store.latest is None and initial == "corpus":
            params = corpus_start(config, params, corpus.train.tokens)
        state = initial_state(params, make_optimizer(settings), key)
        state, notes = store.resume(state, identity)
        if mesh is not None:
            state = place_state(state, mesh)
        clock = BudgetClock(settings.budget, float(notes.get("seconds", 0.0)))

        def save(state: TrainState) -> None:
            store.save(int(state.step), state, {**identity, "seconds": clock.seconds})

        def batch_of(number: int) -> MaskedBatch:
            rows = batch_rows(settings.seed, number, corpus.train.rows, settings.batch)
            share = clock.progress(number)
            batch = guessing.batch(corpus.train, rows, settings.seed, number, share)
            return batch if mesh is None else place_batch(batch, mesh)

        evaluated: HeldOut | None = None

        def figures_of(state: TrainState) -> dict[str, float]:
            nonlocal evaluated
            evaluated = evaluate(
                model,
                state.params,
                corpus,
                guessing,
                rows=settings.held_out_rows,
                batch=settings.batch,
            )
            figures = {"held_out_loss": evaluated.loss, "held_out_accuracy": evaluated.accuracy}
            return figures | range_figures(evaluated.ranges)

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
            diagnose=None if several else lambda params, batch: origin(model, params, batch),
        )
        number = int(state.step)
        finished = clock.progress(number) >= 1
        return Pretrained(model, state.params, number, clock.seconds, finished, evaluated)
