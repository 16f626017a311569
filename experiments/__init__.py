"""The jobs that a person runs: the demo, its report, and the `hesim` command.

Names load on first use, so that `hesim --version` does not wait for JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesim.lazy import attach

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

__getattr__, __dir__ = attach(__name__, _HOMES)
