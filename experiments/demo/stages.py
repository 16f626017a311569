"""The stages of the demo: data, training, planning, encrypted evaluation. Each can be resumed.

A stage that is finished leaves figures and arrays in the run folder; one that was interrupted goes
on from its last checkpoint, or from the tasks that the encrypted run had done.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import he_backend
from experiments.console import Display, Update
from experiments.demo.settings import Settings
from experiments.errors import ExperimentError
from experiments.validation.folder import RunFolder
from he_backend.errors import RunFolderWarning
from he_backend.machines.table import find
from he_backend.processes.memory import peak_bytes
from he_backend.report.environment import environment
from hesim.circuit.circuit import Circuit
from hesim.errors import EmptySlotsWarning
from hesim.program import Equation, Program
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch, select_rows
from models.data.datasets import Dataset, load
from models.data.tokenizer import Tokenizer
from models.encrypted.forward import forward_circuit, simulated_forward
from models.nn.encoder import Model
from models.recipes import classify
from models.recipes.classify import Trained
from models.sites.sites import site_names
from models.train.evaluate import make_evaluate
from models.train.loop import Progress

_ROOT = Path(__file__).resolve().parents[2]

__all__ = ["PlannedRun", "Prepared", "encrypt", "plan", "prepare", "train"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Data as token numbers, and the model's shape for it. `test` is held out."""

    dataset: Dataset
    config: EncoderConfig
    train: Batch
    validation: Batch
    test: Batch


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """The traced forward pass of one batch, its Circuit, and what it is called with."""

    program: Program
    circuit: Circuit
    trained: Trained
    sentences: Batch
    batch: int

    @property
    def batches(self) -> int:
        return -(-len(self.sentences.tokens) // self.batch)

    def rows(self, k: int) -> np.ndarray:
        """Row numbers of batch k, filled up with the first ones; `count` of them are its own."""
        return np.arange(k * self.batch, (k + 1) * self.batch) % len(self.sentences.tokens)

    def count(self, k: int) -> int:
        """How many rows of batch k are sentences of its own."""
        return min(self.batch, len(self.sentences.tokens) - k * self.batch)

    def arguments(self, k: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """(weights, embedded rows to encrypt, mask) of batch k."""
        return forward_arguments(self.trained, self.sentences, self.rows(k))


def forward_arguments(
    trained: Trained, sentences: Batch, rows: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray]:
    """(weights, x (n, tokens, hidden), mask (n, tokens)) as `Model.encrypted_forward` wants them.

    The embedding is looked up by the client, in the clear.
    """
    chosen = select_rows(sentences, rows)
    x = trained.model.embed(trained.params, chosen.tokens, chosen.types)
    return trained.params, np.asarray(x), chosen.mask


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
                "dataset": _describe(data.dataset),
                "parameters": _parameters(trained),
                "history": trained.history,
                "seeds": seeds,
                "sites": list(_sites(trained)),
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
    chosen = settings.recipe_of(seed)
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
                model, settings.ckks, circuit=_circuit(settings, model)
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
) -> PlannedRun:
    """Trace the forward pass of one batch and compile it. Writes "plan" and `program.txt`."""
    started = time.monotonic()
    batch = min(settings.batch, settings.sentences)
    sentences = select_rows(data.test, np.arange(settings.sentences))
    circuit = _circuit(settings, trained.model)
    program = circuit.program
    assert program is not None
    planned = PlannedRun(program, circuit, trained, sentences, batch)
    (folder.path / "program.txt").write_text(f"{program}\n", encoding="utf-8")
    kinds = Counter(equation.name for equation in program.ops)
    tap = circuit.outputs[0]
    assert tap is not None
    figures = {
        "listing": str(program),
        "operations": dict(kinds.most_common()),
        "labels": [_label(equation) for equation in program.ops],
        "depth": program.depth,
        "output": tap.op,
        "ledger": dataclasses.asdict(circuit.ledger),
        "instructions": len(circuit.kind),
        "ring": _ring(circuit),
        "batch": batch,
        "batches": planned.batches,
        "seconds": time.monotonic() - started,
        "environment": environment(),
    }
    if not folder.done("plan"):
        folder.save("plan", figures)
    _say_plan(display, figures, folder)
    return planned


def _circuit(settings: Settings, model: Model) -> Circuit:
    """Of one batch: training simulates its noise, and it is what runs encrypted."""
    batch = min(settings.batch, settings.sentences)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptySlotsWarning)  # the batch is what the settings say
        return forward_circuit(model, settings.ckks, batch, settings.refresh_price)


def _label(equation: Equation) -> str:
    """Name of an operation; of a polynomial, the function that it stands in for."""
    if equation.name != "polynomial":
        return equation.name
    return f"polynomial {equation.params['poly'].name}"


