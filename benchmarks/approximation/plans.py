"""Products of two ciphertexts of our plans, Lattigo's and OpenFHE's, for every degree 1 to 255.

The two counters follow the published algorithms, written anew. Lattigo (v6, circuits/common/
polynomial; Bossuat et al. 2021): baby steps below 2^s, powers of two above, division by the
largest fitting power of two, the leading part cut again where it would cost a level; depth
ceil(log2(degree + 1)). OpenFHE (EvalChebyshevSeriesPS; Chen, Chillotti and Song 2019): degree <
k (2^m - 1), depth ceil(log2 k) + m, k + 2m + 2^(m-1) - 4 products; term by term below degree 5.
All depths exclude the affine map. Equal depth is compared with equal depth.
"""

from __future__ import annotations

import math

import numpy as np

from approx import plan, planning
from approx.polynomial import clenshaw

LARGEST = 255


def lattigo(degree: int, parity: int | None = None) -> tuple[int, int]:
    """(depth, products) of Lattigo's plan for a dense, odd (1) or even (0) series."""
    log_degree = degree.bit_length()
    split = _optimal_split(log_degree)
    powers: set[int] = {1}
    for k in range(1, log_degree):
        _power(1 << k, powers)
    for i in range((1 << split) - 1, 2, -1):
        if parity is None or i % 2 == parity:
            _power(i, powers)
    return log_degree, len(powers) - 1 + _parts(degree, degree, split, True) - 1


def _optimal_split(log_degree: int) -> int:
    """log2 of the number of baby steps: of the two middle values the cheaper one."""
    half = log_degree // 2

    def cost(s: int) -> int:
        return (1 << s) + (1 << (log_degree - s)) + log_degree - s

    return half + 1 if cost(half) - 3 > cost(half + 1) - 3 else half


def _power(n: int, powers: set[int]) -> None:
    if n == 0 or n in powers:
        return
    if n & (n - 1) == 0:
        a = b = n // 2
    else:
        top = 1 << ((n - 1).bit_length() - 1)
        a, b = top - 1, n + 1 - top
    for j in (a, b, abs(a - b)):
        _power(j, powers)
    powers.add(n)


def _parts(degree: int, largest: int, split: int, lead: bool) -> int:
    """Number of sub-polynomials; all but one are multiplied by a power."""
    if degree < 1 << split:
        limit = (1 << largest.bit_length()) - (1 << (split - 1)) if split > 1 else largest
        if lead and split > 1 and largest > limit:
            return _parts(degree, largest, _optimal_split(degree.bit_length()), lead)
        return 1
    power = 1 << split
    while power < degree // 2 + 1:
        power <<= 1
    below = power - 1 if largest == degree else largest - (degree - power + 1)
    return _parts(degree - power, largest, split, lead) + _parts(power - 1, below, split, False)


def openfhe(degree: int) -> tuple[int, int]:
    """(depth, products) of OpenFHE's plan: the least depth, then the fewest products."""
    if degree < 5:
        return (max(degree - 1, 0).bit_length() + 1, degree - 1)
    choices = []
    for m in range(2, 10):
        k = degree // (2**m - 1) + 1
        choices.append(((k - 1).bit_length() + m, k + 2 * m + 2 ** (m - 1) - 4))
    return min(choices)


def stability(degree: int) -> float:
    """Largest float64 error of the plans of both depths by the 1-norm of a random series."""
    u = np.cos(np.linspace(0.0, np.pi, 501))
    series = np.random.default_rng(degree).standard_normal(degree + 1)
    series /= np.sum(np.abs(series))
    worst = 0.0
    for depth in {plan.minimal_depth(degree), openfhe(degree)[0]}:
        built = planning.build(series.tolist(), depth)
        assert built.nonscalar_mults <= planning.products(degree, None, depth)
        gap = plan.evaluate(built, u) - clenshaw(tuple(series.tolist()), u)
        worst = max(worst, float(np.max(np.abs(gap))))
    return worst


def main() -> bool:
    """Print the table; returns whether no degree needs more products than either library."""
    print("dense series; depth and products without the affine map")
    print(
        f"{'degree':>6} {'depth':>5} {'ours':>5} {'Lattigo':>8}   {'depth':>5} {'ours':>5} OpenFHE"
    )
    worse = {"Lattigo": 0, "Lattigo, odd": 0, "Lattigo, even": 0, "OpenFHE": 0}
    saved = dict.fromkeys(worse, 0)
    for degree in range(1, LARGEST + 1):
        depth = math.ceil(math.log2(degree + 1))
        ours, theirs = planning.products(degree, None, depth), lattigo(degree)[1]
        fhe_depth, fhe = openfhe(degree)
        at_fhe = planning.products(degree, None, fhe_depth)
        rows = [("Lattigo", ours, theirs), ("OpenFHE", at_fhe, fhe)]
        parity = degree % 2
        named = "Lattigo, odd" if parity else "Lattigo, even"
        rows.append((named, planning.products(degree, parity, depth), lattigo(degree, parity)[1]))
        for name, a, b in rows:
            worse[name] += a > b
            saved[name] += b - a
        if degree in (3, 5, 7, 13, 15, 27, 31, 59, 63, 119, 127, 247, 255) or any(
            a > b for _, a, b in rows
        ):
            print(
                f"{degree:>6} {depth:>5} {ours:>5} {theirs:>8}   {fhe_depth:>5} {at_fhe:>5} {fhe}"
            )
    for name in worse:
        print(f"{name:<14} worse at {worse[name]} degrees of {LARGEST}; saved {saved[name]} in all")
    largest = max(stability(n) for n in range(1, LARGEST + 1))
    print(f"float64 evaluation error / coefficient 1-norm, degrees 1 to {LARGEST}: {largest:.1e}")
    return not any(worse.values()) and largest < 1e-12


if __name__ == "__main__":
    main()
