"""The transformer as one class, exact or polynomial site by site, and its pure functions.

The client embeds in the clear (`Model.embed`) and encrypts the rows; `Model.encrypted_forward` is
what is traced: it holds every operation on encrypted values, and with polynomials at all sites and
Gaussian attention nothing but sums, products and polynomials. Weights and mask are public.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hesim.errors import ArgumentError
from models.config import EncoderConfig
from models.nn.attention import Attention
from models.nn.layers import Embedding, FeedForward, LayerNorm, WordHead
from models.nn.lora import Linear, Params
from models.sites.sites import EXACT, SiteRecorder, Sites, norm_scale, units

Array = jax.Array | np.ndarray
Pick = Callable[[jax.Array], jax.Array]
"""Chooses the pooled token: (batch, tokens, hidden) -> (batch, 1, hidden)."""


class Block(nnx.Module):
    """One layer. Pre-LN: x + attention(LN(x)), then x + ffn(LN(x)), on the stream x. Post-LN:
    LN(x + attention(x)), then LN(x + ffn(x)), on normalised rows whose affine part is pending.
    """

    def __init__(self, config: EncoderConfig, *, norm: bool, rngs: nnx.Rngs) -> None:
        self.attention_norm = LayerNorm(config) if norm else None
        self.attention = Attention(config, rngs=rngs)
        self.ffn_norm = LayerNorm(config)
        self.ffn = FeedForward(config, rngs=rngs)
        self.post = config.post_norm
        self.causal = config.causal

    def __call__(
        self,
        name: str,
        x: jax.Array,
        mask: jax.Array,
        probe: SiteRecorder,
        *,
        pending: LayerNorm | None,
        low_rank: bool,
        pick: Pick | None,
    ) -> jax.Array:
        """(batch, tokens, hidden) -> the same, or the one token that `pick` chooses. pending: the
        LayerNorm before a post-LN block.
        """
        if self.post:
            return self._post(name, x, mask, probe, pending, low_rank, pick)
        normal = x
        if self.attention_norm is not None:
            normal = x * self.attention_norm.inverse(f"{name}.attention_norm.inv_sqrt", x, probe)
        x, queries = (x, normal) if pick is None else (pick(x), pick(normal))
        update = self.attention(
            f"{name}.attention",
            queries,
            normal,
            mask,
            self.attention_norm,
            probe,
            causal=self.causal and pick is None,
            low_rank=low_rank,
        )
        x = x + probe.keep(f"{name}.attention", update)
        normal = x * self.ffn_norm.inverse(f"{name}.ffn_norm.inv_sqrt", x, probe)
        return probe.keep(name, x + self.ffn(f"{name}.ffn", normal, self.ffn_norm, probe))

    def _post(
        self,
        name: str,
        x: jax.Array,
        mask: jax.Array,
        probe: SiteRecorder,
        pending: LayerNorm | None,
        low_rank: bool,
        pick: Pick | None,
    ) -> jax.Array:
        assert pending is not None and self.attention_norm is not None
        queries = x if pick is None else pick(x)
        update = self.attention(
            f"{name}.attention",
            queries,
            x,
            mask,
            pending,
            probe,
            causal=self.causal and pick is None,
            low_rank=low_rank,
        )
        y = pending.residual(queries, probe) + probe.keep(f"{name}.attention", update)
        y = y * self.attention_norm.inverse(f"{name}.attention_norm.inv_sqrt", y, probe)
        update = self.ffn(f"{name}.ffn", y, self.attention_norm, probe)
        y = self.attention_norm.residual(y, probe) + update
        return probe.keep(name, y * self.ffn_norm.inverse(f"{name}.ffn_norm.inv_sqrt", y, probe))


class LayerOutputs(NamedTuple):
    """What every layer computed, in the units of the exact model.

    Attributes:
      states: per layer (batch, tokens, hidden): the stream behind it, in a post-LN model normalised
        with its affine part. attention: per layer its update of the stream, of the same shape.
      final: states after the last LayerNorm, as of `Model.hidden_states`. logits: (batch, classes).
      values: u met at each site.
    """

    states: tuple[jax.Array, "..."]
    attention: tuple[jax.Array, "..."]
    final: jax.Array
    logits: jax.Array
    values: dict[str, jax.Array]


class Encoder(nnx.Module):
    """The transformer as a Flax module: embedding, blocks, final LayerNorm, pooler and heads.

    Causal, it is a decoder. `Model` has the pure functions of its parameters.

    Args:
      config: its shape.
      rngs: of the fresh parameters, float32.

    Examples:
      >>> from flax import nnx
      >>> from models import Encoder, preset
      >>> encoder = Encoder(preset("demo", vocabulary=64), rngs=nnx.Rngs(0))
      >>> encoder.head.kernel.shape
      (64, 2)
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.embedding = Embedding(config, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(config, norm=bool(i) or config.first_norm or config.post_norm, rngs=rngs)
                for i in range(config.layers)
            ]
        )
        self.final_norm = None if config.post_norm else LayerNorm(config)
        features = 2 * config.hidden if config.pairs == "bi-encoder" else config.hidden
        widths = (features, *config.pooler, config.classes)
        linears = [
            Linear(a, b, rngs=rngs, std=config.initial_std, bias=config.biases)
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.pooler = nnx.List(linears[:-1])
        self.head = linears[-1]
        self.lm_head = WordHead(config, rngs=rngs) if config.lm_head != "none" else None
        self.causal = config.causal
        self.pools_mean = config.pooling == "mean"
        self.apart = config.pairs == "bi-encoder"

    def __call__(
        self, x: jax.Array, mask: jax.Array, sites: Sites = EXACT, *, low_rank: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Rows of `embed` and mask -> (logits (batch, classes), values met at each site).

        Where one token is pooled, only that one goes on in the last layer: the first, or the last
        real one if causal. Pairs that are read apart are rows (batch, 2, tokens, hidden).
        """
        probe = SiteRecorder(sites)
        x, mask = self._sentences(x, mask)
        x = self.body(x, mask, probe, low_rank=low_rank, pick=self._pick(mask))
        return self.pooled(x, mask, probe), probe.values

    def _sentences(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rows and mask with a sentence of a pair after the other where they are read apart."""
        if not self.apart:
            return x, mask
        if x.ndim != 4 or x.shape[1] != 2:
            raise ArgumentError(
                "a model with pairs='bi-encoder' reads rows (batch, 2, tokens, hidden), not "
                f"{x.shape}"
            )
        return x.reshape(-1, *x.shape[2:]), mask.reshape(-1, mask.shape[-1])

    def _pick(self, mask: jax.Array) -> Pick | None:
        if self.pools_mean:
            return None
        return functools.partial(last_token, mask=mask) if self.causal else first_token

    def body(
        self,
        x: jax.Array,
        mask: jax.Array,
        probe: SiteRecorder,
        *,
        low_rank: bool,
        pick: Pick | None,
    ) -> jax.Array:
        """The stream (post-LN: its normalised rows) after all blocks: (batch, tokens, hidden), or
        (batch, 1, hidden) of the token that `pick` chooses, which spares the last layer the others'
        queries and feed-forward network.
        """
        pending = self.embedding.norm
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(
                f"layer{i}",
                x,
                mask,
                probe,
                pending=pending,
                low_rank=low_rank,
                pick=pick if i == last else None,
            )
            pending = block.ffn_norm
        return x

    def normalised(self, x: jax.Array, probe: SiteRecorder) -> tuple[jax.Array, LayerNorm]:
        """Normalised rows of the result of `body`, and the LayerNorm whose affine part pends."""
        if self.final_norm is None:
            return x, self.blocks[-1].ffn_norm
        return x * self.final_norm.inverse("final_norm.inv_sqrt", x, probe), self.final_norm

    def pooled(self, x: jax.Array, mask: jax.Array, probe: SiteRecorder) -> jax.Array:
        """Rows of `body`, the pooled token's (batch, 1, hidden) or all tokens' where their mean is
        pooled -> logits (batch, classes).
        """
        x, norm = self.normalised(x, probe)
        x = mean_token(x, mask) if self.pools_mean else x[:, 0]
        gamma: Any = norm.gain(probe)
        beta: jax.Array | None = norm.bias[...]
        if self.apart:
            x = compare(gamma * x + beta)
            gamma, beta = 1.0, None
        for i, linear in enumerate(self.pooler):
            factor = 1 / probe.unit("pooler.tanh") if i == len(self.pooler) - 1 else 1.0
            x = linear.project(x, gamma=gamma, beta=beta, factor=factor)
            gamma, beta = 1.0, None
        x = probe("pooler.tanh", x)
        return self.head.project(x)

    def sentences(
        self, x: jax.Array, mask: jax.Array, sites: Sites = EXACT, *, low_rank: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Rows of `embed` and mask -> (what the pooler would read of each row (rows, hidden), with
        the last LayerNorm's affine part, values met at each site on the way). Of pairs that are
        read apart, twice as many: one sentence after the other.
        """
        probe = SiteRecorder(sites)
        x, mask = self._sentences(x, mask)
        x = self.body(x, mask, probe, low_rank=low_rank, pick=self._pick(mask))
        x, norm = self.normalised(x, probe)
        gain = norm.gain(probe)
        if self.pools_mean:  # the gain in the same public factor, which spares a level
            return weighted_mean(x, mask, gain) + norm.bias[...], probe.values
        return gain * x[:, 0] + norm.bias[...], probe.values

    def hidden(
        self, x: jax.Array, mask: jax.Array, sites: Sites = EXACT, *, low_rank: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Rows of `embed` and mask -> (states of all tokens after the last LayerNorm (batch,
        tokens, hidden), values met at each site on the way). Of pairs that are read apart, a batch
        twice as long: one sentence after the other.
        """
        probe = SiteRecorder(sites)
        x, mask = self._sentences(x, mask)
        x = self.body(x, mask, probe, low_rank=low_rank, pick=None)
        x, norm = self.normalised(x, probe)
        return norm.gain(probe) * x + norm.bias[...], probe.values

    def layerwise(
        self, x: jax.Array, mask: jax.Array, sites: Sites = EXACT, *, low_rank: bool = False
    ) -> LayerOutputs:
        """Rows of `embed` and mask -> what every layer computes for all tokens; of pairs that are
        read apart as `hidden` does.
        """
        probe = SiteRecorder(sites)
        x, mask = self._sentences(x, mask)
        x = self.body(x, mask, probe, low_rank=low_rank, pick=None)
        c = norm_scale(sites, x.shape[-1])
        states, attention = [], []
        for i, block in enumerate(self.blocks):
            out = probe.outputs[f"layer{i}"]
            norm = block.ffn_norm
            states.append(norm.gain(probe) * out + norm.bias[...] if block.post else out / c)
            attention.append(probe.outputs[f"layer{i}.attention"] / c)
        pick = self._pick(mask)
        rows, norm = self.normalised(x, probe)
        final = norm.gain(probe) * rows + norm.bias[...]
        values = dict(probe.values)  # what is pooled meets the final LayerNorm a second time
        logits = self.pooled(x if pick is None else pick(x), mask, probe)
        values["pooler.tanh"] = probe.values["pooler.tanh"]
        return LayerOutputs(tuple(states), tuple(attention), final, logits, values)

    def words(self, states: jax.Array) -> jax.Array:
        """States (..., hidden) of `hidden` -> language-model logits (..., vocabulary)."""
        if self.lm_head is None:
            raise ArgumentError(
                'this model has no language-model head: set lm_head="tied" or "own" in its config'
            )
        return self.lm_head(states, self.embedding.word[...])


def compare(x: jax.Array) -> jax.Array:
    """u v and (u - v)^2 of the pooled states of pairs: (2 batch, hidden), one sentence after the
    other -> (batch, 2 hidden), one level.
    """
    pairs = x.reshape(-1, 2, x.shape[-1])
    u, v = pairs[:, 0], pairs[:, 1]
    return jnp.concatenate([u * v, jnp.square(u - v)], axis=-1)


def first_token(x: jax.Array) -> jax.Array:
    """(batch, tokens, hidden) -> (batch, 1, hidden)."""
    return x[:, :1]


def last_token(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The last token whose mask is 1, chosen by a public product: (batch, 1, hidden), one level."""
    tokens = mask.shape[-1]
    chosen = jax.nn.one_hot(jnp.argmax(jnp.arange(1, tokens + 1) * mask, axis=-1), tokens)
    return jnp.sum(chosen.astype(x.dtype)[..., None] * x, axis=1, keepdims=True)


def mean_token(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the tokens whose mask is 1, by public factors: (batch, hidden), one level; 0 of a
    row without any.
    """
    return weighted_mean(x, mask, jnp.ones((), x.dtype))


def weighted_mean(x: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
    """`mean_token` times a public weight of the features (hidden,) or of none (), in one level."""
    share = mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return jnp.sum((share.astype(x.dtype)[..., None] * weight) * x, axis=1)


@functools.lru_cache(maxsize=32)
def _graph(config: EncoderConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))))


@functools.partial(jax.jit, static_argnums=0)
def _initial(config: EncoderConfig, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(Encoder(config, rngs=nnx.Rngs(key))))


def bind(config: EncoderConfig, params: Params) -> Encoder:
    """The NNX module with these parameters, nested dictionaries as of `nnx.to_pure_dict`."""
    graph, abstract = _graph(config)
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


@dataclasses.dataclass(frozen=True)
class Model:
    """A configuration with its sites, as pure functions of parameters in nested dictionaries.

    Hashable, hence static under `jax.jit`. Where the configuration reads the sentences of a pair
    apart, (batch, 2, tokens[, hidden]) stands for (batch, tokens[, hidden]) in every argument and
    in what `embed` returns; `hidden_states` and `layer_outputs` return states (2 batch, tokens,
    hidden), one sentence after the other. ArgumentError for other shapes.

    Attributes:
      config: the architecture.
      sites: empty for the exact model, `fit_sites` for its polynomial twin.
      low_rank: keep adapters as two thin products (needed where they are encrypted or trained
        under encryption) rather than merged into their matrix.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from models import Model, preset
      >>> config = preset(
      ...     "demo", layers=1, hidden=8, ffn=8, sequence=4, vocabulary=16, pooler=(8,)
      ... )
      >>> model = Model(config)
      >>> params = model.init(jax.random.key(0))
      >>> jax.eval_shape(model.embed, params, np.zeros((2, 4), int)).shape  # to be encrypted
      (2, 4, 8)
      >>> jax.eval_shape(model.predict, params, np.zeros((2, 4), int), np.ones((2, 4))).shape
      (2, 2)
    """

    config: EncoderConfig
    sites: Sites = EXACT
    low_rank: bool = False

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters from a `jax.random.key`."""
        return _initial(self.config, key)

    def with_sites(self, sites: Sites) -> Model:
        return dataclasses.replace(self, sites=sites)

    def embed(
        self,
        params: Params,
        tokens: Array,
        types: Array | None = None,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Token ids (batch, tokens) -> the rows that the client encrypts, float (batch, tokens,
        hidden), times c. Ids outside the vocabulary give NaN.

        types: token types (batch, tokens) of a model that has them, 0 by default. dropout: share of
        embedding features set to zero before the normalisation (training only; needs a key).
        ArgumentError for more tokens than there are learned positions.
        """
        embedding = bind(self.config, params).embedding
        raw = embedding.raw(jnp.asarray(tokens), None if types is None else jnp.asarray(types))
        if dropout and key is not None:
            kept = jax.random.bernoulli(key, 1 - dropout, raw.shape)
            raw = jnp.where(kept, raw / (1 - dropout), 0.0)
        return norm_scale(self.sites, self.config.hidden) * embedding.finish(raw)

    def encrypted_forward(self, params: Params, x: Array, mask: Array) -> jax.Array:
        """Logits (batch, classes) of embedded rows x (batch, tokens, hidden); mask (batch, tokens)
        of 0 and 1.
        """
        return self.forward_with_values(params, x, mask)[0]

    def encrypted_embeddings(self, params: Params, x: Array, mask: Array) -> jax.Array:
        """What the pooler would read of each embedded row, with the last LayerNorm's affine part:
        (batch, hidden), the embedding of a sentence encoder before it is normalised. Of pairs that
        are read apart (2 batch, hidden), one sentence after the other.
        """
        return self.embeddings_with_values(params, x, mask)[0]

    def embeddings_with_values(
        self, params: Params, x: Array, mask: Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`encrypted_embeddings`, and the values met at each site as `forward_with_values` has
        them.
        """
        encoder = bind(self.config, params)
        return encoder.sentences(
            jnp.asarray(x), jnp.asarray(mask), self.sites, low_rank=self.low_rank
        )

    def forward_with_values(
        self, params: Params, x: Array, mask: Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and per site the values u met there (canonical value = `units()[name]` * u)."""
        encoder = bind(self.config, params)
        return encoder(jnp.asarray(x), jnp.asarray(mask), self.sites, low_rank=self.low_rank)

    def hidden_states(
        self, params: Params, x: Array, mask: Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """States (batch, tokens, hidden) of all tokens after the final LayerNorm, from the rows x
        of `embed`, and the values met at each site (as `forward_with_values` has them).
        """
        encoder = bind(self.config, params)
        return encoder.hidden(jnp.asarray(x), jnp.asarray(mask), self.sites, low_rank=self.low_rank)

    def layer_outputs(self, params: Params, x: Array, mask: Array) -> LayerOutputs:
        """What every layer computes from the rows x of `embed`, for all tokens."""
        encoder = bind(self.config, params)
        return encoder.layerwise(
            jnp.asarray(x), jnp.asarray(mask), self.sites, low_rank=self.low_rank
        )

    def word_logits(self, params: Params, states: Array) -> jax.Array:
        """Language-model logits (..., vocabulary) of states (..., hidden), all tokens' or only
        those of the masked places; ArgumentError if `config.lm_head` is "none".
        """
        return bind(self.config, params).words(jnp.asarray(states))

    def units(self) -> dict[str, float]:
        """Unit of each site's recorded values."""
        return units(self.config, self.sites)

    def predict(
        self, params: Params, tokens: Array, mask: Array, types: Array | None = None
    ) -> jax.Array:
        """Logits (batch, classes) of token ids, the client's and the server's part in one."""
        return self.encrypted_forward(params, self.embed(params, tokens, types), mask)
