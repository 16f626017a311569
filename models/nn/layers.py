"""Layers of the encoder: LayerNorm whose gain is folded forward, the feed-forward network,
positions.

The residual stream is centred: the embedding and every matrix that writes into it have zero mean
over the hidden axis (subtracted in the clear), so LayerNorm needs no mean. Where a LayerNorm's own
gain writes into the stream (post-LN), `LayerNorm.residual` subtracts the mean beside the product by
the gain. The stream is also scaled by a public constant c (`sites.norm_scale`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hesim.errors import ArgumentError
from models.config import EncoderConfig
from models.nn.lora import Linear
from models.sites.sites import SiteRecorder, norm_multiple, norm_scale, norm_unit


def centred(weight: jax.Array) -> jax.Array:
    """A matrix or vector minus its mean over the last axis."""
    return weight - jnp.mean(weight, axis=-1, keepdims=True)


def multiple(x: jax.Array, n: int) -> jax.Array:
    """n x by additions alone (n >= 1): no level under CKKS."""
    total: jax.Array | None = None
    while True:
        if n & 1:
            total = x if total is None else total + x
        n >>= 1
        if not n:
            assert total is not None
            return total
        x = x + x


class LayerNorm(nnx.Module):
    """LayerNorm on a centred stream. `scale` (hidden,) and `bias` (hidden,) are for the matrix that
    follows to fold in.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.scale = nnx.Param(jnp.ones((config.hidden,)))
        self.bias = nnx.Param(jnp.zeros((config.hidden,)))
        self.epsilon = config.norm_epsilon

    def inverse(self, name: str, x: jax.Array, probe: SiteRecorder) -> jax.Array:
        """1 / sqrt(variance + epsilon) of c x: (..., hidden) -> (..., 1), in 1 level plus the
        polynomial's.
        """
        hidden = x.shape[-1]
        unit = norm_unit(probe.sites, name, hidden)
        total = jnp.sum(x * x, axis=-1, keepdims=True)
        u = multiple(total, norm_multiple(probe.sites, name)) + self.epsilon / unit
        return probe(name, u, unit)

    def gain(self, probe: SiteRecorder) -> jax.Array:
        """scale / c: what the following matrix multiplies its rows by, (hidden,)."""
        return self.scale[...] / norm_scale(probe.sites, self.scale.shape[0])

    def residual(self, x: jax.Array, probe: SiteRecorder) -> jax.Array:
        """c (scale * n + bias) minus its mean over the features, of normalised rows x = c n:
        (..., hidden), one level.

        The mean of scale * n is that of the rows against scale / hidden: a second product at the
        same level.
        """
        scale, hidden = self.scale[...], self.scale.shape[0]
        mean = jnp.sum(x * (scale / hidden), axis=-1, keepdims=True)
        return x * scale - mean + norm_scale(probe.sites, hidden) * centred(self.bias[...])


