"""The jobs that a person runs: the demo, its report, and the `hesim` command.

Names load on first use, so that `hesim --version` does not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ExperimentError": "experiments.errors",
    "Results": "experiments.results",
    "RunFolder": "experiments.folder",
    "Settings": "experiments.settings",
    "run_demo": "experiments.demo",
    "write_report": "experiments.report",
}

__all__ = ["ExperimentError", "Results", "RunFolder", "Settings", "run_demo", "write_report"]

if TYPE_CHECKING:
    from experiments.demo import run_demo
    from experiments.errors import ExperimentError
    from experiments.folder import RunFolder
    from experiments.report import write_report
    from experiments.results import Results
    from experiments.settings import Settings


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
