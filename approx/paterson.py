"""Paterson and Stockmeyer's plan: about half the products, for series that are not odd or even.

A series of degree below k (2^m - 1), with lambda T_{k (2^m - 1)} added, is (T_K + c) q + s with
K = k 2^(m-1), where q and s have degree k (2^(m-1) - 1) and are treated alike, and c has degree
below k: one product for two blocks of k coefficients (Paterson and Stockmeyer 1973; in the
Chebyshev basis Chen, Chillotti and Song 2019). The added term is taken off at the end. Depth
ceil(log2 k) + m, products k + 2m + 2^(m-1) - 4.

Dividing by q is well conditioned if its leading coefficient outweighs the others: lambda is a
whole number above twice the 1-norm of the coefficients from K on, mostly 1, and every s gets a
leading coefficient of its own size. What is added and taken off again costs CKKS noise: one to
three bits, as ``approx.noise`` measures.

This module imports neither JAX nor NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from approx.plan import Plan, Structure, Writer, divide, finished

LARGEST = 32  # lambda; above it the series is divided another way


@lru_cache(maxsize=4096)
def shape(degree: int, depth: int) -> tuple[int, int, int] | None:
    """(products, k, m) of the cheapest plan within ``depth`` levels, or None if there is none."""
    best: tuple[int, int, int] | None = None
    for m in range(2, depth + 1):
        k = degree // (2**m - 1) + 1
        if (k - 1).bit_length() + m <= depth:
            found = (k + 2 * m + 2 ** (m - 1) - 4, k, m)
            best = found if best is None else min(best, found)
    return best


def build(series: Sequence[float], depth: int) -> Plan | None:
    """The plan, or None if there is none of this depth or lambda would be too large."""
    found = shape(len(series) - 1, depth)
    if found is None:
        return None
    _, k, m = found
    added = max(1, math.ceil(2.0 * sum(abs(c) for c in series[k << (m - 1) :])))
    return None if added > LARGEST else _Emitter(k, m).run(list(series), added)


class _Emitter(Writer):
    """Writes the steps for one k and m."""

    def __init__(self, k: int, m: int) -> None:
        self.k, self.m = k, m
        doubled = {k << i for i in range(m)}
        tops = {k * (2**i - 1) for i in range(1, m)}
        super().__init__(Structure(frozenset(set(range(1, k + 1)) | doubled | tops)).pairs)

    def run(self, series: list[float], added: int) -> Plan:
        top = self.k * (2**self.m - 1)
        padded = series + [0.0] * (top + 1 - len(series))
        padded[top] += added
        products, scalars, adds, constant = self._terms(padded, self.m)
        whole, part = self.k << (self.m - 1), self.k * (2 ** (self.m - 1) - 1)
        products.append((-2 * added, self.power(whole), self.power(part)))
        adds.append((added, self.power(self.k)))
        return finished(self.steps, self.write(products, scalars, adds, constant))

    def _line(self, series: Sequence[float]) -> list[tuple[float, int]]:
        return [(c, self.power(j)) for j, c in enumerate(series) if j > 0 and c != 0.0]

    def _terms(
        self, series: list[float], m: int
    ) -> tuple[list[tuple[int, int, int]], list[tuple[float, int]], list[tuple[int, int]], float]:
        """The terms that sum to a series of degree k (2^m - 1)."""
        if m == 1:
            return [], self._line(series), [], series[0]
        whole = self.k << (m - 1)
        q, r = divide(series, whole)
        lead = max(sum(abs(c) for c in r), 1e-3 * abs(q[-1]))
        r[len(q) - 1] -= lead
        c, s = _quotient(r, q)
        s += [0.0] * (len(q) - len(s))
        s[len(q) - 1] += lead
        factor = self.write([], self._line(c), [(1, self.power(whole))], c[0])
        inner = self._terms(q, m - 1)
        products, scalars, adds, constant = self._terms(s, m - 1)
        return [(1, factor, self.write(*inner)), *products], scalars, adds, constant


def _quotient(r: Sequence[float], q: Sequence[float]) -> tuple[list[float], list[float]]:
    """Quotient and remainder of two Chebyshev series."""
    rest, degree = list(r), len(q) - 1
    c = [0.0] * max(len(rest) - degree, 1)
    for i in range(len(rest) - 1 - degree, -1, -1):
        if i == 0:
            c[0] = rest[degree] / q[degree]
            for j, value in enumerate(q):
                rest[j] -= c[0] * value
        else:
            c[i] = 2.0 * rest[degree + i] / q[degree]
            for j, value in enumerate(q):
                rest[i + j] -= 0.5 * c[i] * value
                rest[abs(i - j)] -= 0.5 * c[i] * value
    return c, rest[:degree]
