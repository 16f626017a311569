"""Where numbers ceased to be finite: a parameter, a site of the forward pass, or the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.nn.encoder import Model
from models.nn.lora import Params
from models.objectives.losses import share_outside

__all__ = ["ended_wrong", "gone_wrong", "not_finite", "origin"]


def origin(model: Model, params: Params, batch: Any) -> str:
    """One line that names what is not finite first, in the order of a forward pass on `batch`
    (`tokens`, `mask`, and `types` where it has them): parameters, the embedding, what reaches a
    site, what a site makes of it. The pass is one without noise; if it stays finite, the sites
    that are left are named.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _finite(leaf):
            name = ".".join(str(getattr(part, "key", part)) for part in path)
            return f"the parameter {name} is not finite before the step"
    rows = model.embed(params, batch.tokens, getattr(batch, "types", None))
    if not _finite(rows):
        return "the embedding is not finite"
    mask = jnp.asarray(batch.mask)
    found, values = model.hidden_states(params, rows, mask)
    logits, pooled = model.forward_with_values(params, rows, mask)
    unit = model.units()
    for name, value in {**values, **pooled}.items():
        if not _finite(value):
            return f"what reaches the site {name} is not finite"
        if not _finite(model.sites.apply(name, value, unit[name])):
            low, high = (float(unit[name] * f(value)) for f in (jnp.min, jnp.max))
            return f"the site {name} makes values that are not finite of {low:.4g} to {high:.4g}"
    if not (_finite(found) and _finite(logits)):
        return "the head's input is not finite"
    share = share_outside({**values, **pooled}, unit, model.sites.ranges())
    left = sorted(((float(s), name) for name, s in share.items() if s > 0), reverse=True)
    if left:
        named = ", ".join(f"{name} ({s:.2%})" for s, name in left[:4])
        return f"every site is finite without noise, but these leave their domain: {named}"
    return "every site is finite: it is the loss or its gradient"


def _finite(array: Any) -> bool:
    return bool(np.isfinite(np.asarray(array, np.float32)).all())


def gone_wrong(
    step: int, before: Mapping[str, float], now: Mapping[str, float], sites: Sequence[str]
) -> str:
    """What to say of a loss that is not finite, given the shares outside in the step before and in
    this one, where the first site that was left took the others along.
    """
    met = sorted((-share, name) for name, share in before.items() if share > 0)
    first = next((name for name in sites if now.get(name, 0.0) > 0), None)
    said = []
    if met:
        names = ", ".join(f"{name} ({-share:.2%} of its values)" for share, name in met[:4])
        said.append(f"in the step before, these left their polynomial's domain: {names}")
    if first is not None:
        said.append(f"in this step {first} was the first to leave it ({now[first]:.2%})")
    if not said:
        return f"the loss is not finite at step {step}: lower the learning rate"
    return (
        f"the loss is not finite at step {step}; {'; '.join(said)}. Widen the domain (for "
        "optimizer.inv_sqrt: a larger epsilon), or lower the learning rate"
    )


def not_finite(params: Params) -> str | None:
    """The first parameter with a NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.isfinite(leaf).all():
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None


def ended_wrong(step: int, name: str, outside: float) -> str:
    """What to say of a parameter that a step, whose own loss was finite, left without value.
    outside: the largest share of values out of a domain.
    """
    left = f"; {outside:.2%} of a site's values had left their domain" if outside else ""
    return (
        f"step {step} left the parameter {name} not finite{left}: lower the learning rate, or "
        "widen the domains (for optimizer.inv_sqrt: a larger epsilon)"
    )
