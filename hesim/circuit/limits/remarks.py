"""What `compile` says beside its plan: what it will take itself, and what would cost the same."""

from __future__ import annotations

from hesim.circuit import sizes
from hesim.circuit.circuit import Circuit
from hesim.program import Program

__all__ = ["expected", "unfilled"]

_SECONDS_EACH = 0.4
_BYTES_EACH = 18e6
"""What planning takes for an operation, at most, by models of 100 operations (measured on an x86-64
core: 0.025 to 0.37 s, 2.5 to 18 MB).
"""

_NOTICED = 3.0
"""Seconds of waiting that somebody is told of beforehand."""


def expected(program: Program) -> str:
    """What compiling a program takes at most; empty where that is next to nothing."""
    count = len(program.ops)
    if count * _SECONDS_EACH < _NOTICED:
        return ""
    return (
        f"{count} operations (mostly within {count * _SECONDS_EACH:.0f} s and "
        f"{max(count * _BYTES_EACH / 1e9, 0.1):.1f} GB; {sizes.available() / 1e9:.1f} GB free)"
    )


def unfilled(circuit: Circuit) -> str:
    """That more members of the batch would cost the same, and how many."""
    more = circuit.full_batch - circuit.batch
    return (
        f"{circuit.batch:,} members of the batch lie side by side where {circuit.full_batch:,} "
        f"would cost the same: there is room for {more:,} more, at the price of these "
        f"({circuit.ledger.seconds:,.1f} s a run, {circuit.ledger.seconds / circuit.batch:,.2f} s "
        "a member)"
    )
