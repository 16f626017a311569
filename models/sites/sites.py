"""Non-linearity sites: where an approximation may stand in for exp, 1/sqrt, 1/x, ReLU, GELU or
tanh, and its range.

A site is named after its place, `layer0.attention.exp`; the last part is the function. Its
canonical variable is what the exact function would be given: the exponent (at most 0) for `exp`,
the variance plus epsilon for `inv_sqrt`, the row mean plus epsilon for `inv`, the pre-activation
otherwise. A site takes a `Polynomial` or a `Composite` of the canonical variable. The value that
reaches it is u = canonical / unit, where the unit (for a polynomial half the width of its domain)
is folded into a public weight so that the map onto [-1, 1] costs no level. The unit is the paper's
pre-scale M: `prescaled` turns an approximation on a standard range into one on M times that range.

Beside the model's own sites, `site_names`, there are those of training: `loss.exp` and `loss.inv`
of the cross-entropy's gradient and `optimizer.inv_sqrt` of AdamW-HE; `SiteRecorder.at` gives their
functions.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import approx
from approx.composites.graph import Composite
from approx.polynomial import Polynomial
from hesim.errors import ArgumentError, ConstantValuesWarning, ParameterError
from models.config import EncoderConfig
from models.sites.derivatives import CheapComposite, cheap

Range = tuple[float, float]

EXACT_FUNCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "exp": jnp.exp,
    "inv": jnp.reciprocal,
    "inv_sqrt": jax.lax.rsqrt,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "softmax_exp": jnp.exp,
    "softmax_inv": jnp.reciprocal,
    "tanh": jnp.tanh,
}

TRAINING_SITES = ("loss.exp", "loss.inv", "optimizer.inv_sqrt")

MAX_MULTIPLE = 64


def site_names(config: EncoderConfig) -> tuple[str, ...]:
    """Names of all sites of a model, in the order in which a forward pass meets them.

    Args:
      config: the model's.

    Raises nothing of its own.

    Examples:
      >>> from models import preset, site_names
      >>> site_names(preset("demo", layers=1))[:3]
      ('layer0.attention.exp', 'layer0.ffn_norm.inv_sqrt', 'layer0.ffn.relu')
    """
    names: list[str] = []
    for layer in range(config.layers):
        place = f"layer{layer}"
        attention = []
        if config.attention.startswith("gaussian"):
            attention.append(f"{place}.attention.exp")
        if config.attention in ("gaussian_normalised", "power_softmax"):
            attention.append(f"{place}.attention.inv")
        if config.attention == "squared_softmax":
            squares = [f"square{j}.softmax_inv" for j in range(config.softmax_squarings)]
            attention += [
                f"{place}.attention.{site}" for site in ("softmax_exp", *squares, "softmax_inv")
            ]
        ffn = [] if config.function == "bilinear" else [f"{place}.ffn.{config.function}"]
        norms = [f"{place}.attention_norm.inv_sqrt"], [f"{place}.ffn_norm.inv_sqrt"]
        if config.post_norm:
            names += [*attention, *norms[0], *ffn, *norms[1]]
        else:
            first = norms[0] if layer or config.first_norm else []
            names += [*first, *attention, *norms[1], *ffn]
    final = [] if config.post_norm else ["final_norm.inv_sqrt"]
    return (*names, *final, "pooler.tanh")


def function_of(name: str) -> str:
    """The non-linearity at a site: the last part of its name."""
    return name.rsplit(".", 1)[-1]


def targets_of(
    config: EncoderConfig, table: Iterable[tuple[str, Range]]
) -> tuple[tuple[str, Range], ...]:
    """A canonical range for every site of a model that the table has one for, under its own name or
    its function's, in the order of a forward pass; functions that the model lacks are passed over.
    ParameterError for a site that it has not, for what is no function, and for an empty range.
    """
    entries, names = tuple(table), site_names(config)
    FitSettings(ranges=entries)  # which knows functions and ranges
    unknown = [name for name, _ in entries if "." in name and name not in names]
    if unknown:
        raise ParameterError(
            f"this model has no site {', '.join(unknown)}; it has {', '.join(names)}"
        )
    found = ((name, _entry(entries, name)) for name in names)
    return tuple((name, pair) for name, pair in found if pair is not None)


def is_norm(name: str) -> bool:
    """Whether a site is a LayerNorm's."""
    return name.endswith("norm.inv_sqrt")


