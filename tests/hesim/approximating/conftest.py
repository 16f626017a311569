"""What the tests of `approximate` share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hesim
from hesim.params import InsecureParametersWarning


@pytest.fixture(scope="session")
def ring() -> hesim.CKKSParams:
    """A ring too small to be secure, with room for a polynomial or two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        return hesim.CKKSParams(
            log_n=11, levels=6, scale_bits=36, first_bits=46, special_bits=56, security=None
        )


@pytest.fixture(scope="session")
def normal() -> Callable[..., Any]:
    """Seeded normal numbers in float32, by shape and seed."""

    def made(*shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    return made
