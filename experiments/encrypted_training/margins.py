"""How much room the values of a training leave in the domains of its polynomials, site by site.

Under encryption nobody sees a value leave: what a rehearsal met must lie well inside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from models.recipes.encrypted_training import EncryptedTraining
from models.sites.sites import Range, function_of

__all__ = ["Margin", "cause", "margins_of", "thin"]

_THIN = 0.1
"""Least room, as a share of half a domain, that is not warned of."""

_BY_RATIO = ("inv", "inv_sqrt", "softmax_inv")
"""Functions of a positive value, whose room is measured in ratios."""

_CLOSED_BELOW = ("loss.inv", "optimizer.inv_sqrt")
"""Sites whose value cannot fall below the low end: sums of exponentials of numbers of mean 0, and
moments with epsilon."""


@dataclasses.dataclass(frozen=True)
class Margin:
    """What a site met, the domain of its polynomial, and the room: the least distance to an end of
    the domain that can be left, as a share of half the width (of positive values, of their
    logarithms'); negative outside.
    """

    name: str
    met: Range
    domain: Range
    room: float

    @property
    def option(self) -> str:
        """Of the section `twin` that gives the range."""
        return {"loss.exp": "loss_exp"}.get(self.name, function_of(self.name))

    @property
    def remedy(self) -> str:
        """What to change where there is no room."""
        if self.name == "optimizer.inv_sqrt":
            return "a larger epsilon, or a smaller multiplier, under [training]"
        if self.name == "loss.inv":
            return "a wider loss_exp under [twin], by which its range is set"
        low, high = self.wider
        return f"{self.option} = [{low:.4g}, {high:.4g}], or a larger margin, under [twin]"

    @property
    def wider(self) -> Range:
        """A range that holds what was met with half as much again."""
        low, high = self.met
        if function_of(self.name) in _BY_RATIO and low > 0:
            return min(low / 1.5, self.domain[0]), max(high * 1.5, self.domain[1])
        if function_of(self.name) == "exp" and self.name != "loss.exp":
            return min(1.5 * low, self.domain[0]), 0.0
        reach = 1.5 * max(abs(low), abs(high))
        return min(-reach, self.domain[0]), max(reach, self.domain[1])


def margins_of(training: EncryptedTraining, met: Mapping[str, Range]) -> list[Margin]:
    """Of every site that met something, the tightest first."""
    domains = training.domains
    rows = [
        Margin(n, met[n], domains[n], _room(n, met[n], domains[n])) for n in met if n in domains
    ]
    return sorted(rows, key=lambda row: row.room)


def cause(training: EncryptedTraining, met: Mapping[str, Range]) -> Margin:
    """The site that was left: the tightest of those whose values are numbers still, since after the
    first one nothing is.
    """
    rows = margins_of(training, met)
    return next((row for row in rows if all(map(math.isfinite, row.met))), rows[0])


def thin(rows: list[Margin]) -> list[Margin]:
    """Those that have little room, or none."""
    return [row for row in rows if not row.room >= _THIN]


def _room(name: str, met: Range, domain: Range) -> float:
    function = function_of(name)
    (low, high), (a, b) = met, domain
    if not all(map(math.isfinite, met)):
        return -math.inf
    if function in _BY_RATIO:
        if low <= 0 and name not in _CLOSED_BELOW:
            return -math.inf
        low, high, a, b = (math.log(max(x, 1e-300)) for x in (low, high, a, b))
    half = (b - a) / 2
    below, above = (low - a) / half, (b - high) / half
    if name in _CLOSED_BELOW:
        return above
    if function == "exp" and name != "loss.exp":
        return below
    return min(below, above)