class FeedForward(nnx.Module):
    """Up-projection, activation (gated: x * f(gate), gate the second half), down-projection.

    The kernel of a gated up-projection, (hidden, ffn), may also be given as (hidden, 2, ffn / 2),
    its bias as (2, ffn / 2): the same numbers with the halves on an axis of their own, which
    `sharding.place_state` needs to cut each.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        std = config.initial_std
        inner = config.ffn // 2 if config.gated else config.ffn
        bias = config.biases
        self.up = Linear(config.hidden, config.ffn, rngs=rngs, std=std, bias=bias)
        self.down = Linear(inner, config.hidden, rngs=rngs, std=std, gain=0.5, bias=bias)
        self.activation = config.activation

    def __call__(self, name: str, x: jax.Array, norm: LayerNorm, probe: SiteRecorder) -> jax.Array:
        """Normalised rows (..., hidden) -> update of the stream (..., hidden), scaled by c."""
        gamma, beta = norm.gain(probe), norm.bias[...]
        kind = self.activation.removeprefix("glu_")
        site = f"{name}.{kind}"
        unit = 1.0 if kind == "bilinear" else probe.unit(site)
        if self.activation.startswith("glu_"):
            first, second = _halves(self.up)
            gate = self.up.project(x, gamma=gamma, beta=beta, factor=1 / unit, outputs=second)
            value = self.up.project(x, gamma=gamma, beta=beta, outputs=first)
            inner = value * (gate if kind == "bilinear" else probe(site, gate))
        else:
            inner = probe(site, self.up.project(x, gamma=gamma, beta=beta, factor=1 / unit))
        c = norm_scale(probe.sites, x.shape[-1])
        update = inner @ (c * centred(self.down.merged))
        return update if self.down.bias is None else update + c * centred(self.down.bias[...])


def _halves(up: Linear) -> tuple[Any, Any]:
    """Which outputs of a gated up-projection are values, which gates."""
    if up.kernel.ndim == 3:
        return 0, 1
    width = up.kernel.shape[1]
    return slice(0, width // 2), slice(width // 2, None)


def sinusoids(sequence: int, hidden: int) -> np.ndarray:
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5): float32 (sequence, hidden), any
    hidden width.
    """
    angle = np.arange(sequence)[:, None] * position_rates(hidden)
    return np.where(np.arange(hidden) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def position_rates(hidden: int) -> np.ndarray:
    """Radians a token of each feature of `sinusoids`: (hidden,), equal in pairs, falling."""
    return 10000.0 ** (-2 * (np.arange(hidden) // 2) / hidden)


def _positions(config: EncoderConfig, std: float, rngs: nnx.Rngs) -> nnx.Param | None:
    if config.positions == "sinusoidal":
        return nnx.Param(jnp.asarray(config.hidden**-0.5))
    if config.positions == "learned":
        return nnx.Param(std * jax.random.normal(rngs.params(), (config.sequence, config.hidden)))
    return None


class Embedding(nnx.Module):
    """Words plus positions and token types, normalised: what the client computes in the clear, then
    encrypts.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        std = config.initial_std or 1.0 / config.hidden**0.5
        shape = (config.vocabulary, config.hidden)
        self.word = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.position = _positions(config, std, rngs)
        types = (config.token_types, config.hidden)
        self.token_type = (
            nnx.Param(std * jax.random.normal(rngs.params(), types)) if config.token_types else None
        )
        self.norm = LayerNorm(config) if config.first_norm or config.post_norm else None
        self.kind = config.positions
        self.epsilon = config.norm_epsilon
        self.affine = not config.post_norm

    def __call__(self, tokens: jax.Array, types: jax.Array | None = None) -> jax.Array:
        """Token ids (..., tokens) and their types (0 by default) -> centred rows (..., tokens,
        hidden), of variance 1 where no affine part follows here.
        """
        return self.finish(self.raw(tokens, types))

    def raw(self, tokens: jax.Array, types: jax.Array | None = None) -> jax.Array:
        """Words plus positions and types before the normalisation; ArgumentError for more tokens
        than there are learned positions, or for types that the model does not have.
        """
        x = jnp.asarray(self.word[...]).at[tokens].get(mode="fill", fill_value=jnp.nan)
        length, hidden = x.shape[-2:]
        if self.position is not None:
            table = self.position[...]
            if self.kind == "sinusoidal":
                table = table * sinusoids(length, hidden)
            elif length > len(table):
                raise ArgumentError(
                    f"{length} tokens, but this model has learned {len(table)} positions: encode "
                    f"to a length of at most {len(table)}"
                )
            x = x + table[:length]
        if self.token_type is not None:
            table = self.token_type[...]
            x = x + (
                table[0] if types is None else table.at[types].get(mode="fill", fill_value=jnp.nan)
            )
        elif types is not None:
            raise ArgumentError("this model has no token types: set token_types in its config")
        return x

    def finish(self, x: jax.Array) -> jax.Array:
        """LayerNorm of the embedding, centred again after its affine part; post-LN blocks fold that
        part in themselves.
        """
        x = centred(x)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        if self.norm is not None and self.affine:
            x = centred(self.norm.scale[...] * x + self.norm.bias[...])
        return x


class WordHead(nnx.Module):
    """Language-model head: states times the word embedding's matrix, or one of its own, plus a
    bias.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        own = config.lm_head == "own"
        std = config.initial_std
        self.linear = Linear(config.hidden, config.vocabulary, rngs=rngs, std=std) if own else None
        self.bias = nnx.Param(jnp.zeros((config.vocabulary,)))

    def __call__(self, states: jax.Array, words: jax.Array) -> jax.Array:
        """States (..., hidden) and the embedding (vocabulary, hidden) -> (..., vocabulary)."""
        logits = states @ words.T if self.linear is None else self.linear.project(states)
        return logits + self.bias[...]
