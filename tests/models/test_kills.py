"""Trainings that SIGKILL ended at a random step go on to the bits of one that was left alone.

Pre-training has the same test among its own. A child process trains and kills itself before a step
that this process drew; no handler, no `finally` and no flush runs there.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from models.config import EncoderConfig, preset
from models.data.batches import Batch
from models.data.tasks import TaskData
from models.encrypted.settings import EncryptionSettings
from models.nn.encoder import Model
from models.nn.lora import Params
from models.recipes.distill import Distillation, distil
from models.recipes.finetune import finetune
from models.recipes.finetune_settings import FineTune
from models.sites.sites import FitSettings
from models.train.checkpoint import sites_to_json
from models.train.schedules import Budget

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = EncoderConfig(
    layers=1, hidden=16, heads=2, ffn=16, sequence=8, vocabulary=16, pooler=(8,), first_norm=True
)
BERT = preset("bert", layers=1, hidden=16, heads=2, ffn=16, sequence=8, vocabulary=16, pooler=(8,))
ROWS, BATCH, EPOCHS = 60, 16, 4
SETTINGS = FineTune(
    epochs=EPOCHS,
    batch=BATCH,
    learning_rate=5e-3,
    epsilon=0.1,
    buckets=(8,),
    method="full",
    save_seconds=0.0,
)
FIT = FitSettings(degrees=(("exp", 7), ("inv_sqrt", 7), ("relu", 7), ("tanh", 7)), margin=1.0)
FINE_TUNINGS = {
    "full": SETTINGS,
    "lora": dataclasses.replace(SETTINGS, method="lora", save_seconds=3600.0),
    "encrypted": dataclasses.replace(
        SETTINGS, method="lora", encrypted=EncryptionSettings(fit=FIT)
    ),
}
"""Checkpoints after every step, and at the ends of epochs alone."""
DISTILLATION = Distillation(
    batch=BATCH,
    budget=Budget(steps=24),
    rate=5e-3,
    buckets=(8,),
    log_every=2,
    evaluate_every=12,
    save_seconds=0.0,
)


class Ended(NamedTuple):
    """Where a training ended: parameters, the approximations in the model, what else it says."""

    params: Params
    sites: str
    history: list[dict[str, Any]]
    finished: bool


def rows(count: int, seed: int) -> Batch:
    """The class is whether many tokens are above 9; lengths from 3 to 8."""
    random = np.random.default_rng(seed)
    tokens = random.integers(3, 16, (count, 8)).astype(np.int32)
    lengths = random.integers(3, 9, count)
    mask = (np.arange(8) < lengths[:, None]).astype(np.float32)
    many = ((tokens > 9) * mask).sum(axis=1) > 0.45 * lengths
    return Batch(tokens * mask.astype(np.int32), mask, many.astype(np.int32))


def train(kind: str, folder: str | Path, stop: Callable[[], bool] = lambda: False) -> Ended:
    """The training of that name from its beginning, or from what the folder holds."""
    if kind == "distilled":
        teacher, student = Model(BERT), Model(BERT.replace(attention="gaussian"))
        params = teacher.init(jax.random.key(1))
        done = distil(
            teacher, params, student, params, rows(ROWS, 0), DISTILLATION, folder, stop=stop
        )
        return Ended(done.params, "", [], done.finished)
    names = ("accuracy", "f1", "matthews")
    data = TaskData("planted", 2, names, rows(ROWS, 0), rows(16, 1), rows(16, 2), truncated=0.0)
    start, settings = Model(CONFIG).init(jax.random.key(7)), FINE_TUNINGS[kind]
    store = Path(folder) / "checkpoints"
    result = finetune(CONFIG, start, data, settings, stop=stop, checkpoints=store)
    sites = sites_to_json(result.model.sites) if result.model.sites.entries else ""
    return Ended(result.params, sites, result.history, result.finished)


class Counted:
    """A `stop`, which a training asks before each of its steps, that never says so. Before the
    answer number `end`, from 0, it ends this very process.
    """

    def __init__(self, end: int = -1) -> None:
        self.asked, self.end = 0, end

    def __call__(self) -> bool:
        if self.asked == self.end:
            os.kill(os.getpid(), signal.SIGKILL)
        self.asked += 1
        return False


CHILD = """
import sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, {here!r})
from test_kills import Counted, train
train({kind!r}, {folder!r}, Counted({end}))
"""


@pytest.mark.parametrize(
    "kind", ["full", "lora", pytest.param("encrypted", marks=pytest.mark.slow), "distilled"]
)
def test_a_killed_training_goes_on_to_the_same_bits(kind: str, tmp_path: Path):
    """It is killed after the first quarter, when there is a checkpoint at an epoch's end at the
    latest.
    """
    uninterrupted, going_on = Counted(), Counted()
    whole = train(kind, tmp_path / "whole", uninterrupted)
    total = uninterrupted.asked
    end = int(np.random.default_rng(os.getpid()).integers(total // EPOCHS + 1, total))
    print(f"{kind}: killed when asked {end} of {total} times")
    folder = tmp_path / "run"
    code = CHILD.format(here=str(Path(__file__).parent), kind=kind, folder=str(folder), end=end)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    resumed = train(kind, folder, going_on)
    assert 0 < going_on.asked < total, "nothing was resumed"
    assert whole.finished and resumed.finished
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert resumed.sites == whole.sites and bool(resumed.sites) == (kind == "encrypted")
    assert resumed.history == whole.history
