"""A demo small enough for the tests: synthetic sentences in GLUE's layout, a tiny model, slots."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.console import Display
from experiments.demo.run import run_demo
from experiments.demo.settings import Settings
from experiments.validation.folder import RunFolder
from experiments.validation.results import Results
from hesim.params import CKKSParams
from models.config import preset
from models.data.datasets import load
from models.data.tokenizer import Tokenizer
from models.nn.encoder import Model
from models.recipes.classify import Recipe
from models.weights.folder import save_model

GOOD = ("fine", "bright", "lovely", "warm", "clever")
BAD = ("dull", "bleak", "clumsy", "cold", "stale")
FILLER = ("the", "film", "a", "story", "with", "actor", "scene", "plot")


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Short sentences whose label is the kind of their adjectives."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = list(rng.choice(FILLER, int(rng.integers(1, 4))))
        words += list(rng.choice(GOOD if label else BAD, 2))
        rng.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run, the same one for all processes that share its tests."""
    own = tmp_path_factory.getbasetemp()
    top = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = top / "experiments"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time."""
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def glue(shared: Path) -> Path:
    """A folder with an SST-2 of 300 training and 40 held-out sentences."""
    top = shared / "glue"
    with alone(shared):
        if not top.exists():
            _write_glue(top)
    return top


def _write_glue(top: Path) -> None:
    top.mkdir()
    (top / "SST-2").mkdir()
    for name, count in (("train", 300), ("dev", 40)):
        rows = [f"{text}\t{label}" for text, label in sentences(count, len(name))]
        text = "\n".join(["sentence\tlabel", *rows]) + "\n"
        (top / "SST-2" / f"{name}.tsv").write_text(text, encoding="utf-8")


def write_encoder(folder: Path, glue: Path, **changes: Any) -> Path:
    """A model folder with random weights and the words of the task; changes: of its preset."""
    tokenizer = Tokenizer.train(load("glue/SST-2", data_dir=glue).train.texts, size=64)
    small = {"layers": 1, "hidden": 8, "ffn": 8, "sequence": 8, "pooler": (8,)} | changes
    config = preset("tiny", vocabulary=tokenizer.size, **small)
    save_model(folder, config, Model(config).init(jax.random.key(0)), tokenizer)
    return folder


def tiny(glue: Path) -> Settings:
    """Two batches of eight sentences through one layer, on plain vectors."""
    return Settings(
        data="glue/SST-2",
        data_dir=str(glue),
        sentences=12,
        batch=8,
        config=preset("demo", layers=1, hidden=8, ffn=8, sequence=8, vocabulary=64, pooler=(8,)),
        recipe=Recipe(steps=12, polynomial_steps=4, batch=16, evaluate_every=4, save_every=4),
        ckks=CKKSParams(log_n=13, levels=3, scale_bits=36, first_bits=45, special_bits=50),
        backend="slots",
    )


@pytest.fixture(scope="session")
def settings(glue: Path) -> Settings:
    return tiny(glue)


@pytest.fixture(scope="session")
def finished(settings: Settings, shared: Path) -> tuple[Results, RunFolder, str]:
    """Results, run folder and what was printed, of an uninterrupted run."""
    log = shared / "log"
    with alone(shared), open(log, "a", encoding="utf-8") as file:
        display = Display(Console(file=file, width=110))
        results, folder = run_demo(
            settings, shared / "run", display=display, compiled=shared / "compiled"
        )
    return results, folder, log.read_text(encoding="utf-8")
