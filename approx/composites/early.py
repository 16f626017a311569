"""x * p(y) in the levels of p(y) alone, where x is at hand levels before y.

The product with x after p costs a level. Taken inside it costs none: p = q T_g + r gives
x p = (x q) T_g + x r, where only x q is short of levels; r has a level to spare and is multiplied
when it is done, and at the bottom (c x) T_j takes no more levels than c T_j. A few products pay
for the level. Cuts are chosen as in ``approx.plan``.
"""

from __future__ import annotations

from functools import lru_cache

from approx import plan
from approx.composites.graph import Node
from approx.plan import Structure, divide

_INFINITE = 10**9


class _Search:
    """The cheapest way to x * p for a structure of T_j; levels are counted from y."""

    def __init__(self, shape: Structure) -> None:
        self.shape = shape
        self._memo: dict[tuple[int, int, int], tuple[int, int]] = {}

    def best(self, d: int, parity: int, levels: int) -> tuple[int, int]:
        """(products, what to do): 0 multiply afterwards, -1 term by term, otherwise the cut."""
        key = (d, parity, levels)
        if key not in self._memo:
            options = [(_INFINITE, 0)]
            if d == 0 or d < 1 << (levels - 1):
                options.append((1 + self.shape.cost(d, parity, levels - 1), 0))
            terms = range(parity, d + 1, 2)
            if all(j == 0 or self.shape.peels(j, levels) for j in terms):
                options.append((sum(j > 0 for j in terms), -1))
            for g, depth in self.shape.depths.items():
                if 2 <= g < d and 2 * g >= d and depth < levels:
                    inner = self.best(d - g, parity ^ (g & 1), levels - 1)[0]
                    below = g - 1 if (g - 1 - parity) % 2 == 0 else g - 2
                    options.append((1 + inner + self.best(below, parity, levels)[0], g))
            self._memo[key] = min(options, key=lambda o: o[0])
        return self._memo[key]

    def total(self, d: int, parity: int, levels: int) -> int:
        """All products, those of the T_j in use included."""
        cost = self.best(d, parity, levels)[0]
        if cost >= _INFINITE:
            return _INFINITE
        used: set[int] = set()
        self._collect(d, parity, levels, used)
        return cost + len(plan.closure(used, self.shape.pairs) - {1})

    def _collect(self, d: int, parity: int, levels: int, used: set[int]) -> None:
        _, way = self.best(d, parity, levels)
        if way == 0:
            self.shape.collect(d, parity, levels - 1, used)
        elif way < 0:
            used.update(j for j in range(parity, d + 1, 2) if j > 0)
        else:
            used.add(way)
            self._collect(d - way, parity ^ (way & 1), levels - 1, used)
            below = way - 1 if (way - 1 - parity) % 2 == 0 else way - 2
            self._collect(below, parity, levels, used)


@lru_cache(maxsize=128)
def _search(degree: int) -> _Search:
    levels = plan.minimal_depth(degree)
    tried = [_Search(Structure(p)) for p in sorted(plan.families(degree, 1), key=sorted)]
    return min(tried, key=lambda s: s.total(degree, 1, levels))


def products(degree: int) -> int:
    """Products of x * p(y), p odd of this degree, in the levels of p."""
    return _search(degree).total(degree, 1, plan.minimal_depth(degree))


def nodes(series: list[float], x: int, y: int, first: int) -> list[Node]:
    """The graph of x * p(y) for an odd series p; the last node is the result.

    Args:
      series: Chebyshev coefficients, even ones zero.
      x, y: registers.
      first: the register that the first node writes.
    """
    degree = len(series) - 1
    emitter = _Emitter(_search(degree), x, y, first)
    emitter.multiplied(list(series), 1, plan.minimal_depth(degree))
    return emitter.nodes


class _Emitter:
    """Writes nodes; each T_j is computed when it is first needed."""

    def __init__(self, search: _Search, x: int, y: int, first: int) -> None:
        self.search, self.shape = search, search.shape
        self.x, self.first = x, first
        self.nodes: list[Node] = []
        self.registers = {1: y}

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return self.first + len(self.nodes) - 1

    def _product(self, a: int, b: int) -> int:
        return self._add(Node("product", (a, b)))

    def _sum(self, terms: list[tuple[float, int]], constant: float = 0.0) -> int:
        if len(terms) == 1 and terms[0][0] == 1.0 and constant == 0.0:
            return terms[0][1]
        factors, inputs = zip(*terms)
        return self._add(Node("sum", tuple(inputs), factors=tuple(factors), constant=constant))

    def _power(self, n: int) -> int:
        if n not in self.registers:
            a, b = self.shape.pairs[n]
            terms = [(2.0, self._product(self._power(a), self._power(b)))]
            if a != b:
                terms.append((-1.0, self._power(a - b)))
            self.registers[n] = self._sum(terms, -1.0 if a == b else 0.0)
        return self.registers[n]

    def multiplied(self, series: list[float], parity: int, levels: int) -> int:
        """A register of x * series, at most ``levels`` below y."""
        d = len(series) - 1
        way = self.search.best(d, parity, levels)[1]
        if way == 0:
            return self._product(self.x, self.plain(series, parity, levels - 1))
        if way < 0:
            terms = []
            for j, c in enumerate(series):
                if c != 0.0:
                    scaled = (c, self.x) if j == 0 else None
                    terms.append(
                        scaled or (1.0, self._product(self._sum([(c, self.x)]), self._power(j)))
                    )
            return self._sum(terms)
        q, r = divide(series, way)
        while len(r) > 1 and r[-1] == 0.0:
            r.pop()
        inner = self.multiplied(q, parity ^ (way & 1), levels - 1)
        terms = [(1.0, self._product(inner, self._power(way)))]
        terms.append((1.0, self.multiplied(r, parity, levels)))
        return self._sum(terms)

    def plain(self, series: list[float], parity: int, levels: int) -> int:
        """A register of the series, at most ``levels`` below y."""
        terms: list[tuple[float, int]] = []
        rest = list(series)
        for d in range(len(rest) - 1, 0, -1):
            if rest[d] == 0.0:
                continue
            if self.shape.peels(d, levels):
                terms.append((rest[d], self._power(d)))
                continue
            g = self.shape.cut(d, parity, levels)
            q, r = divide(rest[: d + 1], g)
            rest[: d + 1] = r + [0.0] * (d + 1 - g)
            inner = self.plain(q, parity ^ (g & 1), levels - 1)
            terms.append((1.0, self._product(inner, self._power(g))))
        return self._sum(terms, rest[0])
