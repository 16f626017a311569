"""Non-linearity sites: where a polynomial may stand in for exp, 1/sqrt, ReLU, GELU or tanh, and its
range.

A site is named after its place, `layer0.attention.exp`; the last part is the function. Its
canonical variable is what the exact function would be given: the exponent (at most 0) for `exp`,
the variance plus epsilon for `inv_sqrt`, the pre-activation otherwise. The value that reaches a
polynomial is u = canonical / unit, where the unit (half the width of the polynomial's domain) is
folded into a public weight so that the affine map onto [-1, 1] costs no level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import approx
from models.config import EncoderConfig

Range = tuple[float, float]

EXACT_FUNCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "exp": jnp.exp,
    "inv_sqrt": jax.lax.rsqrt,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh": jnp.tanh,
}

MAX_MULTIPLE = 64


def site_names(config: EncoderConfig) -> tuple[str, ...]:
    """Names of all sites of a model in the order in which a forward pass meets them."""
    activation = config.activation.removeprefix("glu_")
    names: list[str] = []
    for layer in range(config.layers):
        if layer or config.first_norm:
            names.append(f"layer{layer}.attention_norm.inv_sqrt")
        if config.attention == "gaussian":
            names.append(f"layer{layer}.attention.exp")
        names.append(f"layer{layer}.ffn_norm.inv_sqrt")
        if activation != "bilinear":
            names.append(f"layer{layer}.ffn.{activation}")
    return (*names, "final_norm.inv_sqrt", "pooler.tanh")


def function_of(name: str) -> str:
    """The non-linearity at a site: the last part of its name."""
    return name.rsplit(".", 1)[-1]


def hull(domain: Any) -> Range:
    """(lowest, highest) of an interval or of a union of intervals."""
    flat = np.asarray(domain, dtype=float).ravel()
    return float(flat.min()), float(flat.max())


@dataclasses.dataclass(frozen=True)
class Sites:
    """Which sites are polynomial: pairs (name, approx object in the canonical variable). Empty
    means an exact model.
    """

    entries: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, functions: Mapping[str, Any]) -> Sites:
        return cls(tuple(sorted(functions.items())))

    def get(self, name: str) -> Any | None:
        return dict(self.entries).get(name)

    def ranges(self) -> dict[str, Range]:
        """The fitted range of each polynomial site, canonical variable."""
        return {name: hull(function.domain) for name, function in self.entries}

    def half_width(self, name: str) -> float | None:
        """Half the width of the site's domain; None for an exact site."""
        function = self.get(name)
        if function is None:
            return None
        low, high = hull(function.domain)
        return (high - low) / 2

    def norm_half_width(self) -> float | None:
        """The widest domain among the LayerNorm sites, halved: it sets the scale of the residual
        stream.
        """
        halves = [
            self.half_width(n) or 0.0 for n, _ in self.entries if function_of(n) == "inv_sqrt"
        ]
        return max(halves, default=None)

    def unit(self, name: str) -> float:
        """Canonical value of u = 1 at sites that sit behind a weight (all but the LayerNorms); 1
        for an exact site.
        """
        half = self.half_width(name)
        return half if half is not None and hasattr(self.get(name), "rescaled") else 1.0

    def apply(self, name: str, u: jax.Array, unit: float) -> jax.Array:
        """The site's function of the canonical value unit * u."""
        function = self.get(name)
        if function is None:
            return EXACT_FUNCTIONS[function_of(name)](u if unit == 1.0 else unit * u)
        if unit == 1.0:
            return function(u)
        return rescaled(function, unit)(u)


def rescaled(function: Any, unit: float) -> Any:
    """q(u) = p(unit * u), with a half-width of 1 up to rounding made exactly 1, since only that
    costs no level.
    """
    if not hasattr(function, "rescaled"):
        return lambda u: function(unit * u)
    p = function.rescaled(unit)
    if p.scale != 1.0 and abs(p.scale - 1.0) < 1e-12:
        p = dataclasses.replace(p, scale=1.0)
    return p


EXACT = Sites()


class Probe:
    """The sites of one forward call, and the values they met: `values[name]` holds u, `units[name]`
    its unit.
    """

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.values: dict[str, jax.Array] = {}

    def unit(self, name: str) -> float:
        return self.sites.unit(name)

    def __call__(self, name: str, u: jax.Array, unit: float | None = None) -> jax.Array:
        self.values[name] = u
        return self.sites.apply(name, u, self.unit(name) if unit is None else unit)


