"""The verdict on a comparing run: what was judged, what left its prediction, what nobody could."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from he_backend.report.intervals import CONFIDENCE

if TYPE_CHECKING:
    from he_backend.report.intervals import Overall
    from he_backend.report.report import OpRecord

__all__ = ["percent", "together", "verdict"]


def verdict(ops: Sequence[OpRecord], overall: Overall | None = None) -> str:
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
    whole = f"; {together(overall)}" if overall is not None else ""
    if outside:
        found = outside[0]
        side = "above" if found.excess_bits > 0 else "below"
        predicted = "; predicted was no error at all" if found.predicted_std == 0.0 else ""
        return (
            f"first outside its prediction interval: `{found.name}` at {_place(found)}, "
            f"{abs(found.excess_bits):.2f} bits {side} [{found.low:.2e}, {found.high:.2e}] at "
            f"{found.measured_std:.2e}{predicted}; the chance of that in a sound run is "
            f"{percent(found.chance)}; {len(outside) - 1} later ones; {count}{whole}{rest}"
        )
    nearest = min(judged, key=lambda op: op.chance)
    likely = f"`{nearest.name}` at {_place(nearest)}"
    if overall is not None and not overall.sound:
        return (
            f"{together(overall)}: the chance of that in a sound run is {percent(overall.chance)}; "
            f"{count}, none outside its own prediction interval, and {likely} is the least likely: "
            f"the chance of one like it is {percent(nearest.chance)}{rest}"
        )
    unlikely = (
        f"; the least likely is {likely}: a sound run has one like it with a chance of "
        f"{percent(nearest.chance)}"
        if nearest.chance < 1.0
        else ""
    )
    return (
        f"{count}, all within their prediction intervals (a sound run is, with a chance of "
        f"{percent(CONFIDENCE)}){unlikely}{whole}{rest}"
    )


def together(overall: Overall) -> str:
    """What all operations together say about a run's noise, as a clause."""
    more = "larger" if overall.bits >= 0.0 else "smaller"
    return (
        f"all together, errors are {abs(overall.bits):.2f} bits {more} than predicted (a sound run "
        f"stays within {overall.margin:.2f})"
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
