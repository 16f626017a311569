"""The training recipe, from data to polynomial twin.

Exact steps, ranges measured, polynomials fitted, then steps through the polynomials with the range
penalty and simulated noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from hesim.errors import ArgumentError
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch, select_rows, shuffled
from models.data.datasets import Split, sample
from models.data.tokenizer import Tokenizer
from models.nn.encoder import Model
from models.nn.lora import Params
from models.sites.sites import FitSettings, Range, Sites, targets_of
from models.train.checkpoint import Checkpoints, sites_from_json, sites_to_json
from models.train.classifier import Forward, Regularisation, make_step
from models.train.diagnose import origin
from models.train.evaluate import fit_sites, make_evaluate
from models.train.loop import Progress, next_multiple, run_rounds
from models.train.step import Step, TrainState, initial_state


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Steps, step size and regularisation of one training of a classifier.

    Attributes:
      steps: all steps.
      polynomial_steps: the last so many go through the polynomials; below `steps`.
      batch: rows of a step.
      learning_rate: the highest; it rises over a tenth of the steps and falls by half a cosine.
      weight_decay: decoupled, on matrices.
      clip: largest norm of a gradient.
      dropout: share of embedding features set to zero.
      word_dropout: share of tokens replaced by the unknown one.
      smoothing: of labels.
      exact_penalty: weight of the range penalty towards `targets`, all along.
      penalty: its weight towards the fitted ranges, in the polynomial steps.
      targets: canonical ranges by function.
      fit: what is fitted at the sites.
      range_rows: training rows on which the ranges are measured.
      seed: of weights, batches and dropout.
      evaluate_every: steps between reports.
      save_every: steps between checkpoints.

    Raises:
      ArgumentError: polynomial_steps are not below steps.

    Examples:
      >>> from models import Recipe
      >>> Recipe(steps=20, polynomial_steps=5).batch
      64
    """

    steps: int = 700
    polynomial_steps: int = 150
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    dropout: float = 0.2
    word_dropout: float = 0.2
    smoothing: float = 0.1
    exact_penalty: float = 0.1
    penalty: float = 1.0
    targets: tuple[tuple[str, Range], ...] = (
        ("exp", (-6.0, 0.0)),
        ("inv_sqrt", (0.6, 6.0)),
        ("relu", (-3.0, 3.0)),
        ("gelu", (-3.0, 3.0)),
        ("tanh", (-2.5, 2.5)),
    )
    fit: FitSettings = FitSettings(
        degrees=(("exp", 7), ("gelu", 3), ("inv_sqrt", 3), ("relu", 3), ("tanh", 3)), margin=0.3
    )
    range_rows: int = 4096
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.polynomial_steps < self.steps:
            raise ArgumentError(
                f"polynomial_steps={self.polynomial_steps} must be below steps={self.steps}: "
                "ranges are measured on a model that has been trained exactly"
            )

    def site_targets(self, config: EncoderConfig) -> tuple[tuple[str, Range], ...]:
        """The target range of every site, by its function."""
        return targets_of(config, self.targets)


DEFAULT_RECIPE = Recipe()


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model and what its polynomials met.

    Attributes:
      model: the polynomial twin.
      params: of both, float32.
      history: one report each `evaluate_every` steps: step, phase and figures.
      ranges_met: canonical range of each site, met by the twin on the validation rows.

    Examples:
      >>> import approx
      >>> from models import Model, Sites, Trained, preset
      >>> relu = approx.fit("relu", (-3, 3), degree=7)
      >>> twin = Model(preset("demo"), Sites.of({"layer0.ffn.relu": relu}))
      >>> Trained(twin, {}, [], {"layer0.ffn.relu": (-2.0, 2.5)}).ranges_fitted
      {'layer0.ffn.relu': (-3.0, 3.0)}
    """

    model: Model
    params: Params
    history: list[dict[str, Any]]
    ranges_met: dict[str, Range]

    @property
    def sites(self) -> Sites:
        return self.model.sites

    @property
    def ranges_fitted(self) -> dict[str, Range]:
        return self.sites.ranges()


def encode(tokenizer: Tokenizer, split: Split, length: int) -> Batch:
    """A split as token ids, mask and labels."""
    encoded = tokenizer.encode(split.texts, length=length, pairs=split.pairs)
    return Batch(encoded.ids, encoded.mask, split.labels)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW on one warm-up and cosine, the gradient's norm clipped; no decay on vectors."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        recipe.learning_rate,
        max(1, recipe.steps // 10),
        recipe.steps,
        0.02 * recipe.learning_rate,
    )

    def matrices(params: Params) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=matrices),
    )


def make_recipe_step(model: Model, recipe: Recipe, forward: Forward | None = None) -> Step:
    """The step of `model`'s phase (polynomial if it has sites), through `forward` if given."""
    polynomial = model.sites.entries != ()
    fitted = tuple(sorted(model.sites.ranges().items()))
    regularisation = Regularisation(
        dropout=recipe.dropout,
        word_dropout=recipe.word_dropout,
        smoothing=recipe.smoothing,
        penalty=recipe.penalty if polynomial else recipe.exact_penalty,
        ranges=fitted if polynomial else recipe.site_targets(model.config),
    )
    return make_step(model, make_optimizer(recipe), regularisation, forward)


