"""`hesim publish`: the newest checkpoint of a pre-training as a model folder with a model card.

The weights are rounded first, and every figure of the card is measured on the rounded ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.training.pretrain import Job, objective, read_corpus
from models.data.corpus import Corpus
from models.nn.encoder import Model
from models.nn.lora import Params, count
from models.recipes.pretrain import Guessing, HeldOut, evaluate, guessing_of, make_optimizer
from models.train.checkpoint import Checkpoints
from models.train.schedules import Budget, BudgetClock
from models.train.step import initial_state
from models.weights.folder import save_model
from models.weights.shipped import rounded

__all__ = ["publish", "unigram_loss"]


def unigram_loss(corpus: Corpus, guessing: Guessing) -> float:
    """Nats a held-out word costs if it is guessed by its frequency in the training text alone, the
    baseline that a language model has to beat; of those words that are guessed at all.
    """
    words = slice(*guessing.words)
    size = corpus.tokenizer.size
    counts = np.bincount(corpus.train.tokens, minlength=size)[words] + 1.0
    held = np.bincount(corpus.held_out.tokens, minlength=size)[words]
    return float(-(held @ np.log(counts / counts.sum())) / held.sum())


def publish(job: Job, data: Path, run: Path, target: Path, display: Display) -> dict[str, Any]:
    """Write the model folder `target` from the newest checkpoint in `run`; returns its notes.

    Raises ExperimentError if the schedule has not ended or the model is no better than guessing by
    frequency, CheckpointError if there is no checkpoint, or one of other settings, or `target`
    exists.
    """
    corpus = read_corpus(job, data, run, display)
    config = job.settings.config.replace(
        vocabulary=corpus.tokenizer.size, padding_id=corpus.tokenizer.pad_id
    )
    model, key = Model(config), jax.random.key(job.settings.seed)
    like = initial_state(model.init(key), make_optimizer(job.settings), key)
    with Checkpoints(run / "checkpoints") as store:
        state, notes = store.restore(like), store.notes()
    step, seconds = int(state.step), float(notes["seconds"])
    _check_ended(job.settings.budget, step, seconds, run)
    stored = rounded(state.params)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), stored)
    guessing = guessing_of(config, corpus.tokenizer, job.settings.share)
    found = _evaluated(model, params, corpus, guessing, job)
    baseline = unigram_loss(corpus, guessing)
    if not found.loss < baseline:
        raise ExperimentError(
            f"held-out text costs {found.loss:.3f} nats a word, by word frequency alone "
            f"{baseline:.3f}: train longer"
        )
    facts = {
        "objective": objective(job.settings),
        "attention": config.attention,
        "parameters": count(params),
        "steps": step,
        "rows": job.settings.batch,
        "tokens": step * job.settings.batch * job.length,
        "corpus_tokens": len(corpus.train.tokens),
        "corpus_digest": corpus.digest,
        "seconds": round(seconds),
        "held_out_loss": found.loss,
        "held_out_accuracy": found.accuracy,
        "held_out_loss_before_rounding": _evaluated(
            model, state.params, corpus, guessing, job
        ).loss,
        "held_out_loss_by_word_frequency": baseline,
        "ranges_met": found.ranges,
    }
    save_model(target, config, stored, corpus.tokenizer, facts)
    (target / "README.md").write_text(card(target.name, job, facts), encoding="utf-8")
    return facts


def _check_ended(budget: Budget, step: int, seconds: float, run: Path) -> None:
    share = BudgetClock(budget, seconds).progress(step)
    if share < 1:
        raise ExperimentError(
            f"the training in {run} is at {100 * share:.0f} % of its budget: its learning rate has "
            "not come down; let it end first"
        )


def _evaluated(
    model: Model, params: Params, corpus: Corpus, guessing: Guessing, job: Job
) -> HeldOut:
    rows = corpus.held_out.rows
    return evaluate(model, params, corpus, guessing, rows=rows, batch=min(rows, job.settings.batch))


def card(name: str, job: Job, facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    s = job.settings
    c = s.config
    tokens, corpus = facts["tokens"], facts["corpus_tokens"]
    ranges = "\n".join(
        f"| {site} | {low:.3g} | {high:.3g} |"
        for site, (low, high) in sorted(facts["ranges_met"].items())
    )
    targets = ", ".join(f"{function} [{low:g}, {high:g}]" for function, (low, high) in s.targets)
    penalty = (
        f"weight {s.penalty:g} over the last {100 * s.penalty_last:.0f} % of the training, towards "
        f"{targets}"
        if s.penalty
        else "none"
    )
    mean = ", its output divided by the number of tokens" if c.attention_mean else ""
    attention = f"{c.attention} attention{mean if c.attention == 'gaussian' else ''}"
    amount = f"{facts['steps']:,} steps of {s.batch} rows of {job.length} tokens"
    kind = "A decoder" if c.causal else "An encoder"
    learned, guessed = objective(s).split(": ")
    return f"""# {name}

{kind} of {c.layers} layers, {c.hidden} features and {c.heads} heads with {attention},
pre-trained by {learned}. {facts["parameters"]:,} parameters, matrices in bfloat16.

    model, params, tokenizer, notes = models.load_pretrained("{name}", classes=2)

Pooler and head were not trained: they start fresh for a task. English, lower case; a small model
of a small text, meant as a start for fine-tuning under simulated or real encryption.

## Text

{job.card or "Not described."}

{corpus:,} tokens to train on; vocabulary of {job.vocabulary:,} learned on them.

## Licence

The weights are licensed under {job.licence}, as far as that can be granted; the texts that they
were learned from keep their own terms, stated above.

## Training

- {amount}: {tokens:,} tokens, {tokens / corpus:.2f} times the text
- {facts["seconds"]:,} seconds
- {guessed}; AdamW, highest learning rate {s.rate:g}, one cycle
- range penalty: {penalty}

## Held-out text

| | nats a guessed word | share right |
|---|---|---|
| this model | {facts["held_out_loss"]:.4f} | {facts["held_out_accuracy"]:.4f} |
| before rounding | {facts["held_out_loss_before_rounding"]:.4f} | |
| by word frequency alone | {facts["held_out_loss_by_word_frequency"]:.4f} | |

Ranges met there, in the canonical variable of each site. All rows are full; texts of a few words
meet variances (inv_sqrt) twice as large, so measure your own task before you fix ranges:

| site | low | high |
|---|---|---|
{ranges}
"""
