"""The shipped encoder, fine-tuned on the movie reviews, beside words counted: TF-IDF and logistic
regression on the same split.

`python -m benchmarks.reviews --seeds 3` fine-tunes every parameter of `tiny-gaussian` and prints
its held-out accuracy beside the baseline's, which `--baseline` gives alone, within a minute.
Settings are chosen on the validation rows: the baseline's regularisation is, and the model's
validation accuracy is printed for that purpose. Then the baseline is fitted again with the
validation rows, as is usual, which the model never sees.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import optimize, sparse, special

from models.data import metrics
from models.data.datasets import Dataset, Split, load
from models.data.tasks import prepare_task
from models.recipes.finetune import finetune
from models.recipes.finetune_settings import FineTune
from models.train.evaluate import make_evaluate
from models.weights.shipped import load_pretrained

__all__ = ["Baseline", "TfIdf", "baseline", "fit_logistic", "main"]

PERMITTED = 3.0
"""Points by which the model may be behind the baseline."""

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""C of the logistic regression, of which the validation rows choose: the inverse of the weight of
|w|^2 / 2 beside the summed losses."""

_WORD = re.compile(r"\b\w\w+\b")


@dataclasses.dataclass(frozen=True)
class TfIdf:
    """Words and pairs of neighbours, each with its column and inverse document frequency
    log((1 + n) / (1 + df)) + 1 (Manning, Raghavan & Schütze 2008, ch. 6, smoothed).
    """

    columns: dict[str, int]
    idf: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> TfIdf:
        """All that occur in these texts."""
        documents = Counter(term for text in texts for term in set(_terms(text)))
        found = sorted(documents)
        counts = np.array([documents[term] for term in found])
        idf = np.log((1 + len(texts)) / (1 + counts)) + 1
        return cls({term: i for i, term in enumerate(found)}, idf)

    def __call__(self, texts: Sequence[str]) -> sparse.csr_array:
        """A row a text, (n, terms), of length 1 unless no term of it is known."""
        pointers, columns, values = [0], [], []
        for text in texts:
            counts = Counter(t for t in _terms(text) if t in self.columns)
            own = [self.columns[term] for term in counts]
            row = np.array(list(counts.values()), float) * self.idf[own]
            values.extend(row / max(float(np.linalg.norm(row)), 1e-300))
            columns.extend(own)
            pointers.append(len(columns))
        shape = (len(texts), len(self.idf))
        return sparse.csr_array((values, columns, pointers), shape=shape)


def fit_logistic(
    rows: sparse.csr_array, labels: np.ndarray, strength: float
) -> tuple[np.ndarray, float]:
    """Weights (terms,) and intercept that minimise |w|^2 / 2 + strength * sum of log(1 + exp(-y z))
    for y = -1 or 1 and z = x w + b; labels (n,) are 0 or 1.
    """
    signs = 2.0 * np.asarray(labels) - 1.0

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (rows @ w[:-1] + w[-1])
        pull = -strength * signs * special.expit(-margins)
        value = w[:-1] @ w[:-1] / 2 + strength * np.logaddexp(0, -margins).sum()
        return value, np.append(w[:-1] + rows.T @ pull, pull.sum())

    start = np.zeros(rows.shape[1] + 1)  # pyright: ignore[reportOptionalSubscript]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return found.x[:-1], float(found.x[-1])


@dataclasses.dataclass(frozen=True)
class Baseline:
    """terms: words and pairs of them. strength: the C that was chosen. validation, fewer, test:
    shares of the rows that are right; of the held-out ones `fewer`, fitted on the training rows
    alone, and `test`, on the validation rows too.
    """

    terms: int
    strength: float
    validation: float
    fewer: float
    test: float


def baseline(data: Dataset) -> Baseline:
    """TF-IDF and logistic regression on a task of two classes."""
    train, validation, test = data.train, data.validation, data.test
    tried = []
    for strength in STRENGTHS:  # of equals the smallest, hence the sign
        right = _right(train.texts, train.labels, strength, validation, test)
        tried.append((right[0], -strength, right[1]))
    chosen, strength, fewer = max(tried)
    texts = (*train.texts, *validation.texts)
    labels = np.concatenate([train.labels, validation.labels])
    (again,) = _right(texts, labels, -strength, test)
    return Baseline(len(TfIdf.of(texts).idf), -strength, chosen, fewer, again)


