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
from approx import noise, remez
from approx.targets import NAMED
from benchmarks import approximation_cases, approximation_plans, approximation_relu


def optimum(live: bool | None = None) -> bool:
    """Errors and seconds against Sollya's: stored ones, or run now if it is installed."""
    live = (
        bool(shutil.which("sollya")) and os.environ.get("SOLLYA") == "live"
        if live is None
        else live
    )
    stored = approximation_cases.stored()
    print(f"Sollya: {'run now' if live else 'stored figures (SOLLYA=live runs it)'}")
    print(f"{'case':<38} {'ours':>10} {'Sollya':>10} {'ratio':>9} {'s':>7} {'Sollya s':>9}")
    approx.fit("exp", (-1, 1), degree=3)  # imports
    ratios, times, uncertified = [], [], 0
    for case in approximation_cases.CASES:
        start = time.perf_counter()
        p = approx.fit(case.target, case.domain, degree=case.degree)
        seconds = time.perf_counter() - start
        known = stored[case.name]
        error, their_seconds = float(known["error"]), float(known["seconds"])
        if live:
            error, their_seconds = approximation_cases.run_sollya(case)
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


CERTIFIED = [
    ("exp", (-16, 0), 12),
    ("gelu", (-8, 8), 31),
    ("gelu_tanh", (-8, 8), 31),
    ("silu", (-8, 8), 31),
    ("sigmoid", (-8, 8), 15),
    ("tanh", (-16, 16), 63),
    ("softplus", (-8, 8), 14),
    ("erf", (-3, 3), 15),
    ("relu", (-1, 1), 14),
    ("abs", (-1, 2), 16),
    ("sign", [(-1, -0.1), (0.1, 1)], 15),
    ("inv", (0.04, 1), 31),
    ("inv_sqrt", (1e-3, 1), 63),
    ("sqrt", (0, 1), 15),
    ("log", (0.1, 1), 11),
]


def certificates(count: int = 10**6) -> bool:
    """Each certificate on random points and on a dense grid with the extrema."""
    rng = np.random.default_rng(0)
    print(f"{'target':<44} {'bound':>10} {'largest':>10} {'bound/largest - 1':>18}")
    good = True
    rows: list[tuple[str, Any]] = [
        (name, approx.fit(name, domain, degree=degree)) for name, domain, degree in CERTIFIED
    ]
    rows.append(("relu", approx.composite("relu", (-1, 1), degrees=(7, 15))))
    rows.append(("abs", approx.composite("abs", (-3, 3), degrees=(7, 15))))
    rows.append(("inv_sqrt", approx.composite("inv_sqrt", (1e-2, 1), degree=15, steps=1)))
    rows.append(("inv", approx.composite("inv", (1e-2, 1), degree=15, steps=1)))
    rows.append(("exp", approx.composite("exp_squaring", (-64, 0), degree=7, squarings=4)))
    for name, p in rows:
        f = NAMED[name]
        largest = 0.0
        for a, b in p.intervals:
            share = rng.uniform(a, b, count // len(p.intervals))
            dense = remez.grid([(a, b)], 100_001, f.kinks)
            near = b * np.geomspace(1e-9, 1.0, 20_001) if a <= 0.0 < b else dense
            for x in (share, dense, near):
                largest = max(largest, float(np.max(np.abs(p(x) - f(x)))))
        rounding = 1e-14 * (1.0 + largest)
        slack = p.max_error / largest - 1.0
        if p.certified:
            good &= largest <= p.max_error + rounding and slack <= 1e-3
        mark = "" if p.certified else "  estimate"
        print(f"{p!r:.44} {p.max_error:10.3e} {largest:10.3e} {slack:18.2e}{mark}")
    return good


REQUESTS: list[tuple[str, Any, Any, dict[str, Any]]] = [
    ("reversed domain", "exp", (1, 0), {"degree": 5}),
    ("empty domain", "exp", (1, 1), {"degree": 5}),
    ("no interval", "exp", [], {"degree": 5}),
    ("overlapping intervals", "exp", [(0, 2), (1, 3)], {"degree": 5}),
    ("infinite domain", "exp", (0, math.inf), {"degree": 5}),
    ("pole inside", "inv", (-1, 1), {"degree": 5}),
    ("jump inside", "sign", (-1, 1), {"degree": 5}),
    ("outside the definition", "log", (-1, 1), {"degree": 5}),
    ("NaN from the callable", lambda x: np.sqrt(x - 1.0), (0, 2), {"degree": 5}),
    ("a callable of another shape", lambda x: x[:2], (0, 2), {"degree": 5}),
    ("impossible tolerance", "exp", (-8, 0), {"tol": 1e-40}),
    ("tolerance out of the depth's reach", "gelu", (-8, 8), {"tol": 1e-9, "depth": 4}),
    ("tolerance 0", "exp", (-8, 0), {"tol": 0.0}),
    ("degree -1", "exp", (-8, 0), {"degree": -1}),
    ("degree 0 of an odd function", "tanh", (-2, 2), {"degree": 0}),
    ("degree 2.5", "exp", (-8, 0), {"degree": 2.5}),
    ("degree a million", "exp", (-8, 0), {"degree": 10**6}),
    ("float64 overflows", "exp", (0, 2000), {"degree": 5}),
    ("float64 cannot tell the ends", "exp", (1.0, 1.0 + 2e-15), {"degree": 5}),
    ("unknown name", "expp", (0, 1), {"degree": 5}),
]


def requests() -> bool:
    """Each bad request and its answer; degree 0 is no error, its answer is the best constant."""
    good = True
    for label, target, domain, knobs in REQUESTS:
        try:
            answer = repr(approx.fit(target, domain, **knobs))
            good &= label.startswith("degree 0")
        except approx.ApproxError as error:
            answer = f"{type(error).__name__}: {error}"
        print(f"{label:<36} {answer}")
    return good


ALL = {
    "optimum": optimum,
    "published": published,
    "gaussian": gaussian,
    "relu": approximation_relu.main,
    "plans": approximation_plans.main,
    "certificates": certificates,
    "requests": requests,
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
