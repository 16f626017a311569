"""What a bad request is told: one of the package's errors, which says what to do next."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import approx

_MEAN = {"degree": 3, "method": "least_squares"}


def _hole(x: np.ndarray) -> np.ndarray:
    return np.where(abs(x - 0.25) < 1e-4, np.nan, x)


def _spike(x: np.ndarray) -> np.ndarray:
    return np.exp(-(((x - 0.3123) / 1e-4) ** 2))


REQUESTS: list[tuple[str, Any, Any, dict[str, Any]]] = [
    ("reversed domain", "exp", (1, 0), {"degree": 5}),
    ("empty domain", "exp", (1, 1), {"degree": 5}),
    ("no interval", "exp", [], {"degree": 5}),
    ("overlapping intervals", "exp", [(0, 2), (1, 3)], {"degree": 5}),
    ("infinite domain", "exp", (0, math.inf), {"degree": 5}),
    ("pole inside a callable", lambda x: 1 / x, (-1, 1), {"degree": 9}),
    ("double pole inside a callable", lambda x: (x - 0.3) ** -2, (-1, 1), {"degree": 9}),
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
    ("degree NaN", "exp", (-1, 1), {"degree": math.nan}),
    ("degree as text", "exp", (-1, 1), {"degree": "5"}),
    ("depth 0", "exp", (-1, 1), {"depth": 0}),
    ("tolerance as text", "exp", (-1, 1), {"tol": "x"}),
    ("domain of one number", "exp", 5, {"degree": 5}),
    ("domain with NaN", "exp", (math.nan, 2), {"degree": 5}),
    ("domain too wide for exp", "exp", (-1e9, 1e9), {"degree": 5}),
    ("domain too wide to resolve exp", "exp", (-1e9, 0), {"degree": 15}),
    ("domain too wide to resolve sigmoid", "sigmoid", (-1e9, 1e9), {"degree": 15}),
    ("domain wider than float64", "tanh", (-1e308, 1.5e308), {"degree": 5}),
    ("domain of subnormal width", "exp", (1e-320, 1.1e-320), {"degree": 3}),
    ("a callable that returns text", lambda x: "abc", (-1, 1), {"degree": 3}),
    ("a callable that adds an axis", lambda x: x[None], (-1, 1), {"degree": 3}),
    ("a callable that fails", lambda x: {}[1], (-1, 1), {"degree": 3}),
    ("NaN on 1e-4 of the domain", _hole, (-1, 1), {"degree": 3}),
    ("a spike of width 1e-4, by tolerance", _spike, (-1, 1), {"tol": 0.1, "degree": 31}),
    ("a target that is no name", ["exp"], (0, 1), {"degree": 3}),
    ("a weight that is a number", "exp", (0, 1), {"degree": 3, "weight": 3}),
    ("a weight of NaN", "exp", (0, 1), {"degree": 3, "weight": lambda x: math.nan * x}),
    ("points that are no pairs", "exp", (0, 1), {"degree": 3, "through": [(0,)]}),
    ("bounds that are a number", "exp", (0, 1), {"degree": 3, "bounds": 3}),
    ("samples of NaN", "exp", (0, 1), {**_MEAN, "samples": [math.nan, 0.5]}),
    ("samples of text", "exp", (0, 1), {**_MEAN, "samples": ["a"]}),
]

COMPOSITES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("composite: unknown kind", "softmax", (0, 1), {"tol": 0.1}),
    ("composite: tolerance as text", "relu", (-1, 1), {"tol": "x"}),
    ("composite: degrees of text", "relu", (-1, 1), {"degrees": "ab"}),
    ("composite: degree NaN", "inv", (0.1, 1), {"degree": math.nan, "steps": 1}),
    ("composite: half a step", "inv", (0.1, 1), {"degree": 3, "steps": 0.5}),
    ("composite: gap of 2", "relu", (-1, 1), {"degrees": (7, 7), "gap": 2.0}),
    ("composite: pole inside", "inv", (-1, 1), {"tol": 0.1}),
    ("composite: domain of one number", "inv", 3, {"tol": 0.1}),
]


def main() -> bool:
    """Each bad request and its answer; degree 0 is no error, its answer is the best constant."""
    good = True
    rows = [(approx.fit, *row) for row in REQUESTS]
    rows += [(approx.composite, *row) for row in COMPOSITES]
    for make, label, target, domain, knobs in rows:
        try:
            answer = repr(make(target, domain, **knobs))
            good &= label.startswith("degree 0")
        except approx.ApproxError as error:
            answer = f"{type(error).__name__}: {error}"
        except Exception as error:  # what this table is there to find
            answer, good = f"NOT an error of approx: {error!r}", False
        print(f"{label:<36} {answer}")
    return good
