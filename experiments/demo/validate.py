"""`hesim validate`: a trained model on all held-out sentences, in the clear.

A server cannot see that a value left the domain of its polynomial, so this is looked for before
anything is encrypted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.console import Display
from experiments.demo.settings import Settings
from experiments.demo.stages import prepare, train
from experiments.validation.folder import RunFolder
from models.data import metrics
from models.data.batches import Batch, batches_of, select_rows
from models.objectives.losses import share_outside
from models.recipes.classify import Trained
from models.train.evaluate import make_evaluate

__all__ = ["validate_run"]


def validate_run(run_dir: str | Path, console: Console) -> bool:
    """Print scores and, for each polynomial, what it met; whether everything lay in its domain.

    Raises:
      ExperimentError: the folder holds no run whose training is finished.
    """
    folder = RunFolder.find(run_dir)
    folder.figures("training")
    settings = Settings.from_plain(folder.settings)
    data = prepare(settings)
    trained = train(settings, data, folder, Display(quiet=True))
    found = make_evaluate(trained.model)(trained.params, data.test)
    scores = metrics.score(found.logits, data.test.targets)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    console.print(f"{len(found.logits):,} held-out sentences: {figures}")
    outside = _outside(trained, data.test)
    table = Table("polynomial", "fitted on", "met", "outside")
    for name, (low, high) in trained.ranges_fitted.items():
        met = found.ranges[name]
        style = "red" if outside[name] else ""
        table.add_row(
            name,
            f"{low:.3g} to {high:.3g}",
            f"{met[0]:.3g} to {met[1]:.3g}",
            f"{outside[name]:.2e}" if outside[name] else "none",
            style=style,
        )
    console.print(table)
    return not any(outside.values())


def _outside(trained: Trained, data: Batch) -> dict[str, float]:
    """Share of the values that every polynomial met outside its domain."""
    unit, fitted = trained.model.units(), trained.ranges_fitted
    total: dict[str, float] = dict.fromkeys(fitted, 0.0)
    size = min(256, len(data.tokens))
    for batch, real in batches_of(data, size):
        some = select_rows(batch, np.arange(real))
        x = trained.model.embed(trained.params, some.tokens, some.types)
        _, values = trained.model.forward_with_values(trained.params, x, some.mask)
        for name, share in share_outside(values, unit, fitted).items():
            total[name] += float(share) * real / len(data.tokens)
    return total
