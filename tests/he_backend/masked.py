"""A small bundle with a refresh and an argument that is public and changes, and what it gives."""

from __future__ import annotations

import numpy as np

import hesim
from hesim.bundles.bundle import Bundle
from tests.he_backend.conftest import quiet_params

X = np.random.default_rng(4).uniform(-1, 1, (2, 8))
W = np.linspace(0.5, 1.5, 8)
MASK = np.array([1.0, 0.0])


def exact(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (x * W) ** 2 * mask[:, None]


def bundled() -> Bundle:
    fn = lambda x, w, mask: [hesim.refresh((x * w) ** 2) * mask[:, None]]
    program = hesim.trace(fn, X, W, MASK, encrypted=0)
    circuit = hesim.compile(program, quiet_params(10, 2))
    return hesim.bundle(circuit, X, W, MASK, open=2)
