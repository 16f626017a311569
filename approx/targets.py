"""Targets by name: their NumPy and ball versions, where they are defined, and their symmetry."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from approx.errors import ApproxError, DomainError
from approx.polynomial import Interval

_SPREAD = 1 << 16  # points at which a callable without a ball version is looked at

Ball = Callable[[Any], Any]  # flint.acb -> flint.acb, analytic wherever the result is finite


@dataclass(frozen=True)
class Target:
    """A function to approximate.

    Attributes:
      name: for messages and for the polynomial.
      function: float64 array -> float64 array of the same shape.
      ball: of a point inside a piece, the complex ball version that is valid on that piece;
        None for callables, whose errors are then estimates.
      kinks: points where the function is not smooth; pieces lie between them.
      forbidden: the closed interval that the domain must not meet.
      remainder: "even" or "odd": symmetry of function(x) - constant - slope * x.
      root: ball version of t -> function(t^2), for domains that begin at 0, where the function
        itself is not analytic.
    """

    name: str
    function: Callable[[Any], Any]
    ball: Callable[[float], Ball] | None = None
    kinks: tuple[float, ...] = ()
    forbidden: Interval | None = None
    advice: str = ""
    remainder: str | None = None
    constant: float = 0.0
    slope: float = 0.0
    root: Ball | None = None

    def check(self, intervals: tuple[Interval, ...]) -> None:
        """Raises DomainError where the function is undefined or not finite on the domain."""
        for a, b in intervals:
            if self.forbidden is not None:
                low, high = self.forbidden
                if a <= high and b >= low:
                    raise DomainError(
                        f"{self.name} is not defined everywhere on [{a:g}, {b:g}]: {self.advice}"
                    )
            points = a + (b - a) * (0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, 2049)))
            points = np.clip(points, a, b)
            self._finite(points, (a, b))
            if self.ball is None:
                spread = a + (b - a) * np.linspace(0.0, 1.0, _SPREAD)
                spread[-1] = b
                values = self._finite(spread, (a, b))
                self._no_pole(spread, values)

    def _finite(self, points: np.ndarray, interval: Interval) -> np.ndarray:
        values = self(points)
        bad = ~np.isfinite(values)
        if bad.any():
            raise DomainError(
                f"{self.name} is NaN or infinite at x = {points[bad][0]:g}; choose a domain "
                f"inside which it is finite (given: [{interval[0]:g}, {interval[1]:g}])."
            )
        return values

    def _no_pole(self, points: np.ndarray, values: np.ndarray) -> None:
        """Zooms in on the largest value: near a pole it grows with every step."""
        typical = float(np.median(np.abs(values - np.median(values)))) + 1e-300
        k = int(np.argmax(np.abs(values)))
        low, high = points[max(k - 1, 0)], points[min(k + 1, len(points) - 1)]
        start, top, growing = abs(values[k]), abs(values[k]), 0
        x, j = points, k
        for _ in range(40):
            x = np.linspace(low, high, 33)
            heights = np.abs(self(x))
            heights[~np.isfinite(heights)] = np.inf
            j = int(np.argmax(heights))
            growing = growing + 1 if heights[j] > 1.5 * top else 0
            top = max(top, float(heights[j]))
            if not math.isfinite(top) or growing >= 5 and top > 1e3 * max(start, typical):
                raise DomainError(
                    f"{self.name} grows without bound near x = {x[j]:g}: a pole inside the domain; "
                    "choose a domain, or a union with a gap, that leaves it out."
                )
            if not high - low > 64 * np.spacing(max(abs(low), abs(high))):
                break
            low, high = x[max(j - 1, 0)], x[min(j + 1, 32)]
        if top > 1e8 * typical and top > 1e4 * start:
            raise DomainError(
                f"{self.name} reaches {top:.1e} near x = {x[j]:g}, where it has a pole or a spike "
                "that float64 does not resolve; choose a domain that leaves it out."
            )

    def __call__(self, x: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(self.function(np.asarray(x, dtype=np.float64)), dtype=np.float64)


def find(target: str | Callable[[Any], Any] | Target, ball: Ball | None = None) -> Target:
    """The Target of a name or a callable of NumPy or JAX arrays.

    Args:
      target: a name, a callable or a Target.
      ball: the callable's version on flint.acb, if it has one.

    Raises:
      ApproxError: an unknown name, with the known ones.
    """
    if isinstance(target, Target):
        return target
    if callable(target):
        name = getattr(target, "__name__", "callable")
        return Target(name, _vectorized(target), None if ball is None else _smooth(ball))
    if isinstance(target, str) and target in NAMED:
        return NAMED[target]
    raise ApproxError(f"Unknown target {target!r}; use a callable or one of {', '.join(NAMED)}.")


def _vectorized(function: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    """float64 in, float64 out, whatever the callable is written for."""

    def evaluate(x: np.ndarray) -> np.ndarray:
        try:
            y = function(x)
        except ApproxError:
            raise
        except (TypeError, ValueError):  # written for numbers, such as those of the math module
            y = np.array([_number(function, v) for v in x.ravel()]).reshape(x.shape)
        except Exception as error:
            raise _failed(error) from error
        jax = sys.modules.get("jax")
        if jax is not None and isinstance(y, jax.Array) and y.dtype != np.float64:
            with jax.enable_x64(True):
                y = np.asarray(function(jax.numpy.asarray(x, dtype=np.float64)))
        if np.iscomplexobj(y):
            raise ApproxError(
                "The callable returns complex values; fit its real and imaginary part one by one."
            )
        try:
            y = np.asarray(y, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ApproxError(
                f"The callable returns {type(y).__name__}, not numbers of the shape of x."
            ) from error
        if y.shape != x.shape and y.size != 1:
            raise ApproxError(
                f"The callable maps shape {x.shape} to {y.shape}; it must work element by element."
            )
        return np.broadcast_to(y, x.shape)

    return evaluate


def _number(function: Callable[[Any], Any], x: float) -> float:
    try:
        return float(function(float(x)))
    except (ZeroDivisionError, OverflowError):
        return math.nan
    except ValueError as error:
        if "math" in str(error) or "expected" in str(error):  # outside the domain, says math
            return math.nan
        raise _failed(error) from error
    except Exception as error:
        raise _failed(error) from error


def _failed(error: Exception) -> ApproxError:
    return ApproxError(
        f"The callable fails on arrays and on numbers ({type(error).__name__}: {error}); it takes "
        "a float64 array and returns one of the same shape."
    )


# --- the named targets --------------------------------------------------------------------------


def _smooth(ball: Ball) -> Callable[[float], Ball]:
    return lambda middle: ball


def _constant_like(z: Any, c: int) -> Any:
    return 0 * z + c


def _gelu_tanh_argument(z: Any) -> Any:
    import flint

    root = (flint.arb(2) / flint.arb.pi()).sqrt()
    return root * (z + flint.arb("0.044715") * z * z * z)


def _gelu_ball(z: Any) -> Any:
    import flint

    return z * (-z * flint.arb(0.5).sqrt()).erfc() / 2


def _inverse(x: np.ndarray) -> np.ndarray:
    return 1.0 / x


_POSITIVE = "choose a domain (a, b) with 0 < a; a range penalty or an added constant keeps x there."

NAMED: dict[str, Target] = {
    t.name: t
    for t in (
        Target("exp", np.exp, _smooth(lambda z: z.exp())),
        Target(
            "gelu",
            lambda x: 0.5 * x * special.erfc(-x * math.sqrt(0.5)),
            _smooth(_gelu_ball),
            remainder="even",
            slope=0.5,
        ),
        Target(
            "gelu_tanh",
            lambda x: x * special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
            _smooth(lambda z: z / (1 + (-2 * _gelu_tanh_argument(z)).exp())),
            remainder="even",
            slope=0.5,
        ),
        Target(
            "silu",
            lambda x: x * special.expit(x),
            _smooth(lambda z: z / (1 + (-z).exp())),
            remainder="even",
            slope=0.5,
        ),
        Target(
            "sigmoid",
            special.expit,
            _smooth(lambda z: 1 / (1 + (-z).exp())),
            remainder="odd",
            constant=0.5,
        ),
        Target("tanh", np.tanh, _smooth(lambda z: z.tanh()), remainder="odd"),
        Target(
            "softplus",
            lambda x: np.logaddexp(0.0, x),
            _smooth(lambda z: (1 + z.exp()).log(analytic=True)),
            remainder="even",
            slope=0.5,
        ),
        Target("erf", special.erf, _smooth(lambda z: z.erf()), remainder="odd"),
        Target(
            "relu",
            lambda x: np.maximum(x, 0.0),
            lambda middle: (lambda z: z) if middle > 0 else (lambda z: _constant_like(z, 0)),
            kinks=(0.0,),
            remainder="even",
            slope=0.5,
        ),
        Target(
            "sign",
            np.sign,
            lambda middle: lambda z: _constant_like(z, 1 if middle > 0 else -1),
            kinks=(0.0,),
            forbidden=(0.0, 0.0),
            advice="it jumps at 0; leave a gap, as in [(-1, -0.01), (0.01, 1)].",
            remainder="odd",
        ),
        Target(
            "abs",
            np.abs,
            lambda middle: (lambda z: z) if middle > 0 else (lambda z: -z),
            kinks=(0.0,),
            remainder="even",
        ),
        Target(
            "inv",
            _inverse,
            _smooth(lambda z: 1 / z),
            forbidden=(0.0, 0.0),
            advice="it has a pole at 0; choose a domain on one side, or a union with a gap.",
            remainder="odd",
        ),
        Target(
            "inv_sqrt",
            lambda x: 1.0 / np.sqrt(x),
            _smooth(lambda z: z.rsqrt(analytic=True)),
            forbidden=(-math.inf, 0.0),
            advice=_POSITIVE,
        ),
        Target(
            "sqrt",
            np.sqrt,
            _smooth(lambda z: z.sqrt(analytic=True)),
            forbidden=(-math.inf, -math.ulp(0.0)),
            advice="choose a domain (a, b) with 0 <= a.",
            root=lambda t: t,
        ),
        Target(
            "log",
            np.log,
            _smooth(lambda z: z.log(analytic=True)),
            forbidden=(-math.inf, 0.0),
            advice=_POSITIVE,
        ),
    )
}
