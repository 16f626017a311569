"""`python -m benchmarks.approximation [name ...]`: what the approximation module reaches.

optimum       fits against Sollya's minimax errors and times
published     the paper's polynomials, at its domains and levels or fewer
gaussian      exp on [-2^14, 0]: levels, products and noise of polynomials, then squarings
relu          ReLU on [-1, 1] and the sign composite: bits, levels, products
plans         products of every degree to 255 against Lattigo's and OpenFHE's plans
certificates  every certificate on 10^6 random points, and how tight it is
requests      what a bad request is told
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: figures are for one core

import numpy as np

import approx
from approx import noise
from benchmarks.approximation import (
    cases,
    certificates,
    plans,
    relu,
    requests,
)


def optimum(live: bool | None = None) -> bool:
    """Errors and seconds against Sollya's: stored ones, or run now if it is installed."""
    live = (
        bool(shutil.which("sollya")) and os.environ.get("SOLLYA") == "live"
        if live is None
        else live
    )
    stored = cases.stored()
    print(f"Sollya: {'run now' if live else 'stored figures (SOLLYA=live runs it)'}")
    print(f"{'case':<38} {'ours':>10} {'Sollya':>10} {'ratio':>9} {'s':>7} {'Sollya s':>9}")
    approx.fit("exp", (-1, 1), degree=3)  # imports
    ratios, times, uncertified, failed = [], [], 0, []
    for case in cases.CASES:
        start = time.perf_counter()
        p = approx.fit(case.target, case.domain, degree=case.degree)
        seconds = time.perf_counter() - start
        known = stored[case.name]
        error, their_seconds = float(known["error"]), float(known["seconds"])
        if live:
            found, seconds_now = cases.run_sollya(case)
            if math.isfinite(found):
                error, their_seconds = found, seconds_now
            else:
                failed.append(case.name)
        ratios.append(p.max_error / error)
        times.append((seconds, their_seconds, case.degree))
        uncertified += not p.certified
        print(
            f"{case.name:<38} {p.max_error:10.3e} {error:10.3e} {ratios[-1]:9.6f} "
            f"{seconds:7.3f} {their_seconds:9.3f}"
        )
    ours, theirs = (statistics.median(t[k] for t in times) for k in (0, 1))
    slowest = max(t for t, _, n in times if n == 63)
    print(
        f"{len(ratios)} cases, {uncertified} uncertified: largest ratio {max(ratios):.6f}; "
        f"median {ours:.3f} s against {theirs:.3f} s; slowest at degree 63: {slowest:.3f} s"
    )
    if failed:
        print(f"Sollya gave no answer within its time, stored figures used: {', '.join(failed)}")
    return max(ratios) <= 1.0005 and ours <= 2.0 * theirs and slowest < 1.0


# target, domain, degree, bits of worst error in exact arithmetic
PUBLISHED = [
    ("inv", (0.04, 1.0), 63, 33.2),
    ("inv", (0.8, 3.0), 15, 25.9),
    ("exp", (-2.0, 2.0), 15, 38.2),
    ("exp", (-13.0, 1.0), 15, 21.9),
    ("tanh", (-5.0, 5.0), 63, 28.9),
    ("tanh", (-16.0, 16.0), 127, 18.6),
]


def published() -> bool:
    """The paper's polynomials (Table 13): worst error in bits at its domain and depth or less."""
    print(f"{'polynomial':<34} {'levels':>6} {'products':>8} {'paper':>7} {'ours':>7}  certified")
    rows: list[tuple[Any, float]] = [
        (approx.fit(name, domain, degree=degree), bits) for name, domain, degree, bits in PUBLISHED
    ]
    rows.append((approx.composite("inv_sqrt", (5e-4, 1.0), degree=127, steps=3), 25.6))
    rows.append((approx.composite("relu", (-1.0, 1.0), degrees=(15, 15, 27)), 13.1))
    good = True
    for p, bits in rows:
        ours = -math.log2(p.max_error)
        good &= ours >= bits - 0.1
        label = f"{p.name} [{p.hull[0]:g}, {p.hull[1]:g}]"
        label += f" degree {p.degree}" if hasattr(p, "plan") else f" {dict(p.knobs)}"[:30]
        products = p.plan.nonscalar_mults if hasattr(p, "plan") else p.products
        print(f"{label:<40} {p.depth:>6} {products:>8} {bits:7.1f} {ours:7.2f}  {p.certified}")
    return good


def gaussian() -> bool:
    """The Gaussian kernel's exp on [-2^14, 0] within 1.65e-5: the front of levels and products."""
    low, goal = -(2.0**14), 1.65e-5
    x = -np.concatenate([np.linspace(0.0, 20.0, 4001), np.geomspace(20.0, 2.0**14, 2000)])
    points = []
    for degree in (
        1,
        3,
        5,
        7,
        9,
        11,
        13,
        15,
        19,
        23,
        27,
        31,
        39,
        47,
        55,
        59,
        63,
        95,
        119,
        127,
        255,
    ):
        for squarings in range(15):
            if degree == 1 and squarings < 14 or degree > 1 and squarings > 9:
                continue
            c = approx.composite("exp_squaring", (low, 0.0), degree=degree, squarings=squarings)
            if c.max_error <= goal:
                q = c.rescaled(2.0**13 if degree > 1 else 2.0**14)
                magnified = noise.amplification(q, x / (2.0**13 if degree > 1 else 2.0**14))
                points.append((q.depth, q.products, degree, squarings, c.max_error, magnified))
                break
    print("affine map folded; magnification of CKKS noise on the domain, rms, and in bits")
    print(
        f"{'levels':>6} {'products':>8} {'degree':>6} {'squarings':>9} {'error':>10} {'noise':>12}"
    )
    fewest = 10**9
    kept = []
    for row in sorted(points):
        if row[1] < fewest:
            fewest = row[1]
            kept.append(row)
            bits = math.log2(row[5])
            print(
                f"{row[0]:>6} {row[1]:>8} {row[2]:>6} {row[3]:>9} {row[4]:10.2e} "
                f"{row[5]:7.1f} {bits:+.1f}"
            )
    wanted = ((9, 10**9), (10, 18), (11, 16))
    met = [any(r[0] <= levels and r[1] <= most for r in kept) for levels, most in wanted]
    print(f"within 9 levels; 10 levels and 18 products; 11 levels and 16 products: {met}")
    return all(met)


ALL = {
    "optimum": optimum,
    "published": published,
    "gaussian": gaussian,
    "relu": relu.main,
    "plans": plans.main,
    "certificates": certificates.main,
    "requests": requests.main,
}


def main(names: list[str]) -> int:
    """Run those named, or all. Returns the number that miss what they must show."""
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no table {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    missed = 0
    for name in names or ALL:
        print(f"\n== {name} " + "=" * (76 - len(name)), flush=True)
        reached = ALL[name]()
        missed += not reached
        print("reached" if reached else "NOT reached")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
