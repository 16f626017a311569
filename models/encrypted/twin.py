"""A fine-tuned model's polynomial twin, over the ranges that it meets; without its adapters."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from hesim.errors import ParameterError
from models.config import EncoderConfig
from models.data.batches import Batch, select_rows
from models.data.datasets import sample
from models.encrypted.settings import EncryptionSettings
from models.nn.encoder import Model
from models.nn.lora import Params, is_adapter, merge, partition
from models.sites.sites import fit_ranges
from models.train.evaluate import make_evaluate

__all__ = ["encryptable", "merged", "twin_of"]


def merged(model: Model, params: Params) -> tuple[Model, Params]:
    """The same function without adapters: each added to its matrix."""
    if not model.config.lora_rank:
        return model, params
    plain, _ = partition(merge(params, model.config.lora_scale), lambda path: not is_adapter(path))
    return dataclasses.replace(model, config=model.config.replace(lora_rank=0)), plain


def encryptable(config: EncoderConfig, squarings: int = 3) -> EncoderConfig:
    """The configuration of the twin, of the same parameters: softmax attention by so many
    squarings, which sums, products and polynomials can compute; any other as it is.
    """
    if config.attention != "softmax":
        return config
    return config.replace(attention="squared_softmax", softmax_squarings=squarings)


def twin_of(
    model: Model, params: Params, train: Batch, buckets: tuple[int, ...], how: EncryptionSettings
) -> Model:
    """The model with polynomials over the ranges that it meets on training rows, each widened;
    adapters kept as two thin products, softmax as `encryptable` has it. ParameterError names
    weights that are NaN or infinite, or the first site that meets such values.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    strange = [jax.tree_util.keystr(p) for p, leaf in leaves if not np.all(np.isfinite(leaf))]
    if strange:
        raise ParameterError(f"weights are NaN or infinite: {', '.join(strange[:5])}")
    model = dataclasses.replace(model, config=encryptable(model.config, how.softmax_squarings))
    rows = sample(len(train.tokens), how.range_rows)
    plain, weights = merged(model, params)
    met = make_evaluate(plain, buckets=buckets)(weights, select_rows(train, rows)).ranges
    sites = fit_ranges(model.config, met, how.fit)
    return Model(model.config, sites, low_rank=True)