def _right(
    texts: Sequence[str], labels: np.ndarray, strength: float, *splits: Split
) -> tuple[float, ...]:
    """Share of the rows of each split that a regression on these texts gets right."""
    count = TfIdf.of(texts)
    w, b = fit_logistic(count(texts), labels, strength)
    return tuple(metrics.accuracy(count(s.texts) @ w + b > 0, s.labels) for s in splits)


def main(arguments: Sequence[str] = ()) -> bool:
    """Print both accuracies.

    Returns:
      Whether the model is at most `PERMITTED` points behind; True for the baseline alone.
    """
    own = FineTune(method="full", epochs=3, learning_rate=5e-4, pooling="mean")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reviews")
    parser.add_argument("--baseline", action="store_true", help="without the model")
    parser.add_argument("--start", default="tiny-gaussian", help="a pre-trained model")
    parser.add_argument("--seeds", type=int, default=3, help="models to train")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--epochs", type=int, default=own.epochs)
    parser.add_argument("--rate", type=float, default=own.learning_rate, help="the highest")
    parser.add_argument("--batch", type=int, default=own.batch, help="rows of a step")
    parser.add_argument("--weight-decay", type=float, default=own.weight_decay)
    parser.add_argument("--dropout", type=float, default=own.dropout)
    parser.add_argument("--pooling", choices=["model", "token", "mean"], default=own.pooling)
    parser.add_argument("--rows", type=int, help="train on so many only")
    given = parser.parse_args(list(arguments))
    data = load("reviews")
    sizes = ", ".join(f"{len(getattr(data, n)):,} {n}" for n in ("train", "validation", "test"))
    print(f"{data.name}: {sizes}")
    words = baseline(data)
    print(
        f"TF-IDF of {words.terms:,} words and pairs, logistic regression (C = {words.strength:g}): "
        f"{words.validation:.1%} validation, {words.fewer:.1%} held out; fitted again with the "
        f"validation rows {words.test:.1%} held out",
        flush=True,
    )
    if given.baseline:
        return True
    settings = dataclasses.replace(
        own,
        epochs=given.epochs,
        learning_rate=given.rate,
        batch=given.batch,
        weight_decay=given.weight_decay,
        dropout=given.dropout,
        pooling=given.pooling,
        buckets=tuple(n for n in (16, 32) if n < given.length) + (given.length,),
    )
    scores = []
    for seed in range(given.seeds):
        validation, test = _fine_tuned(
            given.start, given.length, given.rows, dataclasses.replace(settings, seed=seed)
        )
        print(
            f"{given.start}, seed {seed}: {validation:.1%} validation, {test:.1%} held out",
            flush=True,
        )
        scores.append(test)
    behind = 100 * (words.test - float(np.mean(scores)))
    held = behind <= PERMITTED
    print(
        f"{given.start}: {np.mean(scores):.1%} in the mean of {len(scores)}, {behind:+.1f} points "
        f"behind; {PERMITTED:g} permitted: {'holds' if held else 'DOES NOT HOLD'}"
    )
    return held


def _fine_tuned(
    start: str, length: int, rows: int | None, settings: FineTune
) -> tuple[float, float]:
    """Shares of the validation and of the held-out rows that are right."""
    model, params, tokenizer, _ = load_pretrained(start, lm_head="none")
    data = prepare_task("reviews", tokenizer, length, train_rows=rows)
    done = finetune(model.config, params, data, settings)
    found = make_evaluate(done.model, buckets=settings.buckets)(done.params, data.test)
    held_out = metrics.score(found.answers, data.test.targets)["accuracy"]
    return float(done.history[-1]["accuracy"]), held_out


def _terms(text: str) -> list[str]:
    """Words of two letters and more in lower case, and pairs of neighbours."""
    words = _WORD.findall(text.lower())
    return words + [f"{a} {b}" for a, b in zip(words, words[1:])]


if __name__ == "__main__":
    sys.exit(int(not main(sys.argv[1:])))
