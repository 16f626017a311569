"""Masked language modelling: which words are hidden, and the loss of guessing them.

Devlin et al. 2019, section 3.1, with the share that Rho et al. 2025 use: a quarter of the words of
a row is chosen; of these 80 % become [MASK], 10 % another word, 10 % stay. Only the chosen places
go through the vocabulary head, as many in every row, so the head costs a quarter and keeps its
shape.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hesim.errors import ArgumentError
from models.data.corpus import Stream
from models.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from models.nn.encoder import Model
from models.nn.lora import Params

__all__ = [
    "Masking",
    "MaskedBatch",
    "linear_cross_entropy",
    "mlm_scores",
    "word_matrix",
    "word_states",
]


class MaskedBatch(NamedTuple):
    """Rows and what is to be guessed of them: hidden words, or of a decoder (`next_word`), whose
    later tokens are masked, at every place the next one.

    tokens int32 (n, length), corrupted where words are hidden; mask float32 (n, length); places
    int32 (n, chosen), from whose states a word is to be guessed; words int32 (n, chosen), that
    word; weights float32 (n, chosen), 0 where there is nothing to guess; progress float32 (), the
    share of the training that is behind, which schedules read.
    """

    tokens: Any
    mask: Any
    places: Any
    words: Any
    weights: Any
    progress: Any


@dataclasses.dataclass(frozen=True)
class Masking:
    """Share of a row's tokens that are to be guessed, and what becomes of them.

    Attributes:
      mask_id: token that hides another.
      words: the vocabulary numbers [first, end) that may be hidden or stand in for others: all but
        the special tokens.
      share: of the tokens that are guessed.
      masked: share of those that are hidden.
      replaced: share of those that another word stands in for; the rest stay as they are.

    Examples:
      >>> from models import Masking
      >>> Masking(mask_id=4, words=(5, 8192)).share
      0.25
    """

    mask_id: int
    words: tuple[int, int]
    share: float = 0.25
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ArgumentError(f"share={self.share} of the tokens to guess is between 0 and 1")
        if min(self.masked, self.replaced) < 0 or self.masked + self.replaced > 1:
            raise ArgumentError(
                f"masked={self.masked} and replaced={self.replaced} are shares of the chosen words"
            )

    @classmethod
    def of(cls, tokenizer: Tokenizer, share: float = 0.25) -> Masking:
        """For a tokenizer whose special tokens come first, as `Tokenizer.train` numbers them."""
        vocabulary = tokenizer.vocabulary
        first = max(vocabulary[name] for name in SPECIAL_TOKENS) + 1
        return cls(tokenizer.mask_id, (first, tokenizer.size), share)

    def chosen(self, length: int) -> int:
        """How many places of a row are guessed."""
        return max(1, round(self.share * length))

    def apply(
        self, tokens: np.ndarray, random: np.random.Generator, progress: float = 0.0
    ) -> MaskedBatch:
        """Hide words of rows (n, length) without padding."""
        low, high = self.words
        rows, length = tokens.shape
        ranks = random.random(tokens.shape, np.float32)
        ranks[(tokens < low) | (tokens >= high)] = 2.0
        count = self.chosen(length)
        places = np.sort(np.argpartition(ranks, count - 1, axis=1)[:, :count], axis=1)
        weights = (np.take_along_axis(ranks, places, 1) < 2.0).astype(np.float32)
        words = np.take_along_axis(tokens, places, 1)
        fate = random.random(places.shape, np.float32)
        others = random.integers(low, high, places.shape)
        shown = np.where(fate < self.masked, self.mask_id, words)
        shown = np.where(
            (fate >= self.masked) & (fate < self.masked + self.replaced), others, shown
        )
        shown = np.where(weights > 0, shown, words)
        hidden = tokens.copy()
        np.put_along_axis(hidden, places, shown.astype(tokens.dtype), 1)
        return MaskedBatch(
            hidden,
            np.ones(tokens.shape, np.float32),
            places.astype(np.int32),
            words.astype(np.int32),
            weights,
            np.float32(progress),
        )

    def batch(
        self, stream: Stream, rows: np.ndarray, seed: int, step: int, progress: float = 0.0
    ) -> MaskedBatch:
        """The rows of a step, masked by random numbers that (seed, step) alone decide."""
        return self.apply(stream.take(rows), np.random.default_rng((seed, 1, step)), progress)


def word_states(
    model: Model, params: Params, batch: MaskedBatch, *, dropout: float = 0.0, key: Any = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """States (n * chosen, hidden) at the places to guess, and the values met at each site."""
    dtype = params["embedding"]["word"].dtype
    x = model.embed(params, batch.tokens, dropout=dropout, key=key).astype(dtype)
    states, values = model.hidden_states(params, x, jnp.asarray(batch.mask, dtype))
    chosen = jnp.take_along_axis(states, batch.places[..., None], axis=1)
    return chosen.reshape(-1, chosen.shape[-1]), values


def word_matrix(model: Model, params: Params) -> tuple[jax.Array, jax.Array]:
    """The vocabulary head as the matrix (vocabulary, hidden) and the bias (vocabulary,) of
    `Model.word_logits`.
    """
    if model.config.lm_head == "none":
        raise ArgumentError('the model has no language-model head: set lm_head="tied" or "own"')
    head = params["lm_head"]
    tied = model.config.lm_head == "tied"
    return params["embedding"]["word"] if tied else head["linear"]["kernel"].T, head["bias"]


def mlm_scores(
    model: Model, params: Params, states: jax.Array, batch: MaskedBatch
) -> dict[str, jax.Array]:
    """Sums over the guessed words of a batch: `loss` (nats), `right` guesses, `words` guessed."""
    logits = model.word_logits(params, states).astype(jnp.float32)
    labels, weights = jnp.ravel(batch.words), jnp.ravel(batch.weights)
    found = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - found
    right = jnp.argmax(logits, axis=-1) == labels
    return {
        "loss": jnp.sum(weights * loss),
        "right": jnp.sum(weights * right),
        "words": jnp.sum(weights),
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def linear_cross_entropy(
    states: jax.Array,
    matrix: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    chunk: int,
) -> jax.Array:
    """Sum of weights * cross-entropy of the logits `states @ matrix.T + bias`, in nats.

    states (rows, hidden), matrix (words, hidden), bias (words,), labels int32 and weights (rows,).
    The logits of at most `chunk` rows exist at a time (0: all), forwards and backwards: the
    gradient is formed with the value, from the same logits, which spares both their memory and
    their second computation. labels and weights have no gradient.
    """
    return _linear_cross_entropy(states, matrix, bias, labels, weights, chunk)[0]


def _linear_cross_entropy(states, matrix, bias, labels, weights, chunk):
    rows = len(states)
    size = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= (chunk or rows))
    parts = tuple(a.reshape(-1, size, *a.shape[1:]) for a in (states, labels, weights))
    number = jnp.arange(matrix.shape[0])

    def one(carry: Any, part: Any) -> Any:
        loss, d_matrix, d_bias = carry
        x, y, w = part
        z = (x @ matrix.T + bias).astype(jnp.float32)
        top = jnp.max(z, axis=-1, keepdims=True)
        power = jnp.exp(z - top)
        total = jnp.sum(power, axis=-1, keepdims=True)
        found = jnp.take_along_axis(z, y[:, None], axis=1)
        loss = loss + jnp.sum(w[:, None] * (jnp.log(total) + top - found))
        d = (power * (w[:, None] / total) - w[:, None] * (number == y[:, None])).astype(x.dtype)
        d_matrix = d_matrix + (d.T @ x).astype(jnp.float32)
        return (loss, d_matrix, d_bias + jnp.sum(d, axis=0, dtype=jnp.float32)), d @ matrix

    start = (jnp.zeros(()), jnp.zeros(matrix.shape), jnp.zeros(bias.shape))
    (loss, d_matrix, d_bias), d_states = jax.lax.scan(one, start, parts)
    return loss, (d_states.reshape(states.shape), d_matrix, d_bias)


def _forward(states, matrix, bias, labels, weights, chunk):
    loss, (d_states, d_matrix, d_bias) = _linear_cross_entropy(
        states, matrix, bias, labels, weights, chunk
    )
    return loss, (d_states, d_matrix.astype(matrix.dtype), d_bias.astype(bias.dtype))


def _backward(chunk, kept, cotangent):
    del chunk
    return (*((cotangent * g).astype(g.dtype) for g in kept), None, None)


linear_cross_entropy.defvjp(_forward, _backward)
