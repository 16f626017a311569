"""Evaluation plans: a Chebyshev series as a straight-line program of least multiplicative depth.

The series is cut by Chebyshev division, ``P = Q * T_g + R``, ``T_n = 2 T_g T_{n-g} - T_{|n-2g|}``
(Paterson and Stockmeyer 1973; baby steps and giant steps). Only the leading quotient is short of
levels: everything in ``R`` may be as deep as ``P`` itself, and its products and scalar terms are
summed with those of ``Q * T_g`` before the single rescale. Which ``T_j`` to compute and where to
cut is found by dynamic programming over several families of such sets, so that a plan of degree d
has depth ceil(log2(d + 1)) exactly and few products of two ciphertexts. Even and odd series (up
to a constant and a linear term, which cost nothing) use ``T_j`` of one parity only. Which plan a
series gets is for ``approx.planning``.

This module imports neither JAX nor NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from approx.errors import ApproxError

_INFINITE = 10**9


@dataclass(frozen=True)
class Step:
    """register[out] = sum f*r[a]*r[b] + sum c*r[j], rescaled once, + sum k*r[j] + constant.

    Attributes:
      out: number of the register written.
      products: (f, a, b): products of two registers, f a small integer (repeated addition).
      scalars: (c, j): registers times a constant, at the double scale of the products.
      adds: (k, j): registers times a small integer, added after the rescale; they cost no level.
      constant: added after the rescale.

    The step takes one level below its products and scalars; with neither, it takes none.

    Examples:
      >>> from approx import Step
      >>> double_angle = Step(out=1, products=((2, 0, 0),), constant=-1.0)  # T_2 = 2 u^2 - 1
      >>> double_angle.out, double_angle.scalars
      (1, ())
    """

    out: int
    products: tuple[tuple[int, int, int], ...] = ()
    scalars: tuple[tuple[float, int], ...] = ()
    adds: tuple[tuple[int, int], ...] = ()
    constant: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A straight-line program; register 0 is u = T_1(u), already mapped to [-1, 1].

    Attributes:
      steps: in order; each writes a new register.
      depth: levels from register 0 to the output (the affine map is not in it).
      nonscalar_mults: products of two registers.
      scalar_mults: products of a register and a constant.
      output: the register that holds the result.

    Examples:
      >>> import approx
      >>> plan = approx.fit("exp", (-1, 1), degree=7).plan
      >>> plan.depth, plan.nonscalar_mults, len(plan.steps) > 2
      (3, 5, True)
    """

    steps: tuple[Step, ...]
    depth: int
    nonscalar_mults: int
    scalar_mults: int
    output: int

    @cached_property
    def register_depths(self) -> tuple[int, ...]:
        """Levels consumed by each register, register 0 first."""
        return tuple(_depths(self.steps))

    def __repr__(self) -> str:
        return (
            f"Plan(depth={self.depth}, nonscalar_mults={self.nonscalar_mults}, "
            f"scalar_mults={self.scalar_mults}, steps={len(self.steps)})"
        )


def minimal_depth(degree: int) -> int:
    """ceil(log2(degree + 1)): the least number of levels for a general series of that degree."""
    return max(degree, 0).bit_length()


def finished(steps: Sequence[Step], output: int) -> Plan:
    """The plan of these steps, its depth and products counted."""
    return Plan(
        steps=tuple(steps),
        depth=_depths(steps)[output],
        nonscalar_mults=sum(len(s.products) for s in steps),
        scalar_mults=sum(len(s.scalars) for s in steps),
        output=output,
    )


def evaluate(plan: Plan, u: Any) -> Any:
    """Runs the plan on u (NumPy or JAX array, or anything with + and *), already in [-1, 1]."""
    registers: list[Any] = [u]
    for step in plan.steps:
        total: Any = None
        for factor, a, b in step.products:
            term = registers[a] * registers[b]
            total = _accumulate(total, factor, term)
        for c, j in step.scalars:
            total = _accumulate(total, 1, c * registers[j])
        for k, j in step.adds:
            total = _accumulate(total, k, registers[j])
        if total is None:
            total = 0.0 * u
        registers.append(total + step.constant if step.constant else total)
    return registers[plan.output]


def _accumulate(total: Any, factor: int, term: Any) -> Any:
    scaled = term if factor == 1 else factor * term
    return scaled if total is None else total + scaled


