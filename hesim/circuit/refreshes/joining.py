"""Plans in which several ciphertexts go through one refresh, where that is cheaper.

A bootstrap of a ciphertext that is full costs what one costs that holds a few numbers. What is
handed on to the next run is refreshed all at once, at the end of one and for the beginning of the
other, and takes the levels of two masks from what lies before and behind. Whether that costs more
than it saves is found by planning again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hesim.circuit.aims.aim import SPARE
from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.refreshes.contents import fingerprints, needed, work
from hesim.circuit.refreshes.joint import Core, core, joined
from hesim.circuit.refreshes.origins import origins
from hesim.circuit.refreshes.rewriting import Joining, Rewritten
from hesim.program import Var

if TYPE_CHECKING:
    from hesim.circuit.candidate import Candidate

__all__ = ["with_joint_refreshes"]

_MOST_WORK = 2**28
"""Columns times terms of plans that are looked at, a quarter of a minute of them."""

_WORTH = 4.0
"""Times what a mask and a rotation take that a refresh costs where plans are looked at."""

_TRIES = 16
"""Plans that are made for one, at most."""

_LARGEST = 2.0**10
"""What small values are multiplied by, at most."""


def with_joint_refreshes(plan: Candidate) -> Candidate:
    """The plan with what it hands on refreshed in fewer ciphertexts, or as it is if cheaper so.

    Of what would share a ciphertext with others, each is tried by itself as well.
    """
    if not _worth(plan):
        return plan
    cores, factors = _cores(plan), _factors(plan)
    widest: dict[int, int] = {}
    for stage in sorted({plan.builder.nodes[n].stage for n in factors}):
        own = [cores.get(n) for n in _outputs(plan, stage)]
        widest[stage] = max(len(c.columns) if c else plan.builder.columns for c in own)
    chosen = sorted(s for s, w in widest.items() if 2 * w <= plan.builder.columns)
    chosen.sort(key=widest.__getitem__)
    best, tries = _cheaper(plan, plan, chosen, cores, factors), 1
    for stage in list(chosen):
        fewer = [s for s in chosen if s != stage]
        if tries == _TRIES or len(fewer) < 2:
            break
        other, tries = _cheaper(best, plan, fewer, cores, factors), tries + 1
        if other is not best:
            best, chosen = other, fewer
    return best


def _worth(plan: Candidate) -> bool:
    """Whether refreshes are dear enough, and the plan small enough, to look for others."""
    aim, levels, log_n = plan.aim, plan.planner.top, plan.params.log_n
    if aim.rounds or (aim.price is not None and math.isinf(aim.price)):
        return False
    handed = sum(len(given.nodes) for given in plan.lowered.carried.values())
    if handed < 2 or work(plan.builder, plan.planner.live) > _MOST_WORK:
        return False
    lowest = aim.refresher.min_input_level
    price = max(plan.refresher.seconds(lowest, levels, log_n), aim.price or 0.0)
    kinds = Kind.DOT_PLAIN, Kind.RESCALE, Kind.ROTATE
    return price > _WORTH * sum(instruction_seconds(k, levels, 1, log_n) for k in kinds)


def _cheaper(
    best: Candidate,
    plan: Candidate,
    stages: Sequence[int],
    cores: Mapping[int, Core],
    factors: Mapping[int, float],
) -> Candidate:
    """The plan with these stages refreshed together, or the best so far where that is no dearer."""
    nodes = [n for s in stages for n in _outputs(plan, s)]
    members = joined([(n, cores[n]) for n in nodes])
    joining = Joining(tuple(stages), tuple(members), factors)
    if len(nodes) < 2 or joining.ciphers == len(nodes):
        return best
    other = plan.on(Rewritten(plan.lowered, joining))
    return other if other is not None and other.settled.seconds < best.settled.seconds else best


def _outputs(plan: Candidate, stage: int) -> list[int]:
    """Outputs of a stage that results depend on."""
    return [n for n in plan.builder.stages[stage].outputs if n in plan.planner.live]


def _factors(plan: Candidate) -> dict[int, float]:
    """By node that is handed on refreshed, the power of two that brings it to the size which the
    refresher is made for.
    """
    aim, made = plan.aim, {v.id: k for k, e in enumerate(plan.program.ops) for v in e.outputs}
    found: dict[int, float] = {}
    for pair, given in plan.lowered.carried.items():
        held = SPARE * aim.values.get(made.get(pair.result.id, -1), 0.0)
        fits = held > 0.0 and aim.fitted
        most = aim.refresher.value_range
        factor = min(2.0 ** math.floor(math.log2(most / held)), _LARGEST) if fits else 1.0
        for n in given.nodes:
            if plan.builder.nodes[n].stage in plan.settled.refreshed:
                found[n] = factor
    return found


def _cores(plan: Candidate) -> dict[int, Core]:
    """By node that is handed on, what of it has to be refreshed."""
    b, live = plan.builder, plan.planner.live
    read = _read(plan)
    wanted: set[int] = set()
    for pair, given in plan.lowered.carried.items():
        arguments = plan.lowered.nodes(pair.argument)
        read.update((o, b.support[i]) for o, i in zip(given.nodes, arguments, strict=True))
        wanted.update(given.nodes)
    seen = {n for stage in b.stages for n in stage.outputs}
    before = {n: [o for o in origins(b, n) if o.node in seen] for n in wanted}
    looked_at = {o.node for own in before.values() for o in own}
    prints = fingerprints(b, live, plan.lowered.inputs, looked_at)
    columns = needed(b, live, wanted, read)
    found: dict[int, Core] = {}
    for n in sorted(wanted):
        own = core(prints[n], columns[n], [(o, prints[o.node]) for o in before[n]])
        if own is not None:
            found[n] = own
    return found


def _read(plan: Candidate) -> dict[int, np.ndarray]:
    """bool (columns,) by node, where results are read that are not handed on."""
    b = plan.builder
    found: dict[int, np.ndarray] = {}
    carried = {pair.output for pair in plan.lowered.carried}
    for k, v in enumerate(plan.program.outputs):
        if not isinstance(v, Var) or not v.encrypted or k in carried:
            continue
        lies = plan.lowered.location(v, -1, np.append(np.arange(len(b.nodes)), -1))
        if lies is not None:
            for n in lies.ciphers.tolist():
                columns = found.setdefault(n, np.zeros(b.columns, bool))
                columns[lies.column[lies.cipher == n]] = True
    return found