@functools.lru_cache(maxsize=8)
def _noiseless_step(model: Model, recipe: Recipe) -> Step:
    return make_recipe_step(model, recipe)


def train_classifier(
    config: EncoderConfig,
    train: Batch,
    validation: Batch,
    recipe: Recipe = DEFAULT_RECIPE,
    *,
    simulate: Callable[[Model], Forward] | None = None,
    report: Callable[[Progress], None] | None = None,
    checkpoints: str | Path | None = None,
) -> Trained:
    """Train a model and its polynomial twin (a regression model where `config.classes` is 1).

    The exact model is trained first; polynomials are fitted to the ranges that it meets; the last
    steps go through them.

    Args:
      config: the architecture.
      train: rows to train on, tokens (n, sequence).
      validation: rows that are scored at each report.
      recipe: steps, rates and regularisation.
      simulate: from the polynomial model to its noisy forward pass, used in the polynomial steps.
      report: called every `evaluate_every` steps.
      checkpoints: a folder; a training that finds its own checkpoint there goes on from it and
        ends with the same bits.

    Returns:
      The twin, its parameters, the history, and the ranges met.

    Raises:
      TrainingError: loss or gradient are not finite; the step and the site are named.
      CheckpointError: the folder holds another training's checkpoint.

    Examples:
      >>> import tempfile
      >>> import numpy as np
      >>> from models import Batch, Checkpoints, Recipe, preset, train_classifier
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> tokens = np.random.default_rng(0).integers(5, 16, (16, 4)).astype(np.int32)
      >>> rows = Batch(tokens, np.ones((16, 4), np.float32), (tokens[:, 1] > 10).astype(np.int32))
      >>> recipe = Recipe(steps=4, polynomial_steps=2, batch=8, evaluate_every=2, save_every=0)
      >>> folder = tempfile.mkdtemp()
      >>> with Checkpoints(folder) as store:  # of another training
      ...     store.save(2, {"w": np.zeros(3)}, {"recipe": "another"})
      >>> train_classifier(config, rows, rows, recipe, checkpoints=folder)
      Traceback (most recent call last):
          ...
      models.errors.CheckpointError: ...
    """
    exact = Model(config)
    seedless = dataclasses.replace(recipe, seed=0)  # one compiled step for all seeds
    key = jax.random.key(recipe.seed)
    state = initial_state(exact.init(key), make_optimizer(recipe), key)
    identity = {"config": config, "recipe": recipe}
    history: list[dict[str, Any]] = []
    sites: Sites | None = None
    with contextlib.ExitStack() as stack:
        store = None
        if checkpoints is not None:
            store = stack.enter_context(Checkpoints(checkpoints))
            state, notes = store.resume(state, identity)
            history = list(notes.get("history", ()))
            sites = sites_from_json(notes["sites"]) if notes.get("sites") else None

        def advance(state: TrainState, model: Model, step: Step, until: int) -> TrainState:
            phase = "polynomial" if model.sites.entries else "exact"

            def goal_of(number: int) -> int | None:
                goal = min(until, next_multiple(number, recipe.evaluate_every))
                return goal if number < until else None

            def at_goal(state: TrainState, figures: dict[str, float]) -> None:
                goal = int(state.step)
                logits = make_evaluate(model)(state.params, validation).logits
                figures |= metrics.score(logits, validation.targets)
                history.append({"step": goal, "phase": phase, **figures})
                if report is not None:
                    share = goal / recipe.steps
                    report(Progress(goal, share, figures, phase=phase, steps=recipe.steps))
                if store is not None and (goal % recipe.save_every == 0 or goal == until):
                    written = "" if sites is None else sites_to_json(sites)
                    store.save(goal, state, {**identity, "history": history, "sites": written})

            return run_rounds(
                step,
                state,
                shuffled(train, recipe.batch, recipe.seed),
                goal_of=goal_of,
                at_goal=at_goal,
                diagnose=lambda params, batch: origin(model, params, batch),
            )

        if sites is None:
            step = _noiseless_step(exact, seedless)
            state = advance(state, exact, step, recipe.steps - recipe.polynomial_steps)
            rows = sample(len(train.tokens), recipe.range_rows)
            sites = fit_sites(exact, state.params, select_rows(train, rows), recipe.fit)
        twin = exact.with_sites(sites)
        if simulate is None:
            step = _noiseless_step(twin, seedless)
        else:
            step = make_recipe_step(twin, recipe, simulate(twin))
        state = advance(state, twin, step, recipe.steps)
    met = make_evaluate(twin)(state.params, validation).ranges
    return Trained(twin, state.params, history, met)