def _depths(steps: Sequence[Step]) -> list[int]:
    depths = [0]
    for step in steps:
        below = [max(depths[a], depths[b]) for _, a, b in step.products]
        below += [depths[j] for _, j in step.scalars]
        level = 1 + max(below) if below else 0
        depths.append(max([level] + [depths[j] for _, j in step.adds]))
    return depths


# --- which T_j to compute, and where to cut -------------------------------------------------------

_Key = tuple[int, int | None, int]  # degree, parity (None: both), levels


class Structure:
    """A set of T_j, how to compute each, and the best cut of a series for the levels at hand.

    Attributes:
      pairs: n -> (a, b) with T_n = 2 T_a T_b - T_{a-b}.
      depths: n -> levels of T_n.
    """

    def __init__(self, powers: frozenset[int]) -> None:
        self.pairs, self.depths = _pairs(powers)
        self._usable = sorted((g for g in self.depths if g >= 2), reverse=True)
        self._memo: dict[_Key, tuple[int, int]] = {}

    def peels(self, d: int, levels: int) -> bool:
        """Whether T_d is at hand for a scalar product within ``levels`` levels."""
        return self.depths.get(d, levels) < levels

    def cost(self, d: int, parity: int | None, levels: int) -> int:
        """Products to combine a dense series of degree d, those for the T_j themselves left out."""
        stride = 1 if parity is None else 2
        while d >= 1 and self.peels(d, levels):
            d -= stride
        return self._best(d, parity, levels)[0] if d >= 1 else 0

    def cut(self, d: int, parity: int | None, levels: int) -> int:
        """The g of the best P = Q * T_g + R for deg P = d, or 0 if there is none."""
        return self._best(d, parity, levels)[1]

    def _best(self, d: int, parity: int | None, levels: int) -> tuple[int, int]:
        if d >= 1 << levels:
            return _INFINITE, 0
        key = (d, parity, levels)
        if key not in self._memo:
            best, where = _INFINITE, 0
            for g in self._usable:
                if g >= d or 2 * g < d or self.depths[g] >= levels:
                    continue
                total = 1 + self.cost(d - g, _times(parity, g), levels - 1)
                if total < best:
                    total += self.cost(_below(g, parity), parity, levels)
                if total < best:
                    best, where = total, g
            self._memo[key] = best, where
        return self._memo[key]

    def total(self, d: int, parity: int | None, levels: int) -> int:
        """All products of the plan: those that combine, and those of every T_j that it uses."""
        combining = self.cost(d, parity, levels)
        if combining >= _INFINITE:
            return _INFINITE
        used: set[int] = set()
        self.collect(d, parity, levels, used)
        return combining + len(closure(used, self.pairs) - {1})

    def collect(self, d: int, parity: int | None, levels: int, used: set[int]) -> None:
        stride = 1 if parity is None else 2
        while d >= 1 and self.peels(d, levels):
            used.add(d)
            d -= stride
        if d >= 1:
            g = self.cut(d, parity, levels)
            used.add(g)
            self.collect(d - g, _times(parity, g), levels - 1, used)
            self.collect(_below(g, parity), parity, levels, used)


def _times(parity: int | None, g: int) -> int | None:
    """Parity of the quotient by T_g."""
    return None if parity is None else parity ^ (g & 1)


def _below(g: int, parity: int | None) -> int:
    """Largest degree below g of this parity."""
    return g - 1 if parity is None or (g - 1 - parity) % 2 == 0 else g - 2


@lru_cache(maxsize=4096)
def structure(degree: int, parity: int | None, depth: int) -> Structure:
    """The structure of fewest products for a series of this degree and parity at this depth."""
    best, fewest = None, _INFINITE
    for powers in sorted(families(degree, parity), key=sorted):
        candidate = Structure(powers)
        products = candidate.total(degree, parity, depth)
        if products < fewest:
            best, fewest = candidate, products
    if best is None:
        raise ApproxError(f"No plan of depth {depth} for degree {degree}; allow one more level.")
    return best


