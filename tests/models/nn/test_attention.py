"""The kernel's exponent and the masks of both attentions."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.nn.attention import join_heads, negative_squared_distance, split_heads


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
