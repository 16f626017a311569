"""The jobs that a person runs: the demo, its report, and the `hesim` command.

Names load on first use, so that `hesim --version` does not wait for JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesim.lazy import attach

_HOMES = {
    "ExperimentError": "experiments.errors",
    "Results": "experiments.validation.results",
    "RunFolder": "experiments.validation.folder",
    "Settings": "experiments.demo.settings",
    "Validation": "experiments.validation.settings",
    "run_demo": "experiments.demo.run",
    "run_validation": "experiments.validation.run",
    "write_report": "experiments.validation.report",
}

__all__ = [
    "ExperimentError",
    "Results",
    "RunFolder",
    "Settings",
    "Validation",
    "run_demo",
    "run_validation",
    "write_report",
]

if TYPE_CHECKING:
    from experiments.demo.run import run_demo
    from experiments.demo.settings import Settings
    from experiments.errors import ExperimentError
    from experiments.validation.folder import RunFolder
    from experiments.validation.report import write_report
    from experiments.validation.results import Results
    from experiments.validation.run import run_validation
    from experiments.validation.settings import Validation

__getattr__, __dir__ = attach(__name__, _HOMES)
