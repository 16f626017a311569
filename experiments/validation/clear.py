"""What a validation knows before anything is encrypted: data, weights, the twin, and both models'
answers on all held-out rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.console import Display
from experiments.demo import stages
from experiments.errors import ExperimentError
from experiments.machines import bootstrap_of, suited
from experiments.training.finetune import remembered
from experiments.validation.encrypting import describe_dataset, site_rows
from experiments.validation.folder import RunFolder
from experiments.validation.settings import Resolved, Validation, digest_of_folder
from experiments.validation.subject import Answer, Subject, find_subject, of_sentences
from he_backend.processes.memory import peak_bytes
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch, select_rows
from models.data.datasets import Dataset, load, task_spec
from models.data.tasks import prepare_task
from models.encrypted.twin import encryptable, merged, twin_of
from models.nn.encoder import Model
from models.nn.lora import Params
from models.recipes.finetune import overlay
from models.train.evaluate import Evaluated, make_evaluate

__all__ = ["Prepared", "answers_of", "evaluate_in_the_clear", "prepare", "render"]

_LENGTHS = (8, 16, 32, 64, 128, 256, 512)
"""Tokens of a row, where they are chosen."""

_USUAL = 256
"""Rows that are encrypted, where nothing is said."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A validation's model and data.

    resolved: the settings with everything decided. dataset: what the rows are of. exact: the
    model without adapters, which are added to their matrices, for rows of the validation's length.
    model: its twin. params: of both. test:
    all held-out rows (of cosine similarities all sentences, two a pair), in the order of the
    encrypted run, which takes the first ones. labels: of rows, or of pairs.
    """

    resolved: Resolved
    dataset: Dataset
    exact: Model
    model: Model
    params: Params
    test: Batch
    labels: np.ndarray


def prepare(asked: Validation, display: Display) -> Prepared:
    """Read data and weights, and fit the twin where the model brings none along.

    Raises ExperimentError for a model without weights or a tokenizer, a task that its head is not
    for, or more rows than are held out; DataError for data that cannot be read.
    """
    subject = find_subject(asked.model, asked.config, asked.backend)
    if subject.demo is not None:
        return _of_demo(asked, subject)
    if subject.saved is None or subject.saved.tokenizer is None:
        raise ExperimentError(
            f"{asked.model} has {'no weights' if subject.saved is None else 'no tokenizer'}: "
            "validate the folder of a model that was trained"
        )
    answer = asked.answer or subject.answer
    if answer == "logits" and "corpus_digest" in subject.notes and "task" not in subject.notes:
        raise ExperimentError(
            f"{asked.model} was trained on text alone, its head is random: fine-tune it first "
            "(hesim finetune), or compare sentences by --answer cosine"
        )
    data = task_spec(asked.data or subject.notes.get("task") or "")
    if not data:
        raise ExperimentError(f"{asked.model} was trained on no task: name a data set with --data")
    where = asked.data_dir or (remembered(subject.folder) if subject.folder else None)
    dataset = load(data, data_dir=where)
    config = subject.config.replace(lora_rank=0)
    config = of_sentences(config) if answer == "cosine" else config
    most = subject.saved.config.sequence
    if asked.length is not None and asked.length > most:
        raise ExperimentError(
            f"{asked.model} reads rows of at most {most} tokens: --length {asked.length} is more"
        )
    longest = asked.length or _longest(subject)
    task = prepare_task(
        data,
        subject.saved.tokenizer,
        longest,
        data_dir=where,
        train_rows=subject.notes.get("train_rows") or None,
        token_types=config.token_types if answer == "logits" else 0,
        pairs="bi-encoder" if answer == "cosine" else config.pairs,
    )
    if answer == "logits" and task.classes != config.classes:
        raise ExperimentError(
            f"{asked.model} answers with {config.classes} logits, {data} wants {task.classes}: "
            "validate it on the task that it was trained for"
        )
    shown = _shuffled(task.test)
    least = 2 if answer == "cosine" else 1
    rows = _rows(asked, len(shown.tokens) * least, least, data)
    length = asked.length or _enough(shown, rows // least, longest)
    plain, weights = merged(Model(subject.saved.config), subject.saved.params)
    config = config.replace(sequence=length)
    if answer == "cosine":
        fresh = Model(config.replace(sequence=plain.config.sequence)).init(jax.random.key(0))
        weights = overlay(fresh, weights)
    train = task.train if answer == "logits" else _one_by_one(task.train)
    sites = subject.own
    if sites is None:
        with display.bar("fitting polynomials", 1.0) as update:
            update(0.0, "to what the model meets on training rows", None)
            sites = twin_of(Model(config), weights, train, (longest,), subject.how).sites
    twin = Model(encryptable(config, subject.how.softmax_squarings), sites)
    resolved = _resolved(asked, subject, config, answer, data, rows)
    test = shown if answer == "logits" else _one_by_one(shown)
    labels = np.asarray(shown.targets)
    return Prepared(resolved, dataset, Model(config), twin, weights, test, labels)


def _of_demo(asked: Validation, subject: Subject) -> Prepared:
    """The model and the held-out sentences of a demo's run folder, whose training is finished."""
    assert subject.demo is not None and subject.folder is not None
    if asked.answer == "cosine" or (asked.data and task_spec(asked.data) != subject.demo.data):
        raise ExperimentError(
            f"{subject.folder} is the run of a demo, validated by its logits on its own data"
        )
    folder = RunFolder.find(subject.folder)
    folder.figures("training")
    data = stages.prepare(subject.demo)
    trained = stages.train(subject.demo, data, folder, Display(quiet=True))
    rows = _rows(asked, len(data.test.tokens), 1, data.dataset.name)
    config = trained.model.config
    if asked.length is not None and asked.length != config.sequence:
        raise ExperimentError(
            f"the demo's rows have {config.sequence} tokens: leave --length out, or fine-tune a "
            "model (hesim finetune)"
        )
    resolved = _resolved(asked, subject, config, "logits", subject.demo.data, rows)
    labels = np.asarray(data.test.targets)
    exact = Model(config)
    return Prepared(resolved, data.dataset, exact, trained.model, trained.params, data.test, labels)