def norm_scale(sites: Sites, hidden: int) -> float:
    """c, the factor of the residual stream; 1 for an exact model.

    The sum of squares of c x over `hidden` features reaches the widest LayerNorm polynomial with
    half-width 1.
    """
    half = sites.norm_half_width()
    return 1.0 if half is None else (hidden * half) ** -0.5


def norm_multiple(sites: Sites, name: str) -> int:
    """n, the integer that multiplies a narrower LayerNorm's sum of squares, by additions alone."""
    half, widest = sites.half_width(name), sites.norm_half_width()
    if half is None or widest is None:
        return 1
    return max(1, min(MAX_MULTIPLE, round(widest / half)))


def norm_unit(sites: Sites, name: str, hidden: int) -> float:
    """Variance at which a LayerNorm's scaled sum of squares is 1."""
    widest = sites.norm_half_width()
    return (1.0 / hidden) if widest is None else widest / norm_multiple(sites, name)


def units(config: EncoderConfig, sites: Sites) -> dict[str, float]:
    """The unit of every site: canonical value = unit * recorded value."""
    return {
        name: norm_unit(sites, name, config.hidden)
        if function_of(name) == "inv_sqrt"
        else sites.unit(name)
        for name in site_names(config)
    }


def met_ranges(values: Mapping[str, jax.Array], unit: Mapping[str, float]) -> dict[str, jax.Array]:
    """Per site the array [lowest, highest] of the canonical values that a forward pass recorded."""
    return {n: unit[n] * jnp.stack([jnp.min(v), jnp.max(v)]) for n, v in values.items()}


def join_ranges(many: Iterable[Mapping[str, Any]]) -> dict[str, Range]:
    """The union of ranges met in several batches."""
    out: dict[str, Range] = {}
    for one in many:
        for name, pair in one.items():
            low, high = float(pair[0]), float(pair[1])
            old = out.get(name, (low, high))
            out[name] = (min(low, old[0]), max(high, old[1]))
    return out


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """Degree of the polynomial for each function, and how far beyond the ranges met it must hold.

    margin: fraction of the range's width added on both sides (1/sqrt: the range is widened by that
    factor in ratio).
    """

    degrees: tuple[tuple[str, int], ...] = (
        ("exp", 7),
        ("gelu", 7),
        ("inv_sqrt", 7),
        ("relu", 7),
        ("tanh", 7),
    )
    margin: float = 0.1
    method: str = "minimax"

    def degree(self, name: str) -> int:
        return dict(self.degrees)[function_of(name)]


DEFAULT_FIT = FitSettings()


def widen(name: str, met: Range, margin: float) -> Range:
    """The range to fit on, given the one met: wider by the margin.

    The top of exp's is 0; those of tanh, ReLU and GELU are symmetric about 0.
    """
    low, high = met
    kind = function_of(name)
    if kind == "exp":
        return (min(low * (1 + margin), -1e-3), 0.0)
    if kind == "inv_sqrt":
        if low <= 0:
            raise ValueError(f"{name}: the variance reached {low}; 1/sqrt has no polynomial there")
        return (low / (1 + margin), high * (1 + margin))
    bound = max(abs(low), abs(high), 1e-3) * (1 + margin)
    return (-bound, bound)


def fit_ranges(
    config: EncoderConfig, ranges: Mapping[str, Range], settings: FitSettings = DEFAULT_FIT
) -> Sites:
    """Polynomials for every site of `config` over the ranges met, each widened by the margin.

    LayerNorm domains are stretched upwards until the widest is an integer multiple of each, so that
    one scale of the residual stream serves all of them without a level. ValueError for a site whose
    range is missing.
    """
    missing = [n for n in site_names(config) if n not in ranges]
    if missing:
        raise ValueError(
            f"no range was met for {', '.join(missing)}; run collect_ranges on data first"
        )
    domains = {n: widen(n, ranges[n], settings.margin) for n in site_names(config)}
    norms = [n for n in domains if function_of(n) == "inv_sqrt"]
    widest = max(domains[n][1] - domains[n][0] for n in norms)
    for n in norms:
        low, high = domains[n]
        multiple = min(MAX_MULTIPLE, int(widest / (high - low) + 1e-9))
        domains[n] = (low, low + widest / multiple)
    return Sites.of(
        {
            n: approx.fit(function_of(n), d, degree=settings.degree(n), method=settings.method)
            for n, d in domains.items()
        }
    )
