"""The kernel's exponent, heads, and softmax by squarings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import EncoderConfig
from models.data.batches import Batch
from models.encrypted.forward import forward_program
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import twin_of
from models.nn.attention import join_heads, negative_squared_distance, split_heads
from models.nn.encoder import Model
from models.sites.sites import Sites

SMALL = EncoderConfig(
    layers=1, hidden=8, heads=2, ffn=8, sequence=6, vocabulary=20, pooler=(5,), attention="softmax"
)


def rows(config: EncoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """Eight rows of two to six tokens."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, config.vocabulary, (8, config.sequence)).astype(np.int32)
    lengths = rng.integers(2, config.sequence + 1, 8)
    return tokens, (np.arange(config.sequence) < lengths[:, None]).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_expanded_distance_is_the_distance(queries: int, keys: int, features: int, seed: int):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(2, queries, features))
    k = rng.normal(size=(2, keys, features))
    direct = -((q[:, :, None] - k[:, None]) ** 2).sum(-1)
    ours = negative_squared_distance(jnp.asarray(q), jnp.asarray(k))
    np.testing.assert_allclose(ours, direct, rtol=1e-5, atol=1e-5)


def test_heads_split_and_join():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    assert split_heads(x, 4).shape == (2, 4, 3, 2)
    np.testing.assert_array_equal(join_heads(split_heads(x, 4)), x)
    np.testing.assert_array_equal(split_heads(x, 4)[:, 1], x[..., 2:4])


def wide_scores(config: EncoderConfig, size: float) -> dict:
    """Parameters whose scores reach some multiple of `size`, far apart from row to row."""
    params = Model(config).init(jax.random.key(0))
    for block in params["blocks"].values():
        block["attention"]["query"]["kernel"] *= size
    return params


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("squarings", [0, 1, 4])
def test_softmax_by_squarings_is_softmax(squarings: int, causal: bool):
    """Of scores up to 40, with padding whose scores are as large."""
    config = SMALL.replace(causal=causal)
    params = wide_scores(config, 7.0)
    tokens, mask = rows(config)
    expected, _ = Model(config).hidden_states(params, Model(config).embed(params, tokens), mask)
    other = Model(config.replace(attention="squared_softmax", softmax_squarings=squarings))
    found, met = other.hidden_states(params, other.embed(params, tokens), mask)
    scores = 2**squarings * met["layer0.attention.softmax_exp"]
    assert 20 < float(jnp.max(jnp.abs(scores))) < 60
    real = mask[..., None] > 0
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, expected, 0), atol=2e-4)


def test_sums_of_squares_need_no_maximum():
    """They lie between 1 / tokens and 1, whatever the scores are."""
    config = SMALL.replace(attention="squared_softmax", softmax_squarings=4)
    params = wide_scores(config, 7.0)
    tokens, mask = rows(config)
    model = Model(config)
    _, met = model.hidden_states(params, model.embed(params, tokens), mask)
    for site in (
        "square1.softmax_inv",
        "square2.softmax_inv",
        "square3.softmax_inv",
        "softmax_inv",
    ):
        sums = met[f"layer0.attention.{site}"]
        assert float(jnp.min(sums)) >= 1 / config.sequence - 1e-5
        assert float(jnp.max(sums)) <= 1 + 1e-5


def test_the_twin_of_softmax_is_near_it_and_traces():
    config = SMALL
    params = wide_scores(config, 4.0)
    tokens, mask = rows(config)
    data = Batch(tokens, mask, np.zeros(len(tokens)))
    how = EncryptionSettings()
    how = dataclasses.replace(how, fit=dataclasses.replace(how.fit, margin=0.25))
    twin = twin_of(Model(config), params, data, (config.sequence,), how)
    assert twin.config.attention == "squared_softmax"
    expected = Model(config).predict(params, tokens, mask)
    own = Sites(tuple(entry for entry in twin.sites.entries if ".attention." in entry[0]))
    found = twin.with_sites(own).predict(params, tokens, mask)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    program = forward_program(twin, len(tokens))
    assert {op.name for op in program.ops} & {"polynomial", "square"}
