"""Whole circuits whose error is measured: attention, LayerNorm, a block with LoRA, a gradient.

All are traced from plain JAX functions or from `models`, on values of the sizes that a trained
model has, and fit a ring of 2^13 with refreshes in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import approx
import hesim
from hesim.program import Program
from models.config import EncoderConfig
from models.data.batches import Batch
from models.nn.encoder import Model
from models.sites.sites import FitSettings, fit_ranges
from models.train.evaluate import collect_ranges

__all__ = ["CASES", "CircuitCase"]


@dataclass(frozen=True)
class CircuitCase:
    """A traced function with the arguments that it is run on."""

    program: Program
    args: tuple[Any, ...]


def attention_head() -> CircuitCase:
    """One head of Gaussian-kernel attention: 32 sentences of 8 tokens and 16 features."""
    rng = np.random.default_rng(0)
    x = _normalised(rng.normal(size=(32, 8, 16)))
    weights = [rng.normal(size=(16, 8)) / 4 for _ in range(3)]
    kernel = approx.fit("exp", (-24.0, 0.0), degree=15)

    def head(x: Any, wq: Any, wk: Any, wv: Any) -> Any:
        return _attend(kernel, x @ wq, x @ wk) @ (x @ wv) / x.shape[1]

    return _case(head, (x, *weights), (0,))


def layer_norm() -> CircuitCase:
    """LayerNorm of 256 tokens of 16 features, mean and variance both under encryption."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(256, 16)) * rng.uniform(0.7, 1.4, (256, 1)) + 0.2
    gain, bias = 1 + 0.1 * rng.normal(size=16), 0.1 * rng.normal(size=16)
    inverse = approx.fit("inv_sqrt", (0.1, 4.0), degree=15)

    def normalise(x: Any, gain: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred * inverse(variance) * gain + bias

    return _case(normalise, (x, gain, bias), (0,))


def block() -> CircuitCase:
    """A block of the encoder with LoRA adapters of rank 2 and its two LayerNorms, on all tokens."""
    config = EncoderConfig(
        layers=1,
        hidden=16,
        heads=2,
        ffn=32,
        sequence=8,
        vocabulary=512,
        pooler=(16,),
        lora_rank=2,
        lora_targets=("query", "key", "value"),
    )
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, 512, (32, 8)).astype(np.int32)
    mask = np.ones((32, 8), np.float32)
    exact = Model(config, low_rank=True)
    params = exact.init(jax.random.key(0))
    # B starts at zero, where the adapters would carry nothing.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
            if path[-1].key == "lora_b"
            else leaf
        ),
        params,
    )
    ranges = collect_ranges(exact, params, Batch(tokens, mask, np.zeros(32, np.int32)))
    # The polynomials' own errors carry values further than the exact model met them.
    model = exact.with_sites(fit_ranges(config, ranges, FitSettings(margin=0.6)))
    x = np.asarray(model.embed(params, tokens))

    def states(params: Any, x: Any, mask: Any) -> Any:
        return model.hidden_states(params, x, mask)[0]

    return _case(states, (params, x, mask), (1,))


def gradient() -> CircuitCase:
    """The gradient of a Gaussian-kernel head's squared error by its LoRA matrices of rank 2, all
    three projections adapted; sentences and targets encrypted.
    """
    rng = np.random.default_rng(3)
    x = _normalised(rng.normal(size=(32, 8, 16)))
    y = rng.normal(size=(32, 4))
    weights = [rng.normal(size=(16, 8)) / 4 for _ in range(3)]
    head = rng.normal(size=(8, 4)) / 2
    adapters = [
        {"a": rng.normal(size=(16, 2)) / 4, "b": 0.3 * rng.normal(size=(2, 8))} for _ in range(3)
    ]
    kernel = approx.fit("exp", (-24.0, 0.0), degree=15)

    def loss(adapters: Any, x: Any, y: Any, weights: Any, head: Any) -> Any:
        q, k, v = (
            x @ w + (x @ pair["a"]) @ pair["b"] for w, pair in zip(weights, adapters, strict=True)
        )
        pooled = (_attend(kernel, q, k) @ v / x.shape[1]).mean(1)
        return jnp.mean((pooled @ head - y) ** 2)

    return _case(jax.grad(loss), (adapters, x, y, weights, head), (1, 2))


CASES: dict[str, Callable[[], CircuitCase]] = {
    "attention": attention_head,
    "layer norm": layer_norm,
    "block": block,
    "gradient": gradient,
}
"""By name."""


def _attend(kernel: Any, q: Any, k: Any) -> Any:
    """exp(-|q - k|^2 / (2 sqrt(d))) for every pair of tokens, as the paper's kernel has it."""
    squared = jnp.sum((q[:, :, None] - k[:, None]) ** 2, axis=-1)
    return kernel(squared * (-0.5 / q.shape[-1] ** 0.5))


def _normalised(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / x.std(-1, keepdims=True)


def _case(fn: Callable[..., Any], args: tuple[Any, ...], encrypted: tuple[int, ...]) -> CircuitCase:
    args = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), args)
    return CircuitCase(hesim.trace(fn, *args, encrypted=encrypted), args)