def _say_plan(display: Display, figures: dict[str, Any], folder: RunFolder) -> None:
    ledger, ring = figures["ledger"], figures["ring"]
    kinds = ", ".join(f"{count} {name}" for name, count in figures["operations"].items())
    security = f"{ring['security']}-bit security" if ring["security"] else "NO SECURITY"
    display.say(
        f"traced: {sum(figures['operations'].values())} operations on encrypted values, at least "
        f"{figures['depth']} levels deep "
        f"({folder.path / 'program.txt'})\n",
        dim=f"  {kinds}",
    )
    display.say(
        f"compiled for N = 2^{ring['log_n']}, {ring['levels']} levels, log2(QP) = "
        f"{ring['log_qp']:.0f}, {security}: {figures['instructions']:,} ciphertext instructions"
    )
    names = ("products", "plain_products", "rotations", "relinearizations", "rescales", "refreshes")
    display.say("  " + ", ".join(f"{ledger[name]:,} {name.replace('_', ' ')}" for name in names))
    display.say(
        f"  {ledger['refreshes']:,} ciphertexts are refreshed by the key holder in "
        f"{ledger['refresh_rounds']} rounds: an interactive evaluation, since SEAL does not "
        "bootstrap"
    )
    display.say(
        f"  keys to make: {ledger['rotation_keys']} rotation keys and the relinearization key, "
        f"{ledger['key_bytes'] / 1e6:.0f} MB"
    )


def encrypt(settings: Settings, planned: PlannedRun, folder: RunFolder, display: Display) -> None:
    """Every batch encrypted, evaluated, decrypted and compared. Writes "encrypted-<k>" for each."""
    for k in range(planned.batches):
        if folder.done(f"encrypted-{k}"):
            folder.forget(k)
            continue
        _encrypt_one(settings, planned, folder, display, k)
        folder.forget(k)


def _encrypt_one(
    settings: Settings, planned: PlannedRun, folder: RunFolder, display: Display, k: int
) -> None:
    started = time.monotonic()
    title = "encrypted" if find(settings.backend).encrypts else "on plain vectors"
    title += f", batch {k + 1} of {planned.batches}" if planned.batches > 1 else ""
    with display.bar(title, 1.0) as update, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are in the report, but for work lost
        warnings.simplefilter("default", RunFolderWarning)
        report = he_backend.run(
            planned.program,
            *planned.arguments(k),
            circuit=planned.circuit,
            backend=settings.backend,
            compare=True,
            outside="warn",
            run_dir=folder.encrypted(k) if find(settings.backend).encrypts else None,
            progress=_Shown(update),
        )
        simulated = np.asarray(report.simulated)
        update(1.0, "compared with the exact and the predicted results", 0.0)
    for message in report.outside:
        display.warn(message)
    figures = {
        "sentences": planned.count(k),
        "encrypted": report.encrypted,
        "backend": report.backend,
        "seconds": report.seconds,
        "key_seconds": report.key_seconds,
        "core_seconds": report.core_seconds,
        "bootstrapped_seconds": report.bootstrapped_seconds,
        "compare_seconds": max(
            0.0, time.monotonic() - started - report.seconds - report.key_seconds
        ),
        "peak_bytes": report.peak_bytes if report.encrypted else 0,
        "own_peak_bytes": peak_bytes(),
        "tasks": report.tasks,
        "skipped": report.skipped,
        "replaced": report.replaced,
        "outside": list(report.outside),
        "ops": [_operation(op) for op in report.ops],
    }
    arrays = {
        "encrypted": np.asarray(report.outputs),
        "reference": np.asarray(report.exact),
        "simulated": simulated,
    }
    folder.save(f"encrypted-{k}", figures, arrays)


class _Shown:
    """Phases and tasks of an encrypted run on one bar, whose length is that of the tasks."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._done = 0.0
        self._text = ""

    def __call__(self, p: he_backend.Progress) -> None:
        self._done = p.fraction
        note = f"{p.op}, task {p.tasks_done}/{p.tasks_total}" if p.tasks_total else p.op
        self._update(p.fraction, note, p.eta)

    def phase(self, text: str) -> None:
        self._text = text
        self._update(self._done, text, None)

    def at(self, fraction: float, note: str = "", left: float | None = None) -> None:
        if not note:  # of a task, the call has told it
            self._update(self._done, f"{self._text}, {fraction:.0%}", None)


def _operation(op: he_backend.OpRecord) -> dict[str, Any]:
    row = dataclasses.asdict(op)
    row["source"] = str(op.source).replace(f"{_ROOT}{os.sep}", "")
    return row


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


def _sites(trained: Trained) -> Iterator[dict[str, Any]]:
    fitted = trained.ranges_fitted
    functions = dict(trained.sites.entries)
    for name in site_names(trained.model.config):
        if name not in functions:
            continue
        function = functions[name]
        yield {
            "name": name,
            "degree": int(function.degree),
            "depth": int(function.plan.depth),
            "max_error": float(function.max_error),
            "certified": bool(function.certified),
            "fitted": [float(v) for v in fitted[name]],
            "met": [float(v) for v in trained.ranges_met[name]],
        }


def _parameters(trained: Trained) -> int:
    import jax

    return sum(int(leaf.size) for leaf in jax.tree.leaves(trained.params))


def _describe(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "description": dataset.description,
        "task": dataset.task,
        "metric": dataset.metrics[0],
        "classes": list(dataset.classes),
        "sizes": {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")},
    }


def _ring(circuit: Circuit) -> dict[str, Any]:
    params = circuit.params
    names = ("log_n", "levels", "scale_bits", "first_bits", "special_bits", "security")
    return {
        **{name: getattr(params, name) for name in names},
        "log_qp": float(params.log_qp),
        "slots": circuit.slots,
    }
