"""The fewest rounds: refreshes that wait for each other, on the longest path of a plan.

How low a stage can run depends on how many rounds may still follow it. These levels are found from
the results back; then, from the inputs on, a stage is refreshed where what follows it needs more
levels than there are. Where stages with different rounds to go meet, that is no proof of the
fewest, so plans that refresh above some level are looked at, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from hesim.circuit.refreshes.costs import NEVER, Placed, StageCosts

__all__ = ["fewest_rounds"]

_TRIES = 5
"""Plans that are made for one number of rounds, each with what the one before showed."""

_MORE = 3
"""Rounds above the bound for which a plan is looked for."""


def fewest_rounds(costs: StageCosts) -> Placed | None:
    """A plan with the fewest rounds found, the cheapest of them; None if levels never suffice."""
    found = [(costs.rounds(p.refreshed.__contains__), p.seconds, p) for p in costs.greedy()]
    most = min([rounds for rounds, _, _ in found], default=len(costs.names))
    table: list[list[int]] = []
    for rounds in range(most + 1):
        table.append(_levels(costs, table))
        if max(table[-1], default=0) > costs.top:
            if rounds > _MORE and table[-1] == table[-2]:
                break  # more rounds help no further
            continue
        for placed in _plans(costs, table):
            found.append((costs.rounds(placed.refreshed.__contains__), placed.seconds, placed))
        if found and min(found, key=lambda entry: entry[:2])[0] <= rounds:
            break
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def _levels(costs: StageCosts, fewer: list[list[int]]) -> list[int]:
    """By place, the lowest level at which a stage can run if one more round may follow, or end, it
    than those of the tables `fewer`; `NEVER` if it cannot.
    """
    level = [0] * len(costs.names)
    before = fewer[-1] if fewer else None
    for k in reversed(range(len(level))):
        level[k] = NEVER if k in costs.forced else costs.at(k, level, False)[0]
        if before is not None and (costs.free[k] or k in costs.forced):
            level[k] = min(level[k], costs.at(k, before, True)[0])
    return level


def _plans(costs: StageCosts, table: list[list[int]]) -> Iterator[Placed]:
    """A plan with no more rounds than the last table allows, if it is found."""
    left = [len(table) - 1] * len(costs.names)
    for _ in range(_TRIES):
        before, (chosen, left) = left, _refreshed(costs, table, left)
        placed = costs.placed(chosen)
        if isinstance(placed, Placed):
            yield placed
            return
        if left == before:
            return


def _refreshed(
    costs: StageCosts, table: list[list[int]], known: list[int]
) -> tuple[set[int], list[int]]:
    """Places to refresh so that no more rounds follow than the last table allows, as late as it is
    possible, and by place how many may follow the start of a stage.

    known: such numbers of an earlier try: stages that others reach with fewer rounds to go than
    their own operand has.
    """
    left = [len(table) - 1] * len(costs.names)
    there = [costs.top] * len(costs.names)  # levels that operands have
    chosen: set[int] = set()
    for k, inputs in enumerate(costs.inputs):
        for i in inputs:
            ended = i in chosen
            left[k] = min(left[k], left[i] - ended)
            drop = costs.shapes[i].drop
            there[k] = min(there[k], costs.highest if ended else there[i] - drop)
        if k in costs.forced:
            chosen.add(k)
        elif costs.free[k] and left[k] > 0:
            later = {u: table[max(min(left[k], known[u]), 0)][u] for u in costs.users[k]}
            if costs.at(k, later, False)[0] > there[k]:
                chosen.add(k)
    return chosen, left
