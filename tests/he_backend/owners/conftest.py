"""A bundle with a refresh and an open argument, an evaluator at work, and who calls it."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.owners import door
from he_backend.owners.certificates import make_pair
from hesim.bundles.bundle import Bundle

X = np.random.default_rng(3).uniform(-1, 1, (4, 8))
MASK = np.array([1, 0, 1, 1], np.int32)


def fn(x, w, mask):
    h = (x * w) * mask.astype(w.dtype)[:, None]
    return {"out": hesim.refresh(h) * w, "w": w}


def exact(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    w = np.linspace(0.5, 1.5, 8)
    return x * w * mask[:, None] * w


def bundled(scale: float = 1.0) -> Bundle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = hesim.CKKSParams(10, 2, 30, 40, 50, security=None)
    w = np.linspace(0.5, 1.5, 8, dtype=np.float32) * np.float32(scale)
    program = hesim.trace(fn, X.astype(np.float32), w, MASK, encrypted=0)
    return hesim.bundle(hesim.compile(program, params), X, w, MASK, open=2)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return bundled()


@pytest.fixture(scope="session")
def other_bundle() -> Bundle:
    """Of the same Circuit with another weight."""
    return bundled(1.25)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(door, "_REFUSAL_SECONDS", 0.05)
    monkeypatch.setattr("he_backend.owners.evaluator._BUSY_SECONDS", 0.2)


Serving = Callable[..., AbstractContextManager[he_backend.Evaluator]]


@pytest.fixture
def serving(bundle, tmp_path) -> Serving:
    """An evaluator that serves in a thread, on plain vectors unless it is told otherwise."""

    @contextlib.contextmanager
    def serve(**settings: Any) -> Iterator[he_backend.Evaluator]:
        asked = {"backend": "slots", "workers": 1, **settings}
        address = asked.pop("address", f"unix:{tmp_path / 'socket'}")
        model = asked.pop("bundle", bundle)
        folder = asked.pop("folder", tmp_path / "evaluator")
        with he_backend.Evaluator(model, address, folder, **asked) as evaluator:
            thread = threading.Thread(target=evaluator.serve)
            thread.start()
            try:
                yield evaluator
            finally:
                evaluator.close()
                thread.join(30)
                assert not thread.is_alive()

    return serve


@pytest.fixture
def connecting(bundle, tmp_path):
    """A key holder's connection."""

    def connect(evaluator: he_backend.Evaluator | str, **settings: Any) -> he_backend.Connection:
        address = evaluator if isinstance(evaluator, str) else evaluator.address
        asked = {"backend": "slots", "clients": 1, "folder": tmp_path / "holder", **settings}
        half = asked.pop("bundle", bundle).for_key_holder()
        return he_backend.connect(half, address, **asked)

    return connect


@pytest.fixture
def log(tmp_path) -> Callable[[], str]:
    """What the evaluator wrote down."""
    return lambda: (tmp_path / "evaluator" / "evaluator.log").read_text()
