"""Parameters from a text's statistics: words that share contexts are near, heads see neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.config import EncoderConfig
from models.nn.attention import negative_squared_distance, split_heads
from models.nn.encoder import Model
from models.start.corpus import corpus_start, word_vectors

CONFIG = EncoderConfig(
    layers=1, hidden=64, heads=4, ffn=16, sequence=32, vocabulary=100, pooler=(8,), first_norm=True
)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Words 2-9 and 10-17 mix only with their own kind, 18-99 with all; 0 and 1 do not occur."""
    random = np.random.default_rng(0)
    parts = [random.integers(*bounds, 200) for _ in range(20) for bounds in ((2, 10), (10, 18))]
    words = np.concatenate(parts)
    common = random.random(len(words)) < 0.3
    return np.where(common, random.integers(18, 100, len(words)), words)


def test_words_of_one_kind_are_near_and_absent_ones_are_zero(text):
    vectors = word_vectors(text, 100, 6)
    assert vectors.shape == (100, 6) and vectors.dtype == np.float32
    assert not vectors[:2].any()
    unit = vectors[2:18] / np.linalg.norm(vectors[2:18], axis=1, keepdims=True)
    near = unit @ unit.T
    assert near[:8, :8].mean() > near[:8, 8:].mean() + 0.5
    assert np.mean(vectors**2) == pytest.approx(1 / 6, rel=1e-5)
    np.testing.assert_array_equal(vectors, word_vectors(text, 100, 6))


def test_a_text_of_few_words_has_the_same_vectors_every_time():
    """Fewer than features, so that the decomposition leaves some of them open."""
    text = np.random.default_rng(3).integers(0, 12, 40)
    first = word_vectors(text, 60, 24)
    assert np.all(np.isfinite(first)) and np.any(first)
    for _ in range(3):
        np.testing.assert_array_equal(word_vectors(text, 60, 24), first)


@pytest.mark.parametrize("attention", ["gaussian", "softmax"])
def test_heads_look_at_the_places_next_to_their_own(text, attention: str):
    config = CONFIG.replace(attention=attention)
    model = Model(config)
    params = corpus_start(config, model.init(jax.random.key(0)), text)
    rows = np.random.default_rng(1).integers(2, 100, (8, 32))
    x = model.embed(params, rows)
    weights = params["blocks"][0]["attention"]
    q, k = (split_heads(x @ weights[name]["kernel"], 4) for name in ("query", "key"))
    if attention == "gaussian":
        scores = negative_squared_distance(q, k)
    else:
        scores = jnp.einsum("bhid,bhjd->bhij", q, k)
    offsets = range(-4, 5)
    by_offset = [np.asarray(jnp.diagonal(scores, k, -2, -1).mean((0, -1))) for k in offsets]
    best = [offsets[i] for i in np.argmax(by_offset, axis=0)]
    assert best == [-1, 1, -2, 2]


@pytest.mark.parametrize("mean", [False, True])
def test_values_are_divided_by_the_sum_of_a_kernel_row(text, mean: bool):
    """So that the mixed values are as large as with softmax, whatever the length."""
    config = CONFIG.replace(layers=2, attention_mean=mean)
    model = Model(config)
    fresh = model.init(jax.random.key(0))
    params = corpus_start(config, fresh, text)
    rows = text[:256].reshape(8, 32)
    _, met = model.hidden_states(params, model.embed(params, rows), np.ones(rows.shape))
    for block in range(2):
        before, after = (
            p["blocks"][block]["attention"]["value"]["kernel"] for p in (fresh, params)
        )
        divided = np.asarray(before / after)
        total = np.exp(met[f"layer{block}.attention.exp"]).sum(-1).mean() / (32 if mean else 1)
        np.testing.assert_allclose(divided, total, rtol=0.1)


def test_what_has_no_neighbours_to_find_is_refused(text):
    config = CONFIG.replace(positions="learned")
    with pytest.raises(ValueError, match="sinusoidal"):
        corpus_start(config, Model(config).init(jax.random.key(0)), text)
    narrow = CONFIG.replace(hidden=4, heads=4)
    with pytest.raises(ValueError, match="too narrow"):
        corpus_start(narrow, Model(narrow).init(jax.random.key(0)), text)
    with pytest.raises(ValueError, match="fewer than words"):
        word_vectors(text, 100, 100)
