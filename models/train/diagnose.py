"""Where numbers ceased to be finite: a parameter, a site of the forward pass, or the gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.nn.encoder import Model
from models.nn.lora import Params
from models.objectives.losses import share_outside

__all__ = ["origin"]


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
