"""Do the values that a model meets stay where its approximations hold? By site, on given rows.

Outside its domain a polynomial is not inaccurate but arbitrary, and a server cannot see it: this is
found out on data in the clear, before anything runs encrypted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.nn.encoder import Model
from models.nn.lora import Params
from models.objectives.losses import share_outside
from models.sites.sites import Range, join_ranges, met_ranges


class SiteRange(NamedTuple):
    """One site: the canonical range met, the one fitted (None: exact), and the share of values
    outside it.
    """

    name: str
    met: Range
    fitted: Range | None
    share: float

    def __str__(self) -> str:
        met = f"{self.name} met [{self.met[0]:.4g}, {self.met[1]:.4g}]"
        if self.fitted is None:
            return f"{met}, exact"
        low, high = self.fitted
        return f"{met}, {self.share:.3%} of the values outside [{low:.4g}, {high:.4g}]"


class RangeReport(NamedTuple):
    """All sites in the order in which the forward pass meets them."""

    sites: tuple[SiteRange, ...]

    @property
    def outside(self) -> tuple[SiteRange, ...]:
        """Sites that met values outside their range, the worst first."""
        found = [site for site in self.sites if site.share > 0]
        return tuple(sorted(found, key=lambda site: -site.share))

    def __str__(self) -> str:
        if not self.outside:
            return f"all {len(self.sites)} sites stay within their ranges"
        return "\n".join(map(str, self.outside))


def check_ranges(
    model: Model,
    params: Params,
    tokens: Any,
    mask: Any,
    types: Any = None,
    *,
    size: int = 256,
    states: bool = False,
) -> RangeReport:
    """Runs rows through a model and reports by site whether values stay in polynomials' domains.

    Padding counts, since it is encrypted too. A value that is not a number counts as outside.

    Args:
      model: with the sites to check.
      params: its parameters.
      tokens: (n, sequence), or (n, 2, sequence) of pairs that are read apart.
      mask: of the same shape, 0 and 1.
      types: token types of the same shape, or None.
      size: rows at a time.
      states: of the pass that keeps all tokens to the end instead of the pooled one.

    Returns:
      A report: `str` of it names the sites with values outside.

    Raises:
      ArgumentError: shapes that the configuration does not have.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Batch, Model, check_ranges, fit_sites, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> params, tokens = model.init(jax.random.key(0)), np.arange(8).reshape(2, 4)
      >>> rows = Batch(tokens, np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> twin = model.with_sites(fit_sites(model, params, rows))
      >>> print(check_ranges(twin, params, rows.tokens, rows.mask))
      all 5 sites stay within their ranges
    """
    fitted, unit = model.sites.ranges(), model.units()
    forward = model.hidden_states if states else model.forward_with_values

    @jax.jit
    def run(tokens: Any, mask: Any, types: Any) -> Any:
        _, values = forward(params, model.embed(params, tokens, types), mask)
        shares = share_outside(values, unit, fitted)
        lost = {name: jnp.mean(jnp.isnan(value)) for name, value in values.items()}
        return met_ranges(values, unit), shares, lost

    met, total = [], len(tokens)
    shares: dict[str, float] = {}
    for start in range(0, total, size):
        rows = slice(start, start + size)
        part = None if types is None else np.asarray(types)[rows]
        found, outside, lost = run(np.asarray(tokens)[rows], np.asarray(mask)[rows], part)
        met.append(found)
        weight = len(np.asarray(tokens)[rows]) / total
        for name in found:
            share = float(outside.get(name, 0.0)) + float(lost[name])
            shares[name] = shares.get(name, 0.0) + weight * share
    joined = join_ranges(met)
    return RangeReport(
        tuple(SiteRange(name, joined[name], fitted.get(name), shares[name]) for name in met[0])
    )