def _resolved(
    asked: Validation,
    subject: Subject,
    config: EncoderConfig,
    answer: Answer,
    data: str,
    rows: int,
) -> Resolved:
    least = 2 if answer == "cosine" else 1
    tokens = config.sequence * (2 if config.pairs == "bi-encoder" else 1)
    alike = {"insecure": asked.insecure, "key_holder": asked.key_holder}
    for_machine = suited(subject.how, asked.backend, bootstrap_of(asked.config), **alike)
    slots = for_machine.how.ckks.slots
    batch = min(rows, asked.rows_at_a_time(tokens, slots, least))
    folder = subject.folder
    if folder is not None and subject.demo is None and (folder / "model").is_dir():
        folder = folder / "model"
    return Resolved(
        asked,
        data,
        for_machine.how,
        for_machine.refresher,
        answer,
        rows,
        batch,
        config.sequence,
        digest_of_folder(folder),
        dataclasses.asdict(config),
    )


def _longest(subject: Subject) -> int:
    """Tokens of the rows that the model was trained on; of one that does not say, at most 128."""
    if "length" in subject.notes:
        return int(subject.notes["length"])
    return min(128, subject.config.sequence)


def _rows(asked: Validation, held_out: int, least: int, data: str) -> int:
    """Rows that are encrypted, whole pairs."""
    rows = min(_USUAL, held_out) if asked.sentences is None else asked.sentences or held_out
    if rows > held_out:
        raise ExperimentError(
            f"{data} holds out {held_out} sentences, fewer than the {rows} asked for: lower "
            "--sentences, or 0 for all"
        )
    return -(-rows // least) * least


def _enough(test: Batch, count: int, longest: int) -> int:
    """The fewest of the usual numbers of tokens that hold the first `count` rows whole."""
    most = int(np.max(np.sum(np.asarray(test.mask)[:count], axis=-1)))
    return min([n for n in _LENGTHS if n >= most] + [longest])


def _shuffled(test: Batch) -> Batch:
    """Files are sorted: the first held-out rows may nearly all have one label."""
    return select_rows(test, np.random.default_rng(0).permutation(len(test.tokens)))


def _one_by_one(pairs: Batch) -> Batch:
    """Rows of pairs (n, 2, tokens) as sentences (2 n, tokens), one after the other."""
    tokens = np.asarray(pairs.tokens)
    mask = np.asarray(pairs.mask).reshape(-1, tokens.shape[-1])
    targets = np.repeat(np.asarray(pairs.targets), 2)
    return Batch(tokens.reshape(-1, tokens.shape[-1]), mask, targets)


def cosines(embedded: np.ndarray) -> np.ndarray:
    """Cosine similarities (pairs, 1) of embeddings (2 pairs, hidden), one sentence of a pair after
    the other: the client's part, in the clear.
    """
    u, v = embedded[0::2].astype(np.float64), embedded[1::2].astype(np.float64)
    size = np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1)
    return (np.sum(u * v, axis=-1) / np.maximum(size, 1e-30))[:, None]


