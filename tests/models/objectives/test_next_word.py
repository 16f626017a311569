"""Next-word prediction: what is guessed where, its loss by hand, and that no place sees ahead."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.config import EncoderConfig
from models.nn.attention import negative_squared_distance, split_heads
from models.nn.encoder import Model
from models.objectives.mlm import linear_cross_entropy, mlm_scores, word_matrix, word_states
from models.objectives.next_word import NextWord
from models.start.corpus import corpus_start

CONFIG = EncoderConfig(
    layers=2,
    hidden=16,
    heads=2,
    ffn=16,
    sequence=8,
    vocabulary=40,
    pooler=(8,),
    lm_head="tied",
    causal=True,
)
fused_loss: Any = linear_cross_entropy
NEXT = NextWord(padding_id=0, words=(0, 40))

pytestmark = pytest.mark.usefixtures("quick_compilation")


def rows(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 40, (count, 8)).astype(np.int32)


def test_every_token_that_has_a_next_one_guesses_it():
    tokens = rows()
    tokens[1, 5:] = 0
    batch = NEXT.apply(tokens, 0.5)
    np.testing.assert_array_equal(batch.tokens, tokens)
    np.testing.assert_array_equal(batch.weights.sum(axis=1), [7, 4, 7])
    for row, place in zip(*np.nonzero(batch.weights), strict=True):
        at = batch.places[row, place]
        assert batch.words[row, place] == tokens[row, at + 1] != 0
    np.testing.assert_array_equal(batch.mask, tokens != 0)
    assert batch.progress == np.float32(0.5)


def test_the_loss_is_that_of_the_tokens_shifted_by_one():
    model, tokens = Model(CONFIG), rows()
    tokens[2, 6:] = 0
    params = model.init(jax.random.key(0))
    batch = NEXT.apply(tokens)
    states, _ = word_states(model, params, batch)
    scores = mlm_scores(model, params, states, batch)
    every, _ = model.hidden_states(params, model.embed(params, tokens), batch.mask)
    log_p = np.asarray(jax.nn.log_softmax(model.word_logits(params, every)))
    pairs = [(r, t) for r in range(3) for t in range(7) if tokens[r, t + 1] != 0]
    by_hand = -sum(log_p[r, t, tokens[r, t + 1]] for r, t in pairs)
    right = sum(np.argmax(log_p[r, t]) == tokens[r, t + 1] for r, t in pairs)
    assert (scores["words"], scores["right"]) == (len(pairs), right) == (19, right)
    np.testing.assert_allclose(scores["loss"], by_hand, rtol=1e-5)
    labels, weights = jnp.ravel(batch.words), jnp.ravel(batch.weights)
    fused = fused_loss(states, *word_matrix(model, params), labels, weights, 8)
    np.testing.assert_allclose(fused, by_hand, rtol=1e-5)


@pytest.mark.parametrize(
    ("attention", "order"),
    [
        ("gaussian", "pre"),
        ("gaussian_normalised", "post"),
        ("softmax", "pre"),
        ("power_softmax", "post"),
    ],
)
def test_a_later_token_never_changes_an_earlier_prediction(attention, order):
    config = CONFIG.replace(attention=attention, norm_order=order)
    tokens = rows(1)
    changed = tokens.copy()
    changed[0, 4] = tokens[0, 4] % 39 + 1

    def logits(config: EncoderConfig, tokens: np.ndarray) -> np.ndarray:
        model = Model(config)
        params = model.init(jax.random.key(0))
        states, _ = word_states(model, params, NEXT.apply(tokens))
        return np.asarray(model.word_logits(params, states))

    before, after = logits(config, tokens), logits(config, changed)
    np.testing.assert_array_equal(before[:4], after[:4])
    assert all((a != b).any() for a, b in zip(before[4:], after[4:], strict=True))
    ahead = config.replace(causal=False)
    assert (logits(ahead, tokens)[:4] != logits(ahead, changed)[:4]).any(axis=1).all()


@pytest.mark.parametrize("mean", [False, True])
def test_the_heads_of_a_decoder_start_looking_back(mean: bool):
    config = CONFIG.replace(
        layers=1, hidden=64, heads=4, sequence=32, vocabulary=100, attention_mean=mean
    )
    text = np.random.default_rng(0).integers(5, 100, 4000)
    model = Model(config)
    fresh = model.init(jax.random.key(0))
    params = corpus_start(config, fresh, text)
    rows = text[:256].reshape(8, 32)
    x = model.embed(params, rows)
    own = params["blocks"][0]["attention"]
    q, k = (split_heads(x @ own[name]["kernel"], 4) for name in ("query", "key"))
    scores = negative_squared_distance(q, k)
    offsets = range(-5, 1)
    by_offset = [np.asarray(jnp.diagonal(scores, n, -2, -1).mean((0, -1))) for n in offsets]
    assert [offsets[i] for i in np.argmax(by_offset, axis=0)] == [-1, -2, -3, -4]
    _, met = model.hidden_states(params, x, np.ones(rows.shape))
    seen = np.tril(np.ones((32, 32)))
    weights = seen / seen.sum(-1, keepdims=True) if mean else seen
    total = (weights * np.exp(met["layer0.attention.exp"])).sum(-1).mean()
    divided = fresh["blocks"][0]["attention"]["value"]["kernel"] / own["value"]["kernel"]
    np.testing.assert_allclose(divided, total, rtol=0.1)
