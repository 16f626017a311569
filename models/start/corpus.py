"""Starting parameters from the statistics of a text: word vectors and heads that see neighbours.

A small language model spends most of a short training on guessing by word frequency, until it finds
out that words near a gap matter. Both things that it lacks there can be computed: what words mean,
from their co-occurrences (a truncated singular value decomposition of the positive pointwise mutual
information: Levy and Goldberg 2014), and where the neighbours are, since a shift of sinusoidal
positions is a rotation (Vaswani et al. 2017, section 3.5), which the first block's projections to
queries can hold.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from scipy.sparse.linalg import svds

from hesim.errors import ArgumentError
from models.config import EncoderConfig
from models.nn.encoder import Model
from models.nn.layers import position_rates
from models.nn.lora import Params

__all__ = ["corpus_start", "obstacle", "word_vectors"]

PAIRS = 8
"""At most so many of the fastest sine-cosine pairs of the positions are kept free of words; they
tell places up to about 16 tokens apart from one another."""

CONTRAST = 4.0
"""Nats by which a far token's score lies below that of the neighbour a head looks at."""


def word_vectors(tokens: np.ndarray, size: int, features: int, *, window: int = 8) -> np.ndarray:
    """Vectors of `size` words from a text: float32 (size, features), mean square 1 / features.

    tokens: word numbers (n,) in the order of the text. Words within `window` places of one another
    co-occur; contexts are smoothed by the power 3/4 (Levy, Goldberg and Dagan 2015). A word that
    the text does not hold has the vector 0. Raises ArgumentError for features not below size.
    """
    if not 0 < features < size:
        raise ArgumentError(
            f"{features} features of {size} words: at least 1, and fewer than words"
        )
    words = np.asarray(tokens, np.int64)
    together = scipy.sparse.csr_array((size, size))
    for distance in range(1, min(window, len(words) - 1) + 1):
        pair = (words[:-distance], words[distance:])
        ones = np.ones(len(pair[0]), np.float32)
        together = together + scipy.sparse.csr_array((ones, pair), shape=(size, size))
    counts = (together + together.T).tocoo()
    often = counts.sum(axis=1)
    context = often**0.75 / np.sum(often**0.75)
    row, column = counts.coords
    information = np.log(counts.data / (often[row] * context[column]))
    kept = information > 0
    matrix = scipy.sparse.csr_array(
        (information[kept], (row[kept], column[kept])), shape=counts.shape
    )
    found = svds(matrix, k=features, rng=np.random.default_rng(0))
    left, values = np.asarray(found[0]), np.asarray(found[1])
    # A text of fewer words than features leaves some out, and the solver free to choose signs.
    values = np.where(values > 1e-5 * np.max(values), values, 0.0)
    largest = left[np.argmax(np.abs(left), axis=0), np.arange(features)]
    vectors = left * np.sign(largest) * np.sqrt(values)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(features, features)))
    vectors = vectors @ turn  # no feature is a topic of its own
    vectors *= (features * np.mean(vectors**2)) ** -0.5
    vectors[often == 0] = 0
    return vectors.astype(np.float32)


def obstacle(config: EncoderConfig, words: int | None = None) -> str:
    """Why a model cannot start from a text's statistics, in one clause; "" where it can.

    words: size of the text's vocabulary, None where it is not known yet.
    """
    free = _kept_free(config)
    features = config.hidden - free
    if config.positions != "sinusoidal":
        return f"positions={config.positions!r}, and neighbours are found by sinusoidal ones"
    if not free:
        return f"hidden={config.hidden}, {config.head_dim} a head: too narrow to compare places"
    if words is not None and words <= features:
        return f"a vocabulary of {words} is too small for vectors of {features} features"
    return ""


