"""Which configurations are tried: every combination, some at random, or those that survive.

The reference is always one of them. Beside the combinations of `Space.knobs` stand those of
`Space.singly`, one value at a time with all else as in the reference.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.errors import ExperimentError
from experiments.studies.tradeoff.knobs import KNOBS, Knobs

__all__ = ["DESIGNS", "Rung", "Space", "combinations", "configurations", "rungs", "survivors"]

DESIGNS = ("factorial", "random", "halving")
_MOST = 100_000
_LEAST_SHARE = 10_000
"""One in so many of the training rows is the smallest share: names of rows tell no smaller ones."""


@dataclasses.dataclass(frozen=True)
class Space:
    """What may be chosen. knobs, singly: by name the values that are tried. paired: knobs whose
    values go together by their place, such as a ring and who refreshes in it. design: one of
    `DESIGNS`; the last two draw `count` combinations with `seed`. keep: of successive halving, the
    share that survives a rung is 1 / keep. rungs: how many there are, the last one with all rows
    and seeds. Raises ExperimentError for what is no space.
    """

    reference: Knobs = Knobs()
    knobs: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    singly: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    paired: tuple[str, ...] = ()
    design: str = "factorial"
    count: int = 60
    seed: int = 0
    keep: int = 3
    rungs: int = 3

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise ExperimentError(f"design is one of {', '.join(DESIGNS)}, not {self.design!r}")
        if self.count < 1 or self.keep < 2 or self.rungs < 1:
            raise ExperimentError(
                f"configurations={self.count} and rungs={self.rungs} are at least 1, "
                f"keep={self.keep} is at least 2"
            )
        if self.seed < 0:
            raise ExperimentError(f"seed={self.seed} of what is drawn is at least 0")
        halvings = min(self.rungs - 1, _LEAST_SHARE.bit_length())
        if self.design == "halving" and self.keep**halvings > _LEAST_SHARE:
            raise ExperimentError(
                f"{self.rungs} rungs with keep={self.keep} begin with less than 1 in "
                f"{_LEAST_SHARE:,} of the training rows: take fewer rungs, or a smaller keep"
            )
        for name, values in (*self.knobs, *self.singly):
            if name not in KNOBS:
                raise ExperimentError(f"no knob {name!r}; there are {', '.join(KNOBS)}")
            if not values or len(set(values)) < len(values) and name not in self.paired:
                raise ExperimentError(f"{name} needs values, each once: {list(values)}")
            for value in values:
                dataclasses.replace(self.reference, **{name: value})  # knows what can be
        if sum(len(values) for _, values in self.singly) > _MOST:
            raise ExperimentError(f"[singly] has more than {_MOST:,} values: leave out some")
        unknown = [name for name in self.paired if name not in KNOBS]
        if unknown or len(set(self.paired)) < len(self.paired) or len(self.paired) == 1:
            raise ExperimentError(
                f"paired={list(self.paired)} names two knobs or more, each once, of "
                f"{', '.join(KNOBS)}"
            )
        lengths = {name: len(values) for name, values in self.knobs if name in self.paired}
        if self.paired and (set(lengths) != set(self.paired) or len(set(lengths.values())) > 1):
            raise ExperimentError(
                f"the paired knobs {', '.join(self.paired)} need equally many values under [knobs]"
            )


def combinations(space: Space) -> list[Knobs]:
    """Every combination of `space.knobs`. ExperimentError beyond a hundred thousand."""
    known = dict(space.knobs)
    axes: list[list[Mapping[str, Any]]] = [
        [{name: value} for value in values]
        for name, values in space.knobs
        if name not in space.paired
    ]
    if space.paired:
        rows = zip(*(known[name] for name in space.paired), strict=True)
        axes.append([dict(zip(space.paired, row, strict=True)) for row in rows])
    size = math.prod(map(len, axes))
    if size > _MOST:
        raise ExperimentError(f"{size:,} combinations are more than {_MOST:,}: leave out values")
    found: dict[Knobs, None] = {}
    for chosen in itertools.product(*axes):
        changes = {name: value for part in chosen for name, value in part.items()}
        found[dataclasses.replace(space.reference, **changes)] = None
    return list(found)


def configurations(space: Space) -> list[Knobs]:
    """What is tried, the reference first, each once."""
    found = combinations(space)
    if space.design != "factorial" and len(found) > space.count:
        rows = np.random.default_rng(space.seed).choice(len(found), space.count, replace=False)
        found = [found[row] for row in sorted(rows)]
    alone = [
        dataclasses.replace(space.reference, **{name: value})
        for name, values in space.singly
        for value in values
    ]
    return list(dict.fromkeys([space.reference, *alone, *found]))


@dataclasses.dataclass(frozen=True)
class Rung:
    """One round. share: of the training rows. seeds: of the study's, the first ones. survivors: how
    many configurations go on.
    """

    share: float
    seeds: int
    survivors: int


def rungs(space: Space, count: int, seeds: int) -> list[Rung]:
    """The rounds of a study of so many configurations and seeds: one, but of successive halving."""
    if space.design != "halving":
        return [Rung(1.0, seeds, count)]
    found = []
    for number in range(space.rungs):
        last = number == space.rungs - 1
        left = count if last else max(1, math.ceil(count / space.keep ** (number + 1)))
        share = float(space.keep) ** (number + 1 - space.rungs)
        found.append(Rung(share, seeds if last else 1, left))
    return found


def survivors(
    tried: Sequence[Knobs], score: Callable[[Knobs], tuple[float, float] | None], count: int
) -> list[Knobs]:
    """The best `count` by (score, cost): the front that nothing dominates, then the next one, each
    by falling score; the first of `tried`, the reference, always. None: not to be compared.
    """
    rows = [(knobs, found) for knobs in tried if (found := score(knobs)) is not None]
    order = list(itertools.chain.from_iterable(_fronts(rows)))
    chosen = set(order[:count]) | {tried[0]}
    return [knobs for knobs in tried if knobs in chosen]


def _fronts(rows: list[tuple[Knobs, tuple[float, float]]]) -> Iterator[list[Knobs]]:
    left = list(rows)
    while left:
        front = [
            row
            for row in left
            if not any(_dominates(other[1], row[1]) for other in left if other is not row)
        ]
        yield [knobs for knobs, _ in sorted(front, key=lambda row: -row[1][0])]
        left = [row for row in left if row not in front]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """A score at least as high at a cost at most as large, and not the same of both."""
    return one[0] >= other[0] and one[1] <= other[1] and one != other
