"""`hesim plan`: what a run of the demo's model would spend, without training or encrypting it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import hesim
from experiments.demo.settings import Settings
from hesim.circuit.circuit import Circuit
from hesim.params import CKKSParams
from hesim.program import Program
from models.nn.encoder import Model
from models.sites.sites import fit_ranges, function_of, site_names

__all__ = ["plan_demo"]


def plan_demo(
    sentences: int, ring: dict[str, Any], refresh_price: float | str | None = None
) -> tuple[Program, Circuit]:
    """The demo's forward pass with random weights, traced and compiled.

    Levels and counts do not depend on values, so they are those of a trained model whose
    polynomials have the same degrees.

    Args:
      sentences: side by side in the slots. ring: fields of `CKKSParams` that differ from the
        demo's. refresh_price: as for `hesim.compile`.
    """
    settings = Settings()
    config, recipe = settings.config, settings.recipe
    params = CKKSParams(first_bits=50, special_bits=60, **ring)
    targets = dict(recipe.targets)
    ranges = {name: targets[function_of(name)] for name in site_names(config)}
    model = Model(config, fit_ranges(config, ranges, recipe.fit))
    weights = model.init(jax.random.key(0))
    x = np.zeros((sentences, config.sequence, config.hidden), np.float32)
    mask = np.ones((sentences, config.sequence), np.float32)
    program = hesim.trace(model.encrypted_forward, weights, x, mask, encrypted=(1,))
    return program, hesim.compile(program, params, refresh_price=refresh_price)
