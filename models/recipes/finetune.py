"""Fine-tuning a pre-trained encoder on a task: all of it or LoRA, in the clear or as encrypted.

As encrypted means: polynomials at every site, the loss's softmax and the optimizer's root
polynomial too, and every step and every answer under simulated CKKS noise
(`models.encrypted.update`). A training that finds its own checkpoint goes on from it and ends with
the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hesim.errors import ParameterError
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch
from models.data.tasks import TaskData
from models.encrypted.twin import merged, twin_of
from models.encrypted.update import (
    training_sites,
)
from models.errors import CheckpointError, TrainingError
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter_or_head, partition
from models.nn.lora import Path as Place
from models.recipes.finetune_settings import FineTune
from models.recipes.finetune_step import compiled_step, task_batches
from models.sites.sites import TRAINING_SITES, Sites, site_names, targets_of
from models.train.checkpoint import Checkpoints, digest_of
from models.train.compiling import announced, beside
from models.train.diagnose import ended_wrong, gone_wrong, not_finite, origin
from models.train.evaluate import Evaluated, make_evaluate
from models.train.loop import Progress, next_multiple, range_figures, run_rounds
from models.train.sharding import (
    agreed,
    check_config,
    check_hosts,
    check_rows,
    place_frozen,
    place_state,
)
from models.train.step import (
    Step,
    TrainState,
    closed,
    initial_state,
)

__all__ = ["FineTuned", "finetune", "overlay"]


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
            "Gaussian attention, or train in the clear and validate encrypted (hesim validate)"
        )
    if (np.ndim(data.train.tokens) == 3) != (settings.pairs == "bi-encoder"):
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
    optimizer, compiled = compiled_step(model, settings)
    # The step overwrites its state, and what the caller gave may be part of it.
    state = initial_state(jax.tree.map(jnp.copy, trained), optimizer, key)
    batch_of = task_batches(data.train, settings, per_epoch, mesh)
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
        step = _watched(compiled, fixed, names) if watched else closed(compiled, fixed)
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


def _evaluate(model: Model, params: Params, data: Batch, settings: FineTune) -> Evaluated:
    """Exact models without their adapters, so that one compilation serves both methods."""
    if settings.encrypted is None:
        model, params = merged(model, params)
    return make_evaluate(model, buckets=settings.buckets, how=settings.encrypted)(params, data)


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


def _check_finite(state: TrainState, figures: Mapping[str, float]) -> None:
    """Raises TrainingError where a step of finite loss left a parameter that is not finite."""
    if (bad := not_finite(state.params)) is not None:
        outside = figures.get("outside", 0.0)
        raise TrainingError(ended_wrong(int(state.step), bad, outside))


def _anything(path: Place) -> bool:
    return bool(path)
