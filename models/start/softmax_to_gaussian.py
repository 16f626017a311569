"""Softmax attention's weights made ready for a Gaussian kernel: what softmax does not notice is
chosen such that the kernel comes close.

With q and k scaled by d^(-1/4), softmax mixes values with exp(q_i k_j') over its row sum, and the
Gaussian kernel with exp(-|q_i - k_j|^2 / 2) = exp(q_i k_j') exp(-|q_i|^2 / 2) exp(-|k_j|^2 / 2).
The two differ by a factor of the row and one of the column, which are constant where all queries
have one length and all keys have one. Softmax stays as it is to the last bit of arithmetic under

- q -> q M', k -> k M^-1 for an invertible M: the one is taken that makes the expected squares of
  queries and keys smallest, and equal to each other, so that lengths vary least (its M' M is the
  geometric mean of the inverse covariance of the queries and the covariance of the keys);
- a constant added to all keys: they are moved towards the queries;
- a constant subtracted from all values and put back behind the mixing, since weights sum to 1: the
  kernel's sums, which are not 1, then multiply what differs between tokens alone.

Where the keys are moved to, a factor of queries and keys, and one of the values are chosen per head
by least squares on data, the last in closed form. Needs no gradient and no training.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.config import EncoderConfig
from models.errors import CheckpointError
from models.nn.encoder import Encoder, Model, bind
from models.nn.lora import Params, merge
from models.sites.sites import EXACT, SiteRecorder

__all__ = ["balanced", "warm_start"]

MOVES = (0.0, 0.25, 0.5, 0.75, 1.0)
FACTORS = (0.6, 0.8, 1.0)
"""What is tried: the share of the queries' mean that the keys' mean stays away from it, and the
factor of queries and keys (1 keeps the products of softmax)."""

_RIDGE = 1e-4


def warm_start(
    config: EncoderConfig,
    params: Params,
    tokens: Any,
    mask: Any,
    types: Any = None,
    *,
    kernel_mean: bool = True,
) -> Params:
    """Parameters for the same configuration with attention "gaussian", from those of a softmax
    model; only query, key, value and output projections of its attention change.

    tokens, mask, types (or None): (n, sequence) rows that the choices are made on, some hundred are
    enough.
    kernel_mean: `attention_mean` of the Gaussian configuration. Adapters are merged first.
    CheckpointError for a model without biases, in which nothing can be moved, for a causal one,
    whose rows have lengths of their own, or one that has no softmax.
    """
    if config.attention != "softmax" or not config.biases or config.causal:
        raise CheckpointError(
            "a warm start goes from a softmax encoder with biases; this one has "
            f"attention={config.attention!r}, biases={config.biases}, causal={config.causal}"
        )
    params = merge(params, config.lora_scale)
    parts = _projections(Model(config), params, tokens, mask, types)
    real = np.asarray(mask) > 0
    blocks = dict(params["blocks"])
    for layer in range(config.layers):
        q, k, v = (np.asarray(parts[f"layer{layer}.attention.{n}"], np.float64) for n in "qkv")
        new = _layer(blocks[layer]["attention"], q, k, v, real, config, kernel_mean)
        blocks[layer] = {**blocks[layer], "attention": new}
    return {**params, "blocks": blocks}


def balanced(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """M (d, d) with E|q M'|^2 + E|k M^-1|^2 as small as it gets, of centred q and k (n, d)."""
    d = queries.shape[-1]
    q, k = (x.T @ x / len(x) for x in (queries, keys))
    q, k = (c + _RIDGE * np.trace(c) / d * np.eye(d) for c in (q, k))
    root = _power(q, 0.5)
    inverse = _power(q, -0.5)
    return _power(inverse @ _power(root @ k @ root, 0.5) @ inverse, 0.5)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 1e-12 * values.max()) ** exponent) @ vectors.T


