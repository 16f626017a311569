"""Run by the tests of sharding in a process with four devices, or in each of two with two: the
figures of fine-tunings and of a distillation on one device and on a mesh of 2 x 2, as JSON.

    python spread_training.py FOLDER full|lora|encrypted|distil ... [COORDINATOR NUMBER]
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from test_distill import SETTINGS as DISTILLATION
from test_distill import STUDENT, TEACHER, rows, started, teacher
from test_finetune import CONFIG, SETTINGS, encrypted_settings, task

from models.data.batches import select_rows
from models.nn.encoder import Model
from models.recipes.distill import distil
from models.recipes.finetune import finetune
from models.train.checkpoint import digest_of
from models.train.schedules import Budget
from models.train.sharding import make_mesh, start_hosts


def main(folder: Path, *trainings: str) -> None:
    if trainings[-1].isdigit():
        start_hosts(trainings[-2], 2, int(trainings[-1]))
        trainings = trainings[:-2]
    jax.config.update("jax_disable_most_optimizations", True)
    found = {
        how: [
            train(how, folder / f"{how} {i}", mesh)
            for i, mesh in enumerate((None, make_mesh(2, 2)))
        ]
        for how in trainings
    }
    print(json.dumps(found))


def train(how: str, folder: Path, mesh: Mesh | None) -> dict[str, Any]:
    losses: list[float] = []

    def report(progress: Any) -> None:
        losses.append(progress.figures["loss"])

    if how == "distil":
        settings = dataclasses.replace(
            DISTILLATION, budget=Budget(steps=8), log_every=1, save_seconds=0.0
        )
        models = (TEACHER, teacher(), STUDENT, started())
        done = distil(*models, rows(200, 4), settings, folder, report=report, mesh=mesh)
    else:
        data, settings = task(), dataclasses.replace(SETTINGS, epochs=1, save_seconds=0.0)
        if how == "full":
            settings = dataclasses.replace(settings, method="full")
        elif how == "encrypted":
            data = dataclasses.replace(data, train=select_rows(data.train, np.arange(32)))
            settings = dataclasses.replace(encrypted_settings(epochs=1), save_seconds=0.0)
        start = Model(CONFIG).init(jax.random.key(7))
        done = finetune(CONFIG, start, data, settings, report=report, checkpoints=folder, mesh=mesh)
    query = done.params["blocks"][0]["attention"]["query"]["kernel"]
    spec = getattr(getattr(query, "sharding", None), "spec", "one device")
    return {"losses": losses, "query": str(spec), "digest": digest_of(done.params)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
