"""Some of a run's sentences bootstrapped besides, on another machine and with no key holder: what
was found, or why it was not run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.validation.folder import RunFolder
from he_backend.report.html import Row, power_of_two

__all__ = ["STAGE", "Bootstrapped", "rows"]

STAGE = "bootstrapped"
"""Of the run folder."""


@dataclasses.dataclass(frozen=True)
class Bootstrapped:
    """The first sentences of a run, evaluated once more where the server bootstraps.

    Attributes:
      figures: ring, counts, seconds, bytes and errors; or only "reason", why nothing was run.
      encrypted, reference: logits, decrypted and of the polynomial model in float64.
    """

    figures: dict[str, Any]
    encrypted: np.ndarray
    reference: np.ndarray

    @classmethod
    def load(cls, folder: RunFolder) -> Bootstrapped | None:
        """What a run folder has of it, None if nothing was asked for."""
        if not folder.done(STAGE):
            return None
        figures = folder.figures(STAGE)
        if "reason" in figures:
            return cls(figures, np.empty((0, 1)), np.empty((0, 1)))
        arrays = folder.arrays(STAGE)
        return cls(figures, arrays["encrypted"], arrays["reference"])

    @property
    def reason(self) -> str:
        """Why it was not run; empty if it was."""
        return str(self.figures.get("reason", ""))

    @property
    def name(self) -> str:
        """Of this way of running the model, for tables."""
        count = len(self.encrypted)
        return f"the first {count} bootstrapped on OpenFHE, no key holder"

    @property
    def max_error(self) -> float:
        """Of a logit, against the polynomial model's."""
        return float(np.max(np.abs(self.encrypted - self.reference), initial=0.0))


def rows(found: Bootstrapped) -> list[Row]:
    """The rows of a table that tell of it."""
    if found.reason:
        return [Row("OpenFHE", "not run", found.reason)]
    f = found.figures
    security = f"{f['security']}-bit security" if f["security"] else "a small one: NO SECURITY"
    largest = f"{found.max_error:.2e} = {power_of_two(found.max_error)}"
    return [
        Row("ring", f"N = 2^{f['log_n']}, {f['levels']} levels", security),
        Row(
            "bootstraps",
            f"{f['refreshes']:,}",
            f"{f['rounds']:,} in sequence; the key holder was asked nothing in between",
        ),
        Row("largest error of a logit", largest, f"of {len(found.encrypted)} sentences"),
        Row(
            "standard deviation of its error",
            power_of_two(f["measured_std"]),
            f"{power_of_two(f['predicted_std'])} predicted",
        ),
        Row(
            "encrypted evaluation",
            f"{f['seconds']:.1f} s",
            f"keys {f['key_seconds']:.1f} s; {f['core_seconds']:.0f} core-seconds",
        ),
        Row("peak memory", f"{f['peak_bytes'] / 1e9:.2f} GB", "all processes, each at its peak"),
    ]
