"""One evaluator of all classifiers: logits, ranges met, shares outside, exact or under noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from hesim.errors import ArgumentError
from models.data.batches import Batch
from models.data.buckets import Plan, bucket_batches, lengths_of, trim
from models.encrypted.forward import encrypted_forward
from models.nn.encoder import Model
from models.nn.lora import Params
from models.objectives.losses import share_outside
from models.sites.sites import (
    DEFAULT_FIT,
    FitSettings,
    Range,
    Sites,
    fit_ranges,
    join_ranges,
    met_ranges,
)
from models.train.classifier import Forward, exact_forward

if TYPE_CHECKING:
    from hesim.circuit.circuit import Circuit
    from models.encrypted.settings import EncryptionSettings

__all__ = ["Evaluated", "collect_ranges", "fit_sites", "make_evaluate"]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Logits (n, classes), and per site the canonical range met and the share of values outside
    the polynomial's domain (empty for an exact model).

    A row whose polynomials ran away has logits that are no numbers. lost: the numbers of these
    rows. answers: the logits with these rows at 0: class 0, or a rating of 0.
    """

    logits: np.ndarray
    ranges: dict[str, Range]
    outside: dict[str, float]

    @property
    def lost(self) -> np.ndarray:
        return np.flatnonzero(~np.isfinite(self.logits).all(axis=-1))

    @property
    def answers(self) -> np.ndarray:
        finite = np.isfinite(self.logits).all(axis=-1, keepdims=True)
        return np.where(finite, self.logits, np.float32(0))


@functools.lru_cache(maxsize=64)
def make_evaluate(
    model: Model,
    size: int = 128,
    *,
    buckets: tuple[int, ...] | None = None,
    how: EncryptionSettings | None = None,
    answer: str = "logits",
    circuit: Circuit | None = None,
) -> Callable[[Params, Batch], Evaluated]:
    """A function that runs a model over rows, compiled once for each length of them.

    Args:
      model: exact, or a twin.
      size: rows at a time, at most.
      buckets: numbers of tokens that rows are cut to, each to the shortest that holds it; None:
        rows stay as long as they are, and fewer than `size` are run as they are.
      how: None without noise. As encrypted, each batch is answered under the noise of a fresh key;
        the sentences are encrypted and, of a model with adapters, whatever LoRA trained.
      answer: "logits", or "embeddings" (`Model.encrypted_embeddings`), without noise, which then
        stand in place of the logits: (n, hidden).
      circuit: as encrypted, the noise of this Circuit's own levels, refreshes and rotations
        (`hesim.simulate`), for batches of any size; of `forward_program`, rows as long as its own.

    Returns:
      (params, `Batch` of (n, sequence) tokens) -> `Evaluated`: logits (n, classes), the range met
        at each site, and the share of values outside of each polynomial's domain.

    Raises:
      ArgumentError: another answer, or embeddings under noise; from the function: shapes that the
        configuration does not have.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Batch, Model, make_evaluate, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> rows = Batch(np.zeros((2, 4), int), np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> make_evaluate(model)(model.init(jax.random.key(0)), rows).logits.shape
      (2, 2)
    """
    if answer not in ("logits", "embeddings") or (answer == "embeddings" and how is not None):
        raise ArgumentError(f"answer={answer!r} is logits, or embeddings without noise (how=None)")
    width = model.config.classes if answer == "logits" else model.config.hidden
    forward: Forward = (
        exact_forward(model) if how is None else encrypted_forward(model, how, circuit)
    )
    if answer == "embeddings":
        forward = _embeddings_forward(model)
    unit, domains = model.units(), model.sites.ranges()

    @jax.jit
    def run(key: jax.Array, params: Params, batch: Batch):
        x = model.embed(params, batch.tokens, batch.types)
        logits, values = forward(key, params, x, batch.mask)
        return logits, met_ranges(values, unit), share_outside(values, unit, domains)

    def evaluate(params: Params, data: Batch) -> Evaluated:
        total = len(data.tokens)
        logits = np.zeros((total, width), np.float32)
        ranges: list[Mapping[str, Any]] = []
        outside: dict[str, float] = {}
        for number, plan in enumerate(_plans(data, size, buckets)):
            found, met, share = run(jax.random.key(number), params, trim(data, plan))
            logits[plan.rows[: plan.count]] = np.asarray(found)[: plan.count]
            ranges.append(met)
            for name, value in share.items():
                outside[name] = outside.get(name, 0.0) + plan.count / total * float(value)
        return Evaluated(logits, join_ranges(ranges), outside)

    return evaluate


def _embeddings_forward(model: Model) -> Forward:
    def forward(key: jax.Array, params: Params, x: jax.Array, mask: jax.Array):
        del key
        return model.embeddings_with_values(params, x, mask)

    return forward


def _plans(data: Batch, size: int, buckets: tuple[int, ...] | None) -> Iterator[Plan]:
    """Batches of all rows, in their order where they are not cut to buckets."""
    if buckets is not None:
        return bucket_batches(lengths_of(data), size, buckets)
    longest = data.tokens.shape[-1]
    whole = np.full(len(data.tokens), longest)
    return bucket_batches(whole, min(size, len(data.tokens)), (longest,))


def collect_ranges(model: Model, params: Params, data: Batch, size: int = 128) -> dict[str, Range]:
    """The range that every site meets on some rows, padding included (it is encrypted too).

    Args:
      model: exact, or a twin.
      params: its parameters.
      data: rows of tokens (n, sequence).
      size: rows at a time.

    Returns:
      (low, high) by site, of the function's own variable.

    Raises:
      ArgumentError: shapes that the configuration does not have.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Batch, Model, collect_ranges, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> rows = Batch(np.arange(8).reshape(2, 4), np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> met = collect_ranges(model, model.init(jax.random.key(0)), rows)
      >>> met["layer0.attention.exp"][1] <= 0.0
      True
    """
    return make_evaluate(model, size)(params, data).ranges


def fit_sites(
    model: Model, params: Params, data: Batch, settings: FitSettings = DEFAULT_FIT
) -> Sites:
    """Approximations for all sites over the ranges that a model meets on some rows, and a margin.

    Args:
      model: usually the exact one.
      params: its parameters.
      data: rows of tokens (n, sequence) that stand for real ones.
      settings: degrees, composites, margin.

    Returns:
      The sites, for `Model.with_sites`.

    Raises:
      ParameterError: a setting for a site that this model does not have.
      ApproxError: no such polynomial exists; the site is named.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Batch, FitSettings, Model, fit_sites, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> rows = Batch(np.arange(8).reshape(2, 4), np.ones((2, 4), np.float32), np.array([0, 1]))
      >>> sites = fit_sites(model, model.init(jax.random.key(0)), rows, FitSettings(margin=0.3))
      >>> sites.get("layer0.ffn.relu").degree <= 7, len(sites.entries)
      (True, 5)
    """
    return fit_ranges(model.config, collect_ranges(model, params, data), settings)
