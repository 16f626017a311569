"""`hesim doctor`: is everything there that the demo needs, and does it work?"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.errors import ExperimentError
from experiments.machines import missing

__all__ = ["examine"]

MEMORY_GB, DISK_GB = 6.0, 3.0
"""What the demo needs at its peak, with a margin."""

_PACKAGES = ("jax", "flax", "optax", "numpy", "tokenizers", "orbax-checkpoint", "pyfhel")


def examine(console: Console) -> bool:
    """Print one line a check; whether all of them passed."""
    healthy = True
    for check in (_python, _packages, _pyfhel, _openfhe, _memory, _disk, _data):
        try:
            for text in check():
                console.print(Text.assemble(("✓ ", "green"), text))
        except Exception as error:  # a check may fail in any way; the others still run
            healthy = False
            console.print(Text.assemble(("✗ ", "red"), f"{type(error).__name__}: {error}"))
    return healthy


def _python() -> Iterator[str]:
    yield f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"


def _packages() -> Iterator[str]:
    for name in ("hesim", *_PACKAGES):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            if name != "hesim":
                raise ExperimentError(
                    f"{name} is not installed; `make setup` installs it"
                ) from None


def _pyfhel() -> Iterator[str]:
    """Encrypt, multiply, decrypt on a small ring."""
    import warnings

    import numpy as np

    import hesim
    from he_backend import run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a ring this small protects nothing, and need not
        ring = hesim.CKKSParams(
            log_n=12, levels=1, scale_bits=30, first_bits=40, special_bits=50, security=None
        )
        program = hesim.trace(lambda x, w: x * w, np.ones(4), np.ones(4))
        x, w = np.linspace(-1, 1, 4), np.arange(4.0) + 1
        report = run(program, x, w, params=ring)
    if not report.max_error < 1e-3:
        raise ExperimentError(f"Pyfhel is wrong by {report.max_error:.1e} on a product")
    yield f"Pyfhel encrypts, multiplies and decrypts (error {report.max_error:.0e})"


def _openfhe() -> Iterator[str]:
    """Whether it is there, and why not; the demo does without."""
    from he_backend.machines.openfhe.interpreter import find_interpreter, version_of

    reason = missing("openfhe")
    if reason is not None:
        yield f"without OpenFHE, which only --backend openfhe needs: {reason}"
        return
    path = find_interpreter()
    yield f"{version_of(path)}, bootstraps: {path}"


def _memory() -> Iterator[str]:
    import psutil

    free = psutil.virtual_memory().available / 1e9
    if free < MEMORY_GB:
        raise ExperimentError(f"{free:.1f} GB of memory are free; the demo wants {MEMORY_GB:g} GB")
    yield f"{free:.1f} GB of memory free"


def _disk() -> Iterator[str]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < DISK_GB:
        raise ExperimentError(f"{free:.1f} GB are free on this disk; the demo wants {DISK_GB:g} GB")
    yield f"{free:.1f} GB of disk free"


def _data() -> Iterator[str]:
    from models.data.datasets import cache_dir

    yield f"data sets are kept in {cache_dir()}"
