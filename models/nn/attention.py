"""Self-attention: the Gaussian kernel, which encryption can evaluate, softmax, which it cannot, two
normalised kernels in between, and softmax by squarings.

gaussian: S_ij = exp(-|q_i - k_j|^2 / (2 sqrt(d))), d the features of a head, output S V with no
normalisation (Rho et al. 2025, eq. 2; the kernel of Skyformer, Chen et al. 2021). Nothing is
subtracted from a row and nothing is divided by, so padding is masked by zero rows of V. The site
`exp` may be exact, a polynomial, or repeated squaring.

gaussian_normalised: the same kernel with each row divided by its sum. power_softmax: S_ij =
(q_i k_j' / sqrt(d))^p for an even p, each row divided by its sum (Zimerman et al. 2024). Both meet
a site `inv`, the reciprocal of a row's mean over the visible tokens.

softmax: with an additive mask, in the clear only. The mask is public, hence so are the lengths.

squared_softmax: the same without a maximum, by softmax(s) = normalised(softmax(s / 2)^2) (normalise
and square: Cho et al. 2024, section 4): y = exp(s / 2^k) times the mask, divided by its sum; then k
times y^2 divided by its sum, which lies between 1 / tokens and 1 whatever the scores are. So no
score has to be near another, as it has for one exp and one division. The last division waits until
the values are mixed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import EncoderConfig
from models.nn.layers import LayerNorm, centred
from models.nn.lora import Linear
from models.sites.sites import SiteRecorder, norm_scale

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
    """Multi-head self-attention; adapters on the projections that the configuration names."""

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
                bias=config.biases,
            )

        self.kind = config.attention
        self.gaussian = self.kind.startswith("gaussian")
        near = 0.5 if self.gaussian else 1.0
        self.query = linear("query", near)
        self.key = linear("key", near)
        self.value = linear("value")
        self.output = linear("output", 0.5)
        self.heads = config.heads
        self.mean = config.attention_mean
        self.power = config.attention_power
        self.squarings = config.softmax_squarings
        self.epsilon = config.norm_epsilon

    def __call__(
        self,
        name: str,
        queries: jax.Array,
        keys: jax.Array,
        mask: jax.Array,
        norm: LayerNorm | None,
        probe: SiteRecorder,
        *,
        causal: bool = False,
        low_rank: bool = False,
    ) -> jax.Array:
        """Update of the stream, scaled by c: (batch, queries, hidden).

        queries (batch, queries, hidden) and keys (batch, tokens, hidden) are normalised rows; mask
        (batch, tokens) is 1 for a token and 0 for padding. norm: the LayerNorm whose affine part is
        folded in here, None if there is none. causal: query i sees the tokens up to i, and there
        are as many queries as tokens.
        """
        c = norm_scale(probe.sites, keys.shape[-1])
        options = {
            "gamma": norm.gain(probe) if norm is not None else 1.0 / c,
            "beta": norm.bias[...] if norm is not None else None,
            "low_rank": low_rank,
        }
        near = self._near(name, keys.shape[-1] // self.heads, probe)
        q = split_heads(self.query.project(queries, factor=near[0], **options), self.heads)
        k = split_heads(self.key.project(keys, factor=near[1], **options), self.heads)
        v = self.value.project(keys, **options)
        for part, x in (("queries", q), ("keys", k), ("values", v)):
            probe.keep(f"{name}.{part}", x)
        mixed = self._mix(name, q, k, v, mask, probe, causal)
        return self._write(join_heads(mixed), c, low_rank)

    def _near(self, name: str, features: int, probe: SiteRecorder) -> tuple[float, float]:
        """Factors that are folded into the projections to queries and keys."""
        if self.gaussian:
            factor = (2 * features**0.5 * probe.unit(f"{name}.exp")) ** -0.5
            return factor, factor
        if self.kind == "squared_softmax":
            unit = probe.unit(f"{name}.softmax_exp")
            return features**-0.5 / (2**self.squarings * unit), 1.0
        return features**-0.5, 1.0

    def _mix(
        self,
        name: str,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array,
        probe: SiteRecorder,
        causal: bool,
    ) -> jax.Array:
        """Values mixed by the scores: q and k (batch, heads, ., d), v (batch, tokens, hidden) ->
        (batch, heads, queries, d).

        Not causal, the mask multiplies V, two levels below the kernel's exponential, where the
        product shortens no chain; causal, it must multiply the scores.
        """
        if self.kind == "softmax":
            logits = jnp.einsum("...id,...jd->...ij", q, k)
            scores = jax.nn.softmax(logits + MASKED * (1 - _over_scores(visible(mask, causal))))
            return _weighted(scores, split_heads(v, self.heads))
        if self.kind == "squared_softmax":
            return self._squared(name, q, k, split_heads(v, self.heads), mask, probe, causal)
        weights = self.row_weights(mask, causal)
        if not causal:
            v = v * weights[..., None]
        v = split_heads(v, self.heads)
        if self.gaussian:
            scores = probe(f"{name}.exp", negative_squared_distance(q, k))
        else:
            scores = jnp.einsum("...id,...jd->...ij", q, k) ** self.power
        if causal:
            scores = scores * _over_scores(weights)
        mixed = _weighted(scores, v)
        if self.kind == "gaussian":
            return mixed
        site = f"{name}.inv"
        unit = probe.unit(site)
        rows = scores if causal else scores * _over_scores(weights)
        total = jnp.sum(rows * (1 / unit) if unit != 1.0 else rows, axis=-1, keepdims=True)
        return mixed * probe(site, total + self.epsilon / unit)

    def _squared(
        self,
        name: str,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array,
        probe: SiteRecorder,
        causal: bool,
    ) -> jax.Array:
        """Values (batch, heads, tokens, d) mixed by the scores' softmax, normalised and squared."""

        def inverse_of_sum(site: str, y: jax.Array) -> jax.Array:
            unit = probe.unit(site)
            total = jnp.sum(y, axis=-1, keepdims=True)
            return probe(site, total * (1 / unit) if unit != 1.0 else total)

        y = probe(f"{name}.softmax_exp", jnp.einsum("...id,...jd->...ij", q, k))
        y = y * _over_scores(self.row_weights(mask, causal))
        for j in range(self.squarings):
            y = jnp.square(y * inverse_of_sum(f"{name}.square{j}.softmax_inv", y))
        return _weighted(y, v) * inverse_of_sum(f"{name}.softmax_inv", y)

    def row_weights(self, mask: jax.Array, causal: bool = False) -> jax.Array:
        """Public weights of the tokens that a query sees, shaped as `visible`: over their number
        where the configuration or the kind says so.
        """
        seen = visible(mask, causal)
        if not self.mean and self.kind == "gaussian":
            return seen
        return seen / jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1.0)

    def _write(self, mixed: jax.Array, c: float, low_rank: bool) -> jax.Array:
        bias: Any = None if self.output.bias is None else c * centred(self.output.bias[...])
        if low_rank and self.output.lora_a is not None and self.output.lora_b is not None:
            update = mixed @ (c * centred(self.output.kernel[...]))
            low = mixed @ (c * self.output.lora_scale * self.output.lora_a[...])
            update = update + low @ centred(self.output.lora_b[...])
        else:
            update = mixed @ (c * centred(self.output.merged))
        return update if bias is None else update + bias


def visible(mask: jax.Array, causal: bool) -> jax.Array:
    """1 where a query sees a token: the mask (batch, tokens), or (batch, queries, tokens) if
    causal.
    """
    if not causal:
        return mask
    return mask[:, None, :] * jnp.tril(jnp.ones((mask.shape[-1],) * 2, mask.dtype))


def _over_scores(weights: jax.Array) -> jax.Array:
    """Weights shaped as `visible`, made to multiply scores (batch, heads, queries, tokens)."""
    return weights[:, None, None, :] if weights.ndim == 2 else weights[:, None]


def _weighted(scores: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...jd->...id", scores, v)