def answers_of(answer: str) -> Callable[[np.ndarray], np.ndarray]:
    """What the client makes of the decrypted outputs."""
    return np.asarray if answer == "logits" else cosines


@dataclasses.dataclass(frozen=True)
class Clear:
    """Both models on all held-out rows: answers (rows or pairs, .), the leading score of each, and
    what the twin met.
    """

    exact: np.ndarray
    polynomial: np.ndarray
    scores: dict[str, dict[str, float]]
    met: Evaluated


def evaluate_in_the_clear(data: Prepared) -> Clear:
    """Exact functions and polynomials on all held-out rows, without noise."""
    answer = data.resolved.answer
    made = "logits" if answer == "logits" else "embeddings"
    size = min(128, len(data.test.tokens))
    tokens = data.test.tokens.shape[-1]
    found = {}
    for kind, one in (("exact", data.exact), ("polynomial", data.model)):
        model = dataclasses.replace(one, config=one.config.replace(sequence=tokens))
        found[kind] = make_evaluate(model, size, answer=made)(data.params, data.test)
    answers = {kind: answers_of(answer)(one.answers) for kind, one in found.items()}
    scores = {kind: metrics.score(one, data.labels) for kind, one in answers.items()}
    return Clear(answers["exact"], answers["polynomial"], scores, found["polynomial"])


def note_clear(data: Prepared, clear: Clear, seconds: float, folder: RunFolder) -> None:
    """Writes "clear": what a report says of the model, its data and its polynomials."""
    described = describe_dataset(data.dataset)
    if data.resolved.answer == "cosine":
        described |= {"task": "regression", "metric": "spearman"}
    name = described["metric"]
    figures: dict[str, Any] = {
        "dataset": described,
        "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(data.params)),
        "seeds": [{"seed": 0, **{kind: score[name] for kind, score in clear.scores.items()}}],
        "sites": list(site_rows(data.model, clear.met.ranges, clear.met.outside)),
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
    }
    arrays = {"labels": data.labels, "exact": clear.exact, "polynomial": clear.polynomial}
    folder.save("clear", figures, arrays)


def outside(data: Prepared, clear: Clear) -> dict[str, float]:
    """Share of values outside, by polynomial that the forward pass meets and that was left."""
    met = clear.met.ranges
    return {n: share for n, share in clear.met.outside.items() if share > 0 and n in met}


def render(data: Prepared, clear: Clear) -> Any:
    """Scores in the clear, and for each polynomial what it met."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [
        f"{len(data.labels):,} held-out rows, {kind}: "
        + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        for kind, found in clear.scores.items()
    ]
    table = Table("polynomial", "degree", "fitted on", "met", "outside")
    for row in site_rows(data.model, clear.met.ranges, clear.met.outside):
        (low, high), (least, most) = row["fitted"], row["met"]
        table.add_row(
            row["name"],
            str(row["degree"]),
            f"{low:.3g} to {high:.3g}",
            f"{least:.3g} to {most:.3g}",
            f"{row['outside']:.2e}" if row["outside"] else "none",
            style="red" if row["outside"] else "",
        )
    return Group(*map(Text, lines), table)
