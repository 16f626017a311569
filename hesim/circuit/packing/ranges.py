"""Gains by which slots hold what a bootstrap is made for.

A bootstrap takes slots in [-1, 1], and its error is the same for large values and for small ones.
A power of two is taken out of values that are larger, and put into those that are smaller, where it
costs no level: in the coefficients of public products and of polynomials. The gain of a result is
chosen there, and products, sums and moves hand it on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping

from hesim.circuit import gains
from hesim.circuit.packing.wishes import LINEAR, expected_gains, numbers, public_product
from hesim.circuit.publics import Publics
from hesim.primitives import PRIMITIVES
from hesim.program import Equation, Program, Var

__all__ = ["fitted_wishes"]

_WAYS = 4
"""Sets of coefficients that are tried to make one value smaller."""

_ROUNDS = 2
"""Passes through the program: what makes a value smaller may make room for another."""

_MOST_LOOKED_AT = 2_000_000
"""Operations that are looked at, about six seconds of them, after which gains stay as they are."""

_SLACK = 3.0
"""Bits by which values that are not refreshed may be larger, where it is known which are."""

_SAME = 1e-9


def fitted_wishes(
    program: Program,
    publics: Publics,
    wished: Mapping[int, float],
    sizes: Mapping[int, float],
    most: float,
    *,
    start: Mapping[int, float] | None = None,
    refreshed: Collection[int] | None = None,
) -> dict[int, float]:
    """Per value id of the result of a public product or a polynomial, the gain that it should have:
    those that are wished for already, and others by which slots hold `most` at most and half of it
    at least, as far as that takes no levels.

    Args:
      sizes: by value id, largest absolute value. most: that a slot should hold.
      start: gains to begin with, more than those wished for.
      refreshed: ids of the values that are, of which the slots should be so; any if it is not yet
        known.

    Examples:
      >>> import hesim, numpy as np
      >>> from hesim.circuit.packing.ranges import fitted_wishes
      >>> from hesim.circuit.publics import Publics
      >>> w = np.ones((4, 4)) + np.eye(4)
      >>> program = hesim.trace(lambda x: x @ w, np.ones(4))
      >>> (product,) = program.ops
      >>> found = fitted_wishes(program, Publics(program), {}, {product.outputs[0].id: 5.0}, 1.0)
      >>> list(found.values())
      [8.0]
    """
    return _Fitting(program, publics, wished, sizes, most, start, refreshed).run()


class _Fitting:
    def __init__(
        self,
        program: Program,
        publics: Publics,
        wished: Mapping[int, float],
        sizes: Mapping[int, float],
        most: float,
        start: Mapping[int, float] | None,
        refreshed: Collection[int] | None,
    ):
        self._program, self._publics, self._sizes, self._most = program, publics, sizes, most
        self._refreshed = refreshed
        self._numbers = numbers(program, publics)
        self._made = {v.id: eqn for eqn in program.ops for v in eqn.outputs}
        self._fixed = frozenset(wished)
        self._wished = dict(wished) | dict(start or {})
        self._ways, self._left = self._all_ways(), _MOST_LOOKED_AT
        self._gains = self._expected(self._wished)
        self._judgement = self._judged(self._gains)

    def run(self) -> dict[int, float]:
        for _ in range(_ROUNDS):
            before = dict(self._wished)
            for number in self._made if self._refreshed is None else self._refreshed:
                self._fit(number)
            if self._wished == before:
                break
        return self._wished

    def _fit(self, number: int) -> None:
        over = self._over(number, self._gains)
        if over is None or -1.0 < over <= 0.0:
            return
        ways = self._ways.get(number, [])
        if over <= 0.0 and self._refreshed is None:  # others may need it as it is
            ways = [frozenset([number])] if self._free(number) else []
        bits = range(math.ceil(over), 0, 1 if over < 0.0 else -1)
        for group, by in itertools.product(ways, bits):
            if self._try(group, 2.0**by):
                return

    def _over(self, number: int, found: Mapping[int, float]) -> float | None:
        """log2 of what slots hold of a value over what they should; None if it is not known."""
        size = self._sizes.get(number, 0.0)
        if not 0.0 < size < math.inf:
            return None
        return math.log2(size / abs(found[number]) / self._most)

    def _try(self, group: frozenset[int], factor: float) -> bool:
        """Gives these results gains so many times as large if that takes no more levels and makes
        it better.
        """
        self._left -= len(self._made)
        if self._left < 0:
            return False
        trial = self._wished | {v: self._gains[v] * factor for v in group}
        found = self._expected(trial)
        levels, excess, lost = self._judged(found)
        before = self._judgement
        if levels > before[0] or excess > before[1] + _SAME:
            return False
        if excess >= before[1] - _SAME and lost >= before[2] - _SAME:
            return False
        self._wished, self._gains, self._judgement = trial, found, (levels, excess, lost)
        return True

    def _expected(self, wished: Mapping[int, float]) -> dict[int, float]:
        return expected_gains(self._program, self._publics, wished, self._numbers)

    def _judged(self, found: Mapping[int, float]) -> tuple[int, float, float]:
        """Levels that gains take where they do not meet or are applied; the bits by which values
        are too large, in sum, and those by which they are too small.
        """
        levels = 0
        for eqn in self._program.ops:
            secret = [found[v.id] for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
            levels += _levels(eqn, secret)
        excess = lost = 0.0
        for v in self._made:
            over = self._over(v, found)
            if over is None:
                continue
            looked_at = self._refreshed is None or v in self._refreshed
            excess += max(over - (0.0 if looked_at else _SLACK), 0.0)
            lost += max(-over, 0.0) if looked_at else 0.0
        return levels, excess, lost

    def _free(self, number: int) -> bool:
        """Whether a value is the result of coefficients to which no gain is given yet."""
        eqn = self._made.get(number)
        if eqn is None or number in self._fixed:
            return False
        if eqn.name == "polynomial":
            return eqn.params["poly"].degree > 0
        return public_product(eqn, self._publics)

    def _all_ways(self) -> dict[int, list[frozenset[int]]]:
        """By value id, sets of free values each of which hands a gain on to it, a few."""
        found: dict[int, list[frozenset[int]]] = {}
        for number, eqn in self._made.items():
            if self._free(number):
                found[number] = [frozenset([number])]
                continue
            secret = [v.id for v in eqn.inputs if isinstance(v, Var) and v.encrypted]
            parts = [found.get(v, []) for v in dict.fromkeys(secret)]
            linear = eqn.name in LINEAR or PRIMITIVES[eqn.name].moves
            if linear and parts:
                ways = (frozenset().union(*pick) for pick in itertools.product(*parts))
            elif len(parts) > 1 or len(secret) == 1 and eqn.name != "polynomial":
                ways = itertools.chain.from_iterable(parts)
            else:  # a square hands on the square of a gain
                ways = iter(())
            found[number] = list(itertools.islice(ways, _WAYS))
        return found


def _levels(eqn: Equation, secret: list[float]) -> int:
    """Levels that an operation takes to apply gains of its encrypted operands."""
    if eqn.name == "polynomial":
        return abs(abs(eqn.params["poly"].scale * secret[0]) - 1.0) > _SAME
    both = len(eqn.inputs) == len(secret) == 2
    if eqn.name in ("add", "add_any", "sub") and both and eqn.inputs[0] is not eqn.inputs[1]:
        sign = -1 if eqn.name == "sub" else 1
        return gains.meeting(secret[0], sign * secret[1]) is None
    if eqn.name in ("mul", "dot_general", "square", "integer_pow"):
        return sum(not gains.stays_pending(g) for g in secret) if both or len(secret) == 1 else 0
    return 0