def families(degree: int, parity: int | None) -> set[frozenset[int]]:
    """Sets of indices j whose T_j are worth computing: baby steps, and giant steps by doubling."""
    top = max(degree, 1)
    limit = min(top, 2 * math.isqrt(top) + 3)
    twos = {1 << i for i in range(top.bit_length())}
    families: set[frozenset[int]] = set()
    for baby in range(1, limit + 1):
        if parity == 1:
            babies = set(range(1, 2 * baby, 2)) | {2}
            seeds = {2 * baby - 2, 2 * baby, 2 * baby + 2}
        elif parity == 0:
            babies = {2 * j for j in range(1, baby + 1)}
            seeds = {2 * baby, 2 * baby + 2}
        else:
            babies = set(range(1, baby + 1))
            seeds = {baby, baby + 1}
        for seed in seeds - {0}:
            giants = {seed << i for i in range(top.bit_length())}
            for extra in (set(), twos, {3 * g for g in giants}, {3 * g for g in giants} | twos):
                families.add(frozenset({j for j in babies | giants | extra if j <= top} | {1}))
    return families


def _pairs(powers: frozenset[int]) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
    """How to compute each T_n at least depth from smaller ones; those out of reach are left out."""
    depths: dict[int, int] = {1: 0}
    pairs: dict[int, tuple[int, int]] = {}
    for n in sorted(powers - {1}):
        best: tuple[int, int, int] | None = None
        for a in range((n + 1) // 2, n):
            b = n - a
            if a in depths and b in depths and (a == b or a - b in depths):
                candidate = (1 + max(depths[a], depths[b]), a, b)
                best = candidate if best is None else min(best, candidate)
        if best is not None:
            depths[n], pairs[n] = best[0], (best[1], best[2])
    return pairs, depths


def closure(used: set[int], pairs: dict[int, tuple[int, int]]) -> set[int]:
    """The T_j used, with all those that they are computed from."""
    needed: set[int] = set()
    waiting = list(used)
    while waiting:
        n = waiting.pop()
        if n >= 1 and n not in needed:
            needed.add(n)
            if n > 1:
                a, b = pairs[n]
                waiting += [a, b, a - b]
    return needed


# --- from the structure and the coefficients to steps -------------------------------------------


class Writer:
    """Writes steps; each power T_j is computed when it is first needed.

    Args:
      pairs: per power n, the (a, b) of T_n = 2 T_a T_b - T_{a - b}.
    """

    def __init__(self, pairs: Mapping[int, tuple[int, int]]) -> None:
        self.pairs = pairs
        self.steps: list[Step] = []
        self.registers = {1: 0}

    def write(
        self,
        products: list[tuple[int, int, int]],
        scalars: list[tuple[float, int]],
        adds: list[tuple[int, int]],
        constant: float,
    ) -> int:
        """Appends a step and returns its register."""
        out = len(self.steps) + 1
        self.steps.append(Step(out, tuple(products), tuple(scalars), tuple(adds), constant))
        return out

    def power(self, n: int) -> int:
        """The register of T_n."""
        if n not in self.registers:
            a, b = self.pairs[n]
            product = (2, self.power(a), self.power(b))
            adds = [(-1, self.power(a - b))] if a != b else []
            self.registers[n] = self.write([product], [], adds, -1.0 if a == b else 0.0)
        return self.registers[n]


class DividingWriter(Writer):
    """Writes a series by peeling and dividing, as a structure says."""

    def __init__(self, shape: Structure) -> None:
        super().__init__(shape.pairs)
        self.shape = shape

    def run(self, series: list[float], parity: int | None, depth: int) -> Plan:
        return finished(self.steps, self._node(series, parity, depth))

    def _node(self, series: list[float], parity: int | None, levels: int) -> int:
        """Writes a register holding the series, at most ``levels`` deep, and returns its number."""
        products: list[tuple[int, int, int]] = []
        scalars: list[tuple[float, int]] = []
        rest = list(series)
        for d in range(len(rest) - 1, 0, -1):
            if rest[d] == 0.0:
                continue
            if self.shape.peels(d, levels):
                scalars.append((rest[d], self.power(d)))
                continue
            g = self.shape.cut(d, parity, levels)
            quotient, remainder = divide(rest[: d + 1], g)
            rest[: d + 1] = remainder + [0.0] * (d + 1 - g)
            inner = self._node(quotient, _times(parity, g), levels - 1)
            products.append((1, inner, self.power(g)))
        return self.write(products, scalars, [], rest[0])


def divide(series: Sequence[float], g: int) -> tuple[list[float], list[float]]:
    """Quotient and remainder by T_g of a Chebyshev series of degree at most 2g."""
    remainder = list(series)
    quotient = [0.0] * (len(series) - g)
    for n in range(len(series) - 1, g, -1):
        c = remainder[n]
        quotient[n - g] = 2.0 * c
        remainder[abs(2 * g - n)] -= c
    quotient[0] = remainder[g]
    return quotient, remainder[:g]
