"""The stages of the demo before anything is encrypted: data, training, planning.

A stage that is finished leaves figures and arrays in the run folder; a training that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from typing import Any

import numpy as np

from experiments.console import Display
from experiments.demo.settings import Settings
from experiments.errors import ExperimentError
from experiments.validation.encrypting import (
    Forward,
    describe_dataset,
    note_plan,
    site_rows,
)
from experiments.validation.folder import RunFolder
from he_backend.processes.memory import peak_bytes
from hesim.circuit.circuit import Circuit
from hesim.errors import EmptySlotsWarning
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch, select_rows
from models.data.datasets import Dataset, load
from models.data.tokenizer import Tokenizer
from models.encrypted.forward import forward_circuit, simulated_forward
from models.nn.encoder import Model
from models.recipes import classify
from models.recipes.classify import Trained
from models.train.evaluate import make_evaluate
from models.train.loop import Progress

__all__ = ["Prepared", "plan", "prepare", "train"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Data as token numbers, and the model's shape for it. `test` is held out."""

    dataset: Dataset
    config: EncoderConfig
    train: Batch
    validation: Batch
    test: Batch


def prepare(settings: Settings) -> Prepared:
    """Data, vocabulary and token numbers. Raises DataError where data is missing."""
    dataset = load(settings.data, data_dir=settings.data_dir)
    texts = dataset.train.texts + (dataset.train.pairs or ())
    tokenizer = Tokenizer.train(texts, size=settings.config.vocabulary)
    classes = 1 if dataset.task == "regression" else len(dataset.classes)
    config = settings.config.replace(vocabulary=tokenizer.size, classes=classes)
    if settings.sentences > len(dataset.test):
        raise ExperimentError(
            f"{dataset.name} holds out {len(dataset.test)} sentences, fewer than the "
            f"{settings.sentences} asked for; lower --sentences"
        )
    splits = (dataset.train, dataset.validation, dataset.test)
    train, validation, test = (classify.encode(tokenizer, s, config.sequence) for s in splits)
    # Files are sorted: the first held-out reviews, which are encrypted, are nearly all positive.
    order = np.random.default_rng(0).permutation(len(dataset.test))
    return Prepared(dataset, config, train, validation, select_rows(test, order))


def train(settings: Settings, data: Prepared, folder: RunFolder, display: Display) -> Trained:
    """The model that is encrypted, and beside it those of the other seeds, evaluated in the clear.

    Writes the stage "training".
    """
    watch = _Stopwatch(folder, "training-clock")
    first = None
    seeds = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        if first is not None and folder.done(f"seed-{seed}"):
            seeds.append(folder.figures(f"seed-{seed}"))
            continue
        trained = _train_one(settings, data, folder, display, seed, watch)
        exact, polynomial = held_out(trained, data)
        name = data.dataset.metrics[0]
        scores: dict[str, Any] = {"seed": seed}
        for kind, logits in (("exact", exact), ("polynomial", polynomial)):
            scores[kind] = metrics.score(logits, data.test.targets)[name]
        folder.save(f"seed-{seed}", scores)
        seeds.append(scores)
        display.say(
            f"seed {seed}: held-out {name} {scores['exact']:.1%} exact, "
            f"{scores['polynomial']:.1%} with polynomials ({len(exact):,} sentences)"
        )
        if first is None:
            first = trained, exact, polynomial
    assert first is not None
    trained, exact, polynomial = first
    if not folder.done("training"):
        folder.save(
            "training",
            {
                "dataset": describe_dataset(data.dataset),
                "parameters": _parameters(trained),
                "history": trained.history,
                "seeds": seeds,
                "sites": list(site_rows(trained.model, trained.ranges_met)),
                "seconds": watch.seconds,
                "peak_bytes": peak_bytes(),
            },
            {"labels": np.asarray(data.test.targets), "exact": exact, "polynomial": polynomial},
        )
    return trained


def _train_one(
    settings: Settings,
    data: Prepared,
    folder: RunFolder,
    display: Display,
    seed: int,
    watch: _Stopwatch,
) -> Trained:
    chosen, ring = settings.recipe_of(seed), settings.suited.how
    name = data.dataset.metrics[0]
    with display.bar(f"training, seed {seed}", chosen.steps) as update:
        switch = chosen.steps - chosen.polynomial_steps
        update(0.0, "compiling the step", None)

        def report(p: Progress) -> None:
            watch.note()
            score = p.figures.get(name, float("nan"))
            note = f"step {p.step} ({p.phase}), loss {p.figures['loss']:.3f}, {name} {score:.3f}"
            if p.step == switch:
                note += "; now compiling polynomials and noise"
            update(p.step, note, None)

        return classify.train_classifier(
            data.config,
            data.train,
            data.validation,
            chosen,
            simulate=lambda model: simulated_forward(
                model, ring.ckks, ring.profile, _circuit(settings, model)
            ),
            report=report,
            checkpoints=folder.checkpoints(seed),
        )


def held_out(trained: Trained, data: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all held-out sentences in the clear, by the exact functions and the polynomials."""
    exact = make_evaluate(Model(trained.model.config))(trained.params, data.test).logits
    return exact, make_evaluate(trained.model)(trained.params, data.test).logits


def plan(
    settings: Settings, data: Prepared, trained: Trained, folder: RunFolder, display: Display
) -> Forward:
    """Trace the forward pass of one batch and compile it. Writes "plan" and `program.txt`."""
    started = time.monotonic()
    sentences = select_rows(data.test, np.arange(settings.sentences))
    circuit = _circuit(settings, trained.model)
    batch = min(settings.batch, settings.sentences)
    profile = settings.suited.how.profile
    forward = Forward(*(circuit, trained.model, trained.params, sentences, batch), profile=profile)
    note_plan(forward, time.monotonic() - started, folder, display)
    return forward


def _circuit(settings: Settings, model: Model) -> Circuit:
    """Of one batch: training simulates its noise, and it is what runs encrypted."""
    batch, chosen = min(settings.batch, settings.sentences), settings.suited
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)  # the batch is what the settings say
        return forward_circuit(
            model, chosen.how.ckks, batch, settings.refresh_price, chosen.refresher
        )


class _Stopwatch:
    """Seconds of a stage over all attempts, kept in the run folder at every note."""

    def __init__(self, folder: RunFolder, name: str) -> None:
        self._folder, self._name = folder, name
        before = folder.figures(name)["seconds"] if folder.done(name) else 0.0
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def note(self) -> None:
        self._folder.save(self._name, {"seconds": self.seconds})


def _parameters(trained: Trained) -> int:
    import jax

    return sum(int(leaf.size) for leaf in jax.tree.leaves(trained.params))
