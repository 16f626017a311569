"""Masked language modelling: how many words are hidden and how, and the fused loss of the head."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import EncoderConfig
from models.nn.encoder import Model
from models.objectives.mlm import (
    Masking,
    linear_cross_entropy,
    mlm_scores,
    word_matrix,
    word_states,
)

MASKING = Masking(mask_id=4, words=(5, 1000))
CONFIG = EncoderConfig(
    layers=1, hidden=16, heads=2, ffn=16, sequence=8, vocabulary=40, pooler=(8,), lm_head="tied"
)


def rows(count: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 1000, (count, length)).astype(np.int32)


def test_the_shares_are_those_of_bert():
    tokens = rows(2000, 128)
    batch = MASKING.apply(tokens, np.random.default_rng(1))
    assert batch.places.shape == (2000, 32)
    shown = np.take_along_axis(batch.tokens, batch.places, 1)
    masked, kept = np.mean(shown == 4), np.mean(shown == batch.words)
    assert abs(masked - 0.8) < 0.01
    assert abs(kept - 0.1) < 0.01
    untouched = np.ones(tokens.shape, bool)
    np.put_along_axis(untouched, batch.places, False, 1)
    np.testing.assert_array_equal(batch.tokens[untouched], tokens[untouched])
    np.testing.assert_array_equal(np.take_along_axis(tokens, batch.places, 1), batch.words)


@given(st.integers(1, 6), st.integers(8, 40), st.floats(0, 1), st.integers(0, 99))
def test_special_tokens_are_never_guessed(count: int, length: int, special: float, seed: int):
    tokens = rows(count, length, seed)
    tokens[np.random.default_rng(seed).random(tokens.shape) < special] = 2
    batch = MASKING.apply(tokens, np.random.default_rng(seed))
    assert batch.places.shape == (count, MASKING.chosen(length))
    assert all(len(set(row)) == len(row) for row in batch.places)
    assert ((batch.words >= 5) == (batch.weights > 0)).all()
    assert (batch.tokens[tokens == 2] == 2).all()


def test_masks_follow_from_seed_and_step():
    tokens = rows(4, 32)

    class Text:
        def take(self, numbers):
            return tokens[numbers]

    def of(seed: int, step: int) -> np.ndarray:
        return MASKING.batch(Text(), np.arange(4), seed, step).tokens  # pyright: ignore

    np.testing.assert_array_equal(of(0, 3), of(0, 3))
    assert (of(0, 3) != of(0, 4)).any() and (of(0, 3) != of(1, 3)).any()


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"masked": 0.9, "replaced": 0.2}])
def test_shares_that_make_no_sense_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match="share"):
        Masking(mask_id=4, words=(5, 10), **bad)


fused_loss: Any = linear_cross_entropy


def plain(states, matrix, bias, labels, weights):
    z = states @ matrix.T + bias
    found = jnp.take_along_axis(z, labels[:, None], 1)[:, 0]
    return jnp.sum(weights * (jax.nn.logsumexp(z, -1) - found))


@pytest.mark.parametrize("chunk", [0, 4, 5, 24])
def test_the_fused_loss_and_its_gradient_are_the_plain_ones(chunk: int):
    keys = jax.random.split(jax.random.key(0), 5)
    states = jax.random.normal(keys[0], (24, 8))
    matrix, bias = jax.random.normal(keys[1], (50, 8)), jax.random.normal(keys[2], (50,))
    labels = jax.random.randint(keys[3], (24,), 0, 50)
    weights = jax.random.uniform(keys[4], (24,))
    expected = jax.value_and_grad(
        lambda s, m, b: 3 * plain(s, m, b, labels, weights), argnums=(0, 1, 2)
    )
    found = jax.value_and_grad(
        lambda s, m, b: 3 * fused_loss(s, m, b, labels, weights, chunk), argnums=(0, 1, 2)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        found(states, matrix, bias),
        expected(states, matrix, bias),
    )


@pytest.mark.parametrize("head", ["tied", "own"])
def test_scores_and_loss_agree_and_only_chosen_places_count(head):
    model = Model(CONFIG.replace(lm_head=head))
    params = model.init(jax.random.key(0))
    masking = Masking(mask_id=4, words=(5, 40))
    tokens = np.random.default_rng(0).integers(5, 40, (3, 8)).astype(np.int32)
    batch = masking.apply(tokens, np.random.default_rng(1))
    states, values = word_states(model, params, batch)
    assert states.shape == (6, 16) and "layer0.attention.exp" in values
    all_states, _ = model.hidden_states(params, model.embed(params, batch.tokens), batch.mask)
    np.testing.assert_allclose(states[2], all_states[1, batch.places[1, 0]], rtol=1e-5, atol=1e-6)
    scores = mlm_scores(model, params, states, batch)
    assert scores["words"] == 6
    fused = fused_loss(
        states, *word_matrix(model, params), batch.words.ravel(), batch.weights.ravel(), 0
    )
    np.testing.assert_allclose(fused, scores["loss"], rtol=1e-5)


def test_a_model_without_a_head_is_refused():
    model = Model(CONFIG.replace(lm_head="none"))
    with pytest.raises(ValueError, match="lm_head"):
        word_matrix(model, {})
