"""Self-attention: the Gaussian kernel, which encryption can evaluate, and softmax, which it cannot.

Gaussian kernel: S_ij = exp(-|q_i - k_j|^2 / (2 sqrt(d))), d the features of a head, output S V with
no normalisation (Rho et al. 2025, eq. 2). Nothing is subtracted from a row and nothing is divided
by, so padding is masked by zero rows of V; the mask is public, hence so are the lengths. With
softmax the mask is additive, in the clear only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import EncoderConfig
from models.layers import LayerNorm, centred
from models.lora import Linear
from models.sites import Probe, norm_scale

MASKED = -1e9


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """(batch, tokens, hidden) -> (batch, heads, tokens, hidden / heads)."""
    batch, tokens, hidden = x.shape
    return x.reshape(batch, tokens, heads, hidden // heads).transpose(0, 2, 1, 3)


def join_heads(x: jax.Array) -> jax.Array:
    """(batch, heads, tokens, d) -> (batch, tokens, heads * d)."""
    batch, heads, tokens, features = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * features)


def negative_squared_distance(q: jax.Array, k: jax.Array) -> jax.Array:
    """-|q_i - k_j|^2 of (..., i, d) and (..., j, d) as 2 q k' - |q|^2 - |k|^2: (..., i, j), one
    level.
    """
    cross = jnp.einsum("...id,...jd->...ij", q + q, k)
    return cross - jnp.sum(q * q, axis=-1)[..., :, None] - jnp.sum(k * k, axis=-1)[..., None, :]


class Attention(nnx.Module):
    """Multi-head self-attention without biases; adapters on the projections that the configuration
    names.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        def linear(target: str, gain: float = 1.0) -> Linear:
            rank = config.lora_rank if target in config.lora_targets else 0
            return Linear(
                config.hidden,
                config.hidden,
                rngs=rngs,
                std=config.initial_std,
                gain=gain,
                rank=rank,
                lora_scale=config.lora_scale,
            )

        near = 0.5 if config.attention == "gaussian" else 1.0
        self.query = linear("query", near)
        self.key = linear("key", near)
        self.value = linear("value")
        self.output = linear("output", 0.5)
        self.heads = config.heads
        self.kind = config.attention
        self.mean = config.attention_mean

    def __call__(
        self,
        name: str,
        queries: jax.Array,
        keys: jax.Array,
        mask: jax.Array,
        norm: LayerNorm | None,
        probe: Probe,
        *,
        low_rank: bool = False,
    ) -> jax.Array:
        """Update of the stream, scaled by c: (batch, queries, hidden).

        queries (batch, queries, hidden) and keys (batch, tokens, hidden) are normalised rows; mask
        (batch, tokens) is 1 for a token and 0 for padding. norm: the LayerNorm whose affine part is
        folded in here, None if there is none.

        The mask multiplies V, two levels below the kernel's exponential, where the product shortens
        no chain.
        """
        hidden = keys.shape[-1]
        c = norm_scale(probe.sites, hidden)
        gamma = norm.gain(probe) if norm is not None else 1.0 / c
        beta = norm.bias[...] if norm is not None else None
        site = f"{name}.exp"
        features = hidden // self.heads
        if self.kind == "gaussian":
            near = (2 * features**0.5 * probe.unit(site)) ** -0.5
            factors = (near, near)
        else:
            factors = (features**-0.5, 1.0)
        options = {"gamma": gamma, "beta": beta, "low_rank": low_rank}
        q = split_heads(self.query.project(queries, factor=factors[0], **options), self.heads)
        k = split_heads(self.key.project(keys, factor=factors[1], **options), self.heads)
        v = self.value.project(keys, **options)
        if self.kind == "gaussian":
            v = v * self.row_weights(mask)[..., None]
        v = split_heads(v, self.heads)
        if self.kind == "gaussian":
            scores = probe(site, negative_squared_distance(q, k))
        else:
            logits = jnp.einsum("...id,...jd->...ij", q, k)
            scores = jax.nn.softmax(logits + MASKED * (1 - mask)[:, None, None, :], axis=-1)
        mixed = join_heads(jnp.einsum("...ij,...jd->...id", scores, v))
        return self._write(mixed, c, low_rank)

    def row_weights(self, mask: jax.Array) -> jax.Array:
        """Public weights of V's rows: the mask, over the number of tokens where the configuration
        says so.
        """
        return mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0) if self.mean else mask

    def _write(self, mixed: jax.Array, c: float, low_rank: bool) -> jax.Array:
        if low_rank and self.output.lora_a is not None and self.output.lora_b is not None:
            update = mixed @ (c * centred(self.output.kernel[...]))
            low = mixed @ (c * self.output.lora_scale * self.output.lora_a[...])
            up = self.output.lora_b[...]
            return update + low @ centred(up)
        return mixed @ (c * centred(self.output.merged))