def _projections(
    model: Model, params: Params, tokens: Any, mask: Any, types: Any
) -> dict[str, jax.Array]:
    """Per layer q and k, whose products softmax takes, and v: (n, heads, tokens, d)."""

    @jax.jit
    def run(params: Params, tokens: Any, mask: Any, types: Any) -> dict[str, jax.Array]:
        encoder: Encoder = bind(model.config, params)
        probe = SiteRecorder(EXACT)
        encoder.body(model.embed(params, tokens, types), mask, probe, low_rank=False, pick=None)
        root = model.config.head_dim**0.25
        heads = model.config.heads
        out = {}
        for layer in range(model.config.layers):
            name = f"layer{layer}.attention"
            out[f"{name}.q"] = probe.outputs[f"{name}.queries"] * root  # has the factor d^(-1/2)
            out[f"{name}.k"] = probe.outputs[f"{name}.keys"] / root
            v = probe.outputs[f"{name}.values"]
            out[f"{name}.v"] = v.reshape(*v.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        return out

    return run(params, tokens, mask, types)


def _layer(
    old: Params,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    real: np.ndarray,
    config: EncoderConfig,
    kernel_mean: bool,
) -> Params:
    """The attention's parameters with every head fitted."""
    d = config.head_dim
    scale = d**0.25  # a bias or mean of q and k as they are, from the scaled ones
    new = {name: dict(child) for name, child in old.items()}
    arrays = {
        (name, part): np.array(new[name][part], np.float64)
        for name in ("query", "key", "value", "output")
        for part in ("kernel", "bias")
    }
    constant = np.zeros(config.hidden)
    for head in range(config.heads):
        own = slice(head * d, (head + 1) * d)
        qs, ks, vs = (x[:, head][real] for x in (q, k, v))
        matrix = balanced(qs - qs.mean(0), ks - ks.mean(0))
        inverse = np.linalg.inv(matrix)
        moved_q, moved_k = q[:, head] @ matrix.T, k[:, head] @ inverse
        at, shift = qs.mean(0) @ matrix.T, ks.mean(0) @ inverse
        centre = vs.mean(0)
        wanted = _softmax(q[:, head], k[:, head], real) @ (v[:, head] - centre)
        move, factor, gain = _best(
            moved_q, moved_k - shift, v[:, head] - centre, wanted, at, real, kernel_mean
        )
        for name, by, add in (
            ("query", factor * matrix.T, np.zeros(d)),
            ("key", factor * inverse, factor * scale * ((1 - move) * at - shift)),
        ):
            arrays[name, "kernel"][:, own] = arrays[name, "kernel"][:, own] @ by
            arrays[name, "bias"][own] = arrays[name, "bias"][own] @ by + add
        arrays["value", "kernel"][:, own] *= gain
        arrays["value", "bias"][own] = gain * (arrays["value", "bias"][own] - centre)
        constant[own] = centre
    arrays["output", "bias"] += constant @ arrays["output", "kernel"]
    for (name, part), array in arrays.items():
        new[name][part] = jnp.asarray(array, jnp.float32)
    return new


def _softmax(q: np.ndarray, k: np.ndarray, real: np.ndarray) -> np.ndarray:
    logits = np.where(real[:, None, :], q @ k.swapaxes(-1, -2), -np.inf)
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def _best(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    wanted: np.ndarray,
    at: np.ndarray,
    real: np.ndarray,
    kernel_mean: bool,
) -> tuple[float, float, float]:
    """(move, factor, gain of the values) of the least squares between the kernel's output and the
    one wanted, over real tokens; k has mean zero, `at` is the mean of q.
    """
    weights = real / real.sum(-1, keepdims=True) if kernel_mean else real.astype(float)
    target = wanted[real]
    found: tuple[float, float, float, float] | None = None
    for move, factor in itertools.product(MOVES, FACTORS):
        distance = _squared_distances(factor * q, factor * (k + (1 - move) * at))
        out = (np.exp(-distance / 2) * weights[:, None, :] @ v)[real]
        power = float((out * out).sum())
        gain = float((out * target).sum()) / power if power > 0 else 0.0
        left = float(((gain * out - target) ** 2).sum())
        if found is None or left < found[0]:
            found = (left, move, factor, gain)
    assert found is not None
    return found[1:]


def _squared_distances(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    cross = q @ k.swapaxes(-1, -2)
    return (q * q).sum(-1)[..., :, None] + (k * k).sum(-1)[..., None, :] - 2 * cross