def corpus_start(config: EncoderConfig, params: Params, tokens: np.ndarray) -> Params:
    """Fresh `params` with the text's word vectors and a first block that looks at neighbours.

    The fastest positions keep some features to themselves (2 `PAIRS`, at most a quarter), so that
    heads can compare places undisturbed by words: head 0 of block 0 looks one token back, head 1
    one token on, and so on in turn, further away; of a decoder, head n looks n + 1 tokens back. A
    word that the text does not hold keeps its fresh vector, without those features. Where the
    kernel's rows are not divided by their sum, the values are, by its mean over a few rows of the
    text. tokens: word numbers (n,) of the text.

    Raises ArgumentError where there is an `obstacle`.
    """
    fresh = np.array(params["embedding"]["word"])
    reason = obstacle(config, len(fresh))
    if reason:
        raise ArgumentError(f"{reason}: start from random parameters instead")
    free = _kept_free(config)
    fresh[:, :free] = 0
    vectors = word_vectors(tokens, len(fresh), config.hidden - free)
    seen = np.any(vectors != 0, axis=1)
    fresh[seen, free:] = vectors[seen]
    scale = np.sqrt(2 * np.mean(fresh[seen] ** 2))  # places weigh as much as words
    start = _copied(params)
    start["embedding"]["word"] = jnp.asarray(fresh)
    start["embedding"]["position"] = jnp.asarray(scale, fresh.dtype)
    projections = start["blocks"][0]["attention"]
    for name, kernel in _neighbourly(config, projections, free).items():
        projections[name]["kernel"] = jnp.asarray(kernel, fresh.dtype)
    if config.attention == "gaussian":
        for block, total in enumerate(_row_sums(config, start, tokens)):
            values = start["blocks"][block]["attention"]["value"]
            values["kernel"] = values["kernel"] / total
    return start


def _kept_free(config: EncoderConfig) -> int:
    """Features that positions have to themselves; 0 where the model is too narrow for any."""
    return 2 * min(PAIRS, config.hidden // 8, config.head_dim // 2)


_REST = 0.1
"""What is left of the fresh projections beside those that compare places."""


def _neighbourly(config: EncoderConfig, projections: Params, free: int) -> dict[str, np.ndarray]:
    """Kernels of the projections to queries and keys, whose products compare places."""
    query, key = (np.array(projections[name]["kernel"]) for name in ("query", "key"))
    random = np.random.default_rng(2)
    # A pair's squared length is about 1 after the normalisation: half of the variance is theirs.
    gain = (2 * CONTRAST * config.head_dim**0.5 / free) ** 0.5
    for head in range(config.heads):
        own = slice(head * config.head_dim, (head + 1) * config.head_dim)
        away = -(head + 1) if config.causal else (head // 2 + 1) * (-1 if head % 2 == 0 else 1)
        places = np.linalg.qr(random.normal(size=(config.head_dim, free)))[0].T
        query[:, own] *= _REST
        key[:, own] *= _REST
        query[:free, own] += gain * _shift(away, config.hidden, free) @ places
        key[:free, own] += gain * places
    return {"query": query, "key": key}


def _row_sums(config: EncoderConfig, params: Params, tokens: np.ndarray) -> list[float]:
    """Mean sum of a row of each block's kernel, weighted as the model weighs it."""
    length = min(config.sequence, len(tokens))
    places = np.linspace(0, len(tokens) - length, 16).astype(int)
    rows = np.asarray(tokens)[places[:, None] + np.arange(length)]
    model, mask = Model(config), np.ones(rows.shape, np.float32)
    _, met = model.hidden_states(params, model.embed(params, rows), mask)
    weights = np.ones((length, length))
    if config.causal:
        weights = np.tril(weights)
    if config.attention_mean:
        weights /= weights.sum(axis=-1, keepdims=True)
    exponents = (met[f"layer{block}.attention.exp"] for block in range(config.layers))
    return [float(jnp.mean(jnp.sum(weights * jnp.exp(u), axis=-1))) for u in exponents]


def _shift(away: int, hidden: int, free: int) -> np.ndarray:
    """(free, free): a place's fastest sinusoids (row vector) times it are those of the place `away`
    tokens further on.
    """
    turn = np.zeros((free, free))
    for pair, rate in enumerate(position_rates(hidden)[:free:2]):
        i, c, s = 2 * pair, np.cos(rate * away), np.sin(rate * away)
        turn[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    return turn


def _copied(tree: Any) -> Any:
    return {k: _copied(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
