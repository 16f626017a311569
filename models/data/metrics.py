"""Evaluation metrics of GLUE, in NumPy: accuracy, Matthews and Pearson and Spearman correlation,
F1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Share of equal entries."""
    return float(np.mean(np.asarray(predicted) == np.asarray(labels)))


def confusion(predicted: ArrayLike, labels: ArrayLike) -> tuple[int, int, int, int]:
    """(true positives, false positives, false negatives, true negatives) of binary labels, 1 being
    positive.
    """
    p, y = np.asarray(predicted).astype(bool), np.asarray(labels).astype(bool)
    return int(np.sum(p & y)), int(np.sum(p & ~y)), int(np.sum(~p & y)), int(np.sum(~p & ~y))


def f1(predicted: ArrayLike, labels: ArrayLike) -> float:
    """2 tp / (2 tp + fp + fn) of binary labels; 0 where nothing is positive."""
    tp, fp, fn, _ = confusion(predicted, labels)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def matthews(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Matthews correlation of binary labels; 0 where a margin is empty."""
    tp, fp, fn, tn = confusion(predicted, labels)
    root = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    return (tp * tn - fp * fn) / root**0.5 if root else 0.0


def pearson(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Linear correlation; 0 where one side is constant."""
    x, y = np.asarray(predicted, float).ravel(), np.asarray(labels, float).ravel()
    x, y = x - x.mean(), y - y.mean()
    root = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / root if root else 0.0


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    x = np.asarray(values, float).ravel()
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def spearman(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Pearson correlation of the ranks."""
    return pearson(ranks(predicted), ranks(labels))


CLASSIFICATION: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
}
REGRESSION: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "pearson": pearson,
    "spearman": spearman,
}


def score(logits: np.ndarray, targets: ArrayLike) -> dict[str, float]:
    """Accuracy, F1 and Matthews of logits (n, 2), accuracy of (n, more), correlations of ratings
    (n, 1).
    """
    if logits.shape[-1] == 1:
        return {name: f(logits[:, 0], targets) for name, f in REGRESSION.items()}
    predicted = logits.argmax(axis=-1)
    if logits.shape[-1] > 2:
        return {"accuracy": accuracy(predicted, targets)}
    return {name: f(predicted, targets) for name, f in CLASSIFICATION.items()}
