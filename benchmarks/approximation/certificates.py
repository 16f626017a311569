"""Every kind of certificate: on random points, at the extrema in exact arithmetic, how tight."""

from __future__ import annotations

from typing import Any

import numpy as np

import approx
from approx import certify, enclosure, remez
from approx.polynomial import Polynomial
from approx.targets import NAMED

# target, domain, what fit is asked for
FITS: list[tuple[str, Any, dict[str, Any]]] = [
    ("exp", (-16, 0), {"degree": 12}),
    ("exp", (-8, 0), {"degree": 19}),  # coefficients beyond float64
    ("exp", (-16, 0), {"degree": 12, "affine": "folded"}),
    ("exp", (-4, 2), {"degree": 7, "error": "relative"}),
    ("exp", [(-8, -4), (-2, 0)], {"degree": 11}),
    ("gelu", (-8, 8), {"degree": 31}),
    ("gelu", (-4, 5), {"degree": 9, "through": [(0.0, 0.0)]}),
    ("gelu_tanh", (-8, 8), {"degree": 31}),
    ("silu", (-8, 8), {"degree": 31}),
    ("silu", (-8, 8), {"degree": 12, "method": "least_squares"}),
    ("sigmoid", (-8, 8), {"degree": 15}),
    ("sigmoid", (-8, 8), {"degree": 15, "bounds": (0.0, 1.0)}),
    ("tanh", (-16, 16), {"degree": 63}),
    ("tanh", (-3, 3), {"degree": 11, "method": "chebyshev"}),
    ("softplus", (-8, 8), {"degree": 14}),
    ("erf", (-3, 3), {"degree": 15}),
    ("relu", (-1, 1), {"degree": 14}),
    ("abs", (-1, 2), {"degree": 16}),
    ("sign", [(-1, -0.1), (0.1, 1)], {"degree": 15}),
    ("inv", (0.04, 1), {"degree": 31}),
    ("inv", [(-2, -0.2), (0.1, 1)], {"degree": 21}),
    ("inv_sqrt", (1e-3, 1), {"degree": 63}),
    ("inv_sqrt", (1e-2, 1), {"degree": 15, "error": "relative"}),
    ("sqrt", (0, 1), {"degree": 15}),
    ("log", (0.1, 1), {"degree": 11}),
]
GRAPHS: list[tuple[str, Any, dict[str, Any]]] = [
    ("sign", [(-1, -0.05), (0.05, 1)], {"degrees": (7, 7)}),
    ("relu", (-1, 1), {"degrees": (7, 15)}),
    ("relu", (-4, 2), {"tol": 1e-2}),
    ("abs", (-3, 3), {"degrees": (7, 15)}),
    ("inv", (1e-2, 1), {"degree": 15, "steps": 1}),
    ("inv", (-4, -0.05), {"degree": 7, "steps": 3}),
    ("inv_sqrt", (1e-2, 1), {"degree": 15, "steps": 1}),
    ("inv_sqrt", (5e-4, 1), {"degree": 31, "steps": 2}),
    ("exp_squaring", (-64, 0), {"degree": 7, "squarings": 4}),
    ("exp_squaring", (-(2.0**14), 0), {"squarings": 14}),
    ("exp_squaring", (-(2.0**14), 0), {"degree": 31, "squarings": 5}),
]


def _exact(p: Any, x: list[float]) -> float:
    """max |p - f| at these points, in 800 bits from the stored numbers, rounded down."""
    import flint

    largest = 0.0
    with flint.ctx.workprec(800), enclosure.terms():
        model = None if isinstance(p, Polynomial) else enclosure.Model(p)
        for point in x:
            if model is None:
                at = flint.acb(point)
                ball = NAMED[p.name].ball
                assert ball is not None
                error = ball(point)(at).real - certify._exact(p, flint.arb(point))
            else:
                error = model.error(point, point)[0]
            largest = max(largest, float(abs(error).lower()))
    return largest


def main(count: int = 10**6) -> bool:
    """Each certificate on ``count`` random points and at the extrema; False if one fails."""
    rng = np.random.default_rng(0)
    print(f"{'target':<52} {'bound':>10} {'largest':>10} {'slack':>9} checked")
    good = True
    rows: list[tuple[Any, Any]] = [(NAMED[t], approx.fit(t, d, **k)) for t, d, k in FITS]
    for kind, domain, knobs in GRAPHS:
        target = NAMED["exp" if kind == "exp_squaring" else kind]
        rows.append((target, approx.composite(kind, domain, **knobs)))
    for f, p in rows:
        sampled, tops = 0.0, []
        for a, b in p.intervals:
            x = [rng.uniform(a, b, count // len(p.intervals)), remez.grid([(a, b)], 100_001)]
            x += [e * np.geomspace(1e-9, 1.0, 20_001) for e in (a, b) if e != 0.0]
            points = np.concatenate(x)
            points = points[(points >= a) & (points <= b)]
            errors = np.abs(p(points) - f(points))
            sampled = max(sampled, float(np.max(errors)))
            tops += points[np.argsort(errors)[-20:]].tolist()
        exact = _exact(p, tops)
        rounding = 1e-14 * (1.0 + float(np.max(np.abs(f(np.asarray(tops))))))
        slack = p.max_error / exact - 1.0
        if isinstance(p, Polynomial):
            again = certify.recheck(p, f)
        else:
            again = enclosure.recheck(p)
        holds = p.certified and exact <= p.max_error and sampled <= p.max_error + rounding
        good &= holds and slack <= 1e-3 and again
        mark = f"{'again' if again else 'NOT again'}{'' if holds else ', FAILS'}"
        print(f"{p!r:.52} {p.max_error:10.3e} {exact:10.3e} {slack:9.2e} {mark}", flush=True)
    return good
