"""Run by the tests of sharding in each of several processes that stand for hosts: `run_pretraining`
across all of them, to its end and in parts, as JSON.

    python hosts_run.py SETTINGS TEXTS OUT [asked | alone]
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.console import Display
from experiments.training import pretrain as pretraining
from experiments.training.pretrain import read_job, run_pretraining
from hesim.errors import ParameterError
from models.recipes import pretrain as training
from models.recipes.pretrain import Pretrained
from models.train import gated_halves
from models.train.checkpoint import digest_of


def main(settings: Path, texts: Path, out: Path, *how: str) -> dict[str, Any]:
    job, show = read_job(settings), Display(quiet=True)
    plain = pretraining.pretrain

    def stopped(after: int, folder: Path) -> Pretrained:
        """A run that is stopped after so many steps."""

        def until(*args: Any, **named: Any) -> Pretrained:
            asked = iter(range(1000))
            counted = {"stop": lambda: next(asked) >= after, "waiting": None}  # once a step
            return plain(*args, **{**named, **counted})

        pretraining.pretrain = until
        done = run_pretraining(job, texts, folder, show)
        pretraining.pretrain = plain
        return done

    second_only = 5 if settings.stem == "1" else 999
    if how == ("asked",):
        done = stopped(second_only, out)
        return {"step": done.step, "finished": done.finished, "params": digest_of(done.params)}
    if how == ("alone",):  # a host that does not ask the others
        gated_halves._PATIENCE = 5  # pyright: ignore[reportPrivateUsage]
        training.agreed = lambda stop: stop
        try:
            stopped(second_only, out)
        except ParameterError as error:
            print(json.dumps({"error": str(error)}), flush=True)
        os._exit(0)  # the ordinary way out waits for the other host
    whole = run_pretraining(job, texts, out / "whole", show)
    first = stopped(4, out / "parts")
    kept = sorted(path.name for path in (out / "parts" / "checkpoints").iterdir())
    second = run_pretraining(job, texts, out / "parts", show)
    with open(out / "whole" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "devices": [jax.local_device_count(), jax.device_count()],
        "losses": [float(row["loss"]) for row in rows],
        "held_out": float(rows[-1]["held_out_loss"]),
        "steps": [whole.step, first.step, second.step],
        "kept": kept,
        "whole": digest_of(whole.params),
        "parts": digest_of(second.params),
        "up": list(np.shape(whole.params["blocks"][0]["ffn"]["up"]["kernel"])),
    }


if __name__ == "__main__":
    settings, texts, out, *how = sys.argv[1:]
    print(json.dumps(main(Path(settings), Path(texts), Path(out), *how)))
