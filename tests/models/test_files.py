"""A saved model's files have the permissions that the user's umask gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from models.config import preset
from models.data.tokenizer import Tokenizer
from models.nn.encoder import Model
from models.weights.folder import save_model


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_saved_model_can_be_read_by_whom_the_umask_admits(umask: int, tmp_path: Path):
    config = preset("tiny", layers=1, hidden=8, ffn=8, sequence=8, pooler=(8,), vocabulary=8)
    words = Tokenizer.train(["some words of a text"], size=40)
    words.save(tmp_path / "tokenizer.json")
    assert _mode(tmp_path / "tokenizer.json") == 0o666 & ~umask
    folder = tmp_path / "model"
    save_model(folder, config, Model(config).init(jax.random.key(0)), words)
    assert _mode(folder) == 0o777 & ~umask
    assert {_mode(path) for path in folder.iterdir()} == {0o666 & ~umask}
