"""The verdict on a comparing run: what was judged, what left its prediction, what nobody could."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from he_backend.report.intervals import CONFIDENCE

if TYPE_CHECKING:
    from he_backend.report.report import OpRecord

__all__ = ["percent", "verdict"]


def verdict(ops: Sequence[OpRecord]) -> str:
    """What a comparison found, in a few clauses; see `Report.verdict`."""
    judged = [op for op in ops if op.judged]
    rest = _not_judged(ops)
    if not judged:
        return f"none of {len(ops)} operations could be judged{rest}"
    outside = [op for op in judged if op.excess_bits]
    count = f"{len(judged)} of {len(ops)} operations judged"
    sampled = sum(op.elements < op.size for op in judged)
    if sampled:
        count += f" ({sampled} by a part of their elements)"
    if not outside:
        nearest = min(judged, key=lambda op: op.chance)
        unlikely = (
            f"; the least likely is `{nearest.name}` at {_place(nearest)}: a sound run has one "
            f"like it with a chance of {percent(nearest.chance)}"
            if nearest.chance < 1.0
            else ""
        )
        return (
            f"{count}, all within their prediction intervals (a sound run leaves one with a chance "
            f"of {percent(1.0 - CONFIDENCE)}){unlikely}{rest}"
        )
    found = outside[0]
    side = "above" if found.excess_bits > 0 else "below"
    predicted = "; predicted was no error at all" if found.predicted_std == 0.0 else ""
    return (
        f"first outside its prediction interval: `{found.name}` at {_place(found)}, "
        f"{abs(found.excess_bits):.2f} bits {side} [{found.low:.2e}, {found.high:.2e}] at "
        f"{found.measured_std:.2e}{predicted}; the chance of that in a sound run is "
        f"{percent(found.chance)}; {len(outside) - 1} later ones; {count}{rest}"
    )


def percent(probability: float) -> str:
    """A probability in per cent, "below 0.01 %" where it is smaller than that."""
    if math.isnan(probability):
        return "unknown"
    if probability < 1e-4:
        return "below 0.01 %"
    return f"{100.0 * probability:.2g} %" if probability < 0.995 else "100 %"


def _place(op: OpRecord) -> str:
    return op.source or "an unknown place"


def _not_judged(ops: Sequence[OpRecord]) -> str:
    reasons = Counter(op.unjudged or "not compared" for op in ops if not op.judged)
    if not reasons:
        return ""
    return "; not judged: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items())