def prescaled(kind: str, function: Any, m: float) -> Any:
    """f(x) on M times the range: M^k p(x / M) for f of degree k of homogeneity, the paper's M.

    inv_sqrt: 1/sqrt(x) = 1/sqrt(x / M) / sqrt(M); inv: 1/x = (M / x) / M; relu: M relu(x / M).
    function: a `Polynomial`, or a `Composite` of these three kinds, which is built again from its
    own knobs on the larger range. ArgumentError for other kinds, which have no such rule.
    """
    powers = {"inv_sqrt": -0.5, "inv": -1.0, "relu": 1.0}
    if kind not in powers or not m > 0:
        raise ArgumentError(
            f"no pre-scale {m:g} for {kind}: M is positive and goes with {', '.join(powers)}"
        )
    if isinstance(function, Composite):
        low, high = hull(function.domain)
        return approx.composite(kind, (m * low, m * high), **dict(function.knobs))
    return function.rescaled(1 / m).multiplied(m ** powers[kind])


def hull(domain: Any) -> Range:
    """(lowest, highest) of an interval or of a union of intervals."""
    flat = np.asarray(domain, dtype=float).ravel()
    return float(flat.min()), float(flat.max())


@dataclasses.dataclass(frozen=True)
class Sites:
    """Which sites are approximated; none means an exact model.

    Attributes:
      entries: pairs (name, approx object in the canonical variable).

    Examples:
      >>> import approx
      >>> from models import Sites
      >>> sites = Sites.of({"layer0.ffn.relu": approx.fit("relu", (-3, 3), degree=7)})
      >>> sites.ranges()
      {'layer0.ffn.relu': (-3.0, 3.0)}
    """

    entries: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, functions: Mapping[str, Any]) -> Sites:
        return cls(tuple(sorted(functions.items())))

    def get(self, name: str) -> Any | None:
        return dict(self.entries).get(name)

    def ranges(self) -> dict[str, Range]:
        """The fitted range of each approximated site, canonical variable."""
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
        halves = [self.half_width(n) or 0.0 for n, _ in self.entries if is_norm(n)]
        return max(halves, default=None)

    def unit(self, name: str) -> float:
        """Canonical value of u = 1 at sites that sit behind a weight (all but the LayerNorms); 1
        for an exact site.
        """
        function, half = self.get(name), self.half_width(name)
        if half is None or not hasattr(function, "rescaled"):
            return 1.0
        return _natural_unit(function) or half

    def apply(self, name: str, u: jax.Array, unit: float) -> jax.Array:
        """The site's function of the canonical value unit * u."""
        function = self.get(name)
        if function is None:
            return EXACT_FUNCTIONS[function_of(name)](u if unit == 1.0 else unit * u)
        if unit == 1.0:
            return function(u)
        return rescaled(function, unit)(u)

    def to_json(self) -> str:
        """All approximations, coefficients to the last bit; ArgumentError for a function that is
        none of `approx`'s.
        """
        rows: dict[str, Any] = {}
        for name, function in self.entries:
            if not hasattr(function, "to_dict"):
                raise ArgumentError(
                    f"the site {name} holds {function!r}, which cannot be saved: "
                    "use approx.fit or approx.composite"
                )
            rows[name] = function.to_dict()
        return json.dumps(rows, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Sites:
        """What `to_json` wrote; raises ApproxError for anything else."""
        return cls.of({name: _stored(name, row) for name, row in json.loads(text).items()})


_KINDS: Mapping[str, Any] = {
    "polynomial": Polynomial,
    "composite": Composite,
    "cheap_composite": CheapComposite,
}


def _stored(name: str, row: Mapping[str, Any]) -> Any:
    kind = row.get("kind", "polynomial")
    if kind not in _KINDS:
        raise approx.ApproxError(f"The site {name} was saved as an unknown {kind!r}.")
    return _KINDS[kind].from_dict(row)


def _natural_unit(function: Any) -> float | None:
    """The unit at which a composite's first use of its input costs no level; None if any other
    function, or if it has no such use.
    """
    graph = function.composite if isinstance(function, CheapComposite) else function
    if not isinstance(graph, Composite):
        return None
    first = next(node for node in graph.nodes if 0 in node.inputs)
    if first.kind == "sum":
        return 1 / abs(first.factors[first.inputs.index(0)])
    return None if first.polynomial is None else 1 / abs(first.polynomial.scale)


def rescaled(function: Any, unit: float) -> Any:
    """q(u) = p(unit * u), with a half-width of 1 up to rounding made exactly 1, since only that
    costs no level.
    """
    if not hasattr(function, "rescaled"):
        return lambda u: function(unit * u)
    return _snapped(function.rescaled(unit))


def _snapped(function: Any) -> Any:
    if isinstance(function, CheapComposite):
        return dataclasses.replace(function, composite=_snapped(function.composite))
    if isinstance(function, Composite):
        return dataclasses.replace(function, nodes=tuple(map(_snapped_node, function.nodes)))
    if function.scale != 1.0 and abs(function.scale - 1.0) < 1e-12:
        return dataclasses.replace(function, scale=1.0)
    return function


def _snapped_node(node: Any) -> Any:
    if node.polynomial is not None:
        return dataclasses.replace(node, polynomial=_snapped(node.polynomial))
    factors = tuple(round(f) if abs(f - round(f)) < 1e-12 and round(f) else f for f in node.factors)
    return dataclasses.replace(node, factors=tuple(map(float, factors)))


EXACT = Sites()
"""No approximations: every site of a model computes its own function.

Examples:
  >>> from models import EXACT, Model, preset
  >>> Model(preset("demo")).sites == EXACT, EXACT.ranges()
  (True, {})
"""


class SiteRecorder:
    """The sites of one forward call, and what was met on the way: `values[name]` holds u of a site,
    `outputs[name]` what a layer or its attention computed, where `keep` was told.
    """

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.values: dict[str, jax.Array] = {}
        self.outputs: dict[str, jax.Array] = {}

    def keep(self, name: str, x: jax.Array) -> jax.Array:
        """x itself, noted under this name."""
        self.outputs[name] = x
        return x

    def unit(self, name: str) -> float:
        return self.sites.unit(name)

    def __call__(self, name: str, u: jax.Array, unit: float | None = None) -> jax.Array:
        """The site's function of unit * u; what a site meets in several calls is kept together."""
        old = self.values.get(name)
        self.values[name] = u if old is None else jnp.concatenate([old.ravel(), u.ravel()])
        return self.sites.apply(name, u, self.unit(name) if unit is None else unit)

    def at(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """The function at a site that no weight precedes, of the canonical variable: what
        `losses.cross_entropy_polynomial` and `optim.adamw_he` take.
        """
        return lambda x: self(name, x, 1.0)


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
        name: norm_unit(sites, name, config.hidden) if is_norm(name) else sites.unit(name)
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
            out[name] = (
                float(np.minimum(low, old[0])),
                float(np.maximum(high, old[1])),
            )  # NaN stays
    return out


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """What to fit at the sites, and how far beyond the ranges met it must hold.

    Each table is pairs of a key and a value, and a key is a site's name or, for all its sites, a
    function's; a site's own entry comes first.

    Attributes:
      degrees: of a single polynomial.
      margin: fraction of the met range's width added on both sides (1/sqrt and 1/x: the range is
        widened by that factor in ratio).
      method: of `approx.fit`.
      composites: knobs of `approx.composite` in place of a polynomial, such as ("exp",
        (("squarings", 14),)), ("relu", (("degrees", (15, 15, 27)),)) or ("inv_sqrt", (("degree",
        127), ("steps", 3))).
      ranges: the range to fit on, whatever was met: (a M, b M) is the paper's pre-scale M for a
        standard range (a, b).
      derivatives: "exact", or "cheap" for those of `models.derivatives`.

    Raises:
      ParameterError: a key that is neither a site nor a function, a degree below 1, a margin below
        0, or a range that is none.

    Examples:
      >>> from models import FitSettings
      >>> settings = FitSettings(degrees=(("relu", 7), ("layer0.ffn.relu", 15)), margin=0.5)
      >>> settings.degree("layer0.ffn.relu"), settings.degree("layer1.ffn.relu")
      (15, 7)
    """

    degrees: tuple[tuple[str, int], ...] = (
        ("exp", 7),
        ("gelu", 7),
        ("gelu_tanh", 7),
        ("inv", 7),
        ("inv_sqrt", 7),
        ("relu", 7),
        ("silu", 7),
        ("softmax_exp", 15),
        ("softmax_inv", 63),
        ("tanh", 7),
    )
    margin: float = 0.1
    method: str = "minimax"
    composites: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    ranges: tuple[tuple[str, Range], ...] = ()
    derivatives: str = "exact"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ParameterError(
                f"margin={self.margin}, by which ranges are widened, is no number from 0 on"
            )
        for name, degree in self.degrees:
            if degree < 1:
                raise ParameterError(f"the degree of {name} is {degree}, but at least 1")
        if self.derivatives not in ("exact", "cheap"):
            raise ParameterError(f"derivatives is 'exact' or 'cheap', not {self.derivatives!r}")
        for name in self.keys():
            if function_of(name) not in EXACT_FUNCTIONS:
                raise ParameterError(
                    f"{name!r} is neither a site nor a function of one, which are "
                    f"{', '.join(EXACT_FUNCTIONS)}"
                )
        for name, pair in self.ranges:
            if not pair[0] < pair[1]:
                raise ParameterError(f"{name}: {list(pair)} is not a low and a high number")

    def keys(self) -> set[str]:
        """All sites and functions that the tables name."""
        return {name for table in (self.degrees, self.composites, self.ranges) for name, _ in table}

    def degree(self, name: str) -> int:
        """Degree of a site's polynomial; ParameterError if none is given for it."""
        degree = _entry(self.degrees, name)
        if degree is None:
            raise ParameterError(
                f"no degree for {name}: add ({function_of(name)!r}, n) to the degrees"
            )
        return degree

    def knobs(self, name: str) -> dict[str, Any] | None:
        """What to build a site's composite from; None where it is a polynomial."""
        found = _entry(self.composites, name)
        return None if found is None else dict(found)

    def domain(self, name: str, met: Range | None) -> Range:
        """The range to fit on, given the one met. ParameterError if there is none, or it is not
        finite; a ConstantValuesWarning if it is one value.
        """
        own = _entry(self.ranges, name)
        if own is not None:
            return own
        if met is None:
            raise ParameterError(
                f"no range was met for {name}; run collect_ranges on data first, or give its range"
            )
        if not all(map(math.isfinite, met)):
            raise ParameterError(
                f"{name} met values from {met[0]:.4g} to {met[1]:.4g}: a weight or an input is NaN "
                f"or infinite, or what comes before {name} is too large for float32"
            )
        found = widen(name, met, self.margin)
        if met[0] == met[1]:
            warnings.warn(
                f"{name} met {met[0]:.4g} only, so its polynomial holds on [{found[0]:.4g}, "
                f"{found[1]:.4g}]: weights that are all zero still do so; give its range, or "
                "collect ranges after some steps",
                ConstantValuesWarning,
                stacklevel=4,
            )
        return found

    def build(self, name: str, domain: Range) -> Any:
        """The approximation for a site on a domain; an ApproxError names the site."""
        kind, knobs = function_of(name), self.knobs(name)
        try:
            if knobs is None:
                made = approx.fit(
                    _TARGETS.get(kind, kind), domain, degree=self.degree(name), method=self.method
                )
            else:
                made = approx.composite(_COMPOSITES.get(kind, kind), domain, **knobs)
        except approx.ApproxError as error:
            low, high = domain
            raise type(error)(
                f"{name} has no such polynomial on [{low:.6g}, {high:.6g}]: {error} "
                "Training with a range penalty narrows what a site meets."
            ) from error
        return cheap(kind, made) if self.derivatives == "cheap" else made


_TARGETS: Mapping[str, str] = {"softmax_exp": "exp", "softmax_inv": "inv"}
_COMPOSITES: Mapping[str, str] = {"exp": "exp_squaring", "softmax_inv": "inv"}


def _entry(table: tuple[tuple[str, Any], ...], name: str) -> Any | None:
    """A site's own entry of a table, or its function's."""
    entries = dict(table)
    return entries.get(name, entries.get(function_of(name)))


DEFAULT_FIT = FitSettings()


def widen(name: str, met: Range, margin: float) -> Range:
    """The range to fit on, given the one met: wider by the margin.

    The top of exp's is 0 in attention; those of tanh, ReLU, GELU and SiLU are symmetric about 0.
    ParameterError where 1/sqrt or 1/x met 0 or less.
    """
    low, high = met
    kind = function_of(name)
    if name == "loss.exp" or kind == "softmax_exp":
        more = margin * max(high - low, 1e-3)
        return (low - more, high + more)
    if kind == "exp":
        return (min(low * (1 + margin), -1e-3), 0.0)
    if kind in ("inv", "inv_sqrt", "softmax_inv"):
        if low <= 0:
            what = "variance" if kind == "inv_sqrt" else "value"
            raise ParameterError(
                f"{name}: the {what} reached {low}; {kind} has no polynomial there"
            )
        return (low / (1 + margin), high * (1 + margin))
    bound = max(abs(low), abs(high), 1e-3) * (1 + margin)
    return (-bound, bound)


def fit_ranges(
    config: EncoderConfig,
    ranges: Mapping[str, Range],
    settings: FitSettings = DEFAULT_FIT,
    names: Iterable[str] | None = None,
) -> Sites:
    """Approximations for the sites of a configuration over ranges, each widened by the margin.

    LayerNorm domains are stretched upwards until the widest is an integer multiple of each, so
    that one scale of the residual stream serves all of them without a level.

    Args:
      config: the model's.
      ranges: (low, high) by site, as `collect_ranges` gives them.
      settings: degrees, composites, margin.
      names: only these sites, `TRAINING_SITES` among them if wanted; by default all of the
        model's.

    Returns:
      The sites, for `Model.with_sites`.

    Raises:
      ParameterError: a site's range is missing, or a site that this model does not have is wanted
        or in the settings.
      ApproxError: no such polynomial exists; the site is named.

    Examples:
      >>> from models import fit_ranges, preset
      >>> met = {"layer0.ffn.relu": (-2.0, 1.0)}
      >>> sites = fit_ranges(preset("demo"), met, names=list(met))
      >>> sites.ranges()
      {'layer0.ffn.relu': (-2.2, 2.2)}
    """
    wanted = site_names(config) if names is None else tuple(names)
    asked = (*wanted, *(name for name in sorted(settings.keys()) if "." in name))
    unknown = [n for n in asked if n not in (*site_names(config), *TRAINING_SITES)]
    if unknown:
        raise ParameterError(
            f"this model has no site {', '.join(unknown)}; it has {', '.join(site_names(config))}"
        )
    domains = {n: settings.domain(n, ranges.get(n)) for n in wanted}
    norms = [n for n in domains if is_norm(n)]
    widest = max((domains[n][1] - domains[n][0] for n in norms), default=0.0)
    for n in norms:
        low, high = domains[n]
        multiple = min(MAX_MULTIPLE, int(widest / (high - low) + 1e-9))
        domains[n] = (low, low + widest / multiple)
    return Sites.of({n: settings.build(n, d) for n, d in domains.items()})
