"""Adapters: merged and low-rank paths agree, partition and merge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.config import EncoderConfig
from models.nn.encoder import Model
from models.nn.lora import Linear, combine, is_adapter, merge, partition

CONFIG = EncoderConfig(
    hidden=8,
    heads=2,
    ffn=8,
    sequence=4,
    vocabulary=11,
    pooler=(4,),
    lora_rank=2,
    lora_alpha=3.0,
    lora_targets=("query", "key", "value", "output"),
    first_norm=True,
)


def params_with_adapters():
    params = Model(CONFIG).init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(
        tree,
        [
            leaf + 0.2 * jax.random.normal(jax.random.key(i), leaf.shape)
            for i, leaf in enumerate(leaves)
        ],
    )


def test_low_rank_path_equals_merged_matrix():
    params = params_with_adapters()
    tokens, mask = jnp.arange(8).reshape(2, 4), jnp.ones((2, 4))
    merged = Model(CONFIG).predict(params, tokens, mask)
    low = Model(CONFIG, low_rank=True).predict(params, tokens, mask)
    np.testing.assert_allclose(low, merged, rtol=1e-4, atol=1e-5)
    without = Model(CONFIG.replace(lora_alpha=0.0)).predict(params, tokens, mask)
    assert not np.allclose(without, merged, atol=1e-3)


def test_merge_keeps_the_function_and_is_idempotent():
    params = params_with_adapters()
    tokens, mask = jnp.arange(8).reshape(2, 4), jnp.ones((2, 4))
    once = merge(params, CONFIG.lora_scale)
    np.testing.assert_allclose(
        Model(CONFIG.replace(lora_alpha=0.0)).predict(once, tokens, mask),
        Model(CONFIG).predict(params, tokens, mask),
        rtol=1e-4,
        atol=1e-5,
    )
    twice = merge(once, CONFIG.lora_scale)
    jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_fresh_adapters_change_nothing():
    linear = Linear(5, 3, rngs=nnx.Rngs(0), rank=2, lora_scale=0.5)
    np.testing.assert_array_equal(linear.merged, linear.kernel[...])


@pytest.mark.parametrize("low_rank", [False, True])
def test_projection_folds_affine_part_and_factor(low_rank: bool):
    linear = Linear(5, 4, rngs=nnx.Rngs(0), rank=2, lora_scale=0.5)
    assert linear.lora_b is not None
    linear.lora_b[...] = jnp.ones((2, 4))
    rng = np.random.default_rng(0)
    x, gamma, beta = (jnp.asarray(rng.normal(size=s)) for s in ((7, 5), (5,), (5,)))
    ours = linear.project(
        x, gamma=gamma, beta=beta, factor=0.3, low_rank=low_rank, outputs=slice(1, 3)
    )
    np.testing.assert_allclose(
        ours, (0.3 * (gamma * x + beta) @ linear.merged)[:, 1:3], rtol=1e-5, atol=1e-5
    )


def test_partition_and_combine_are_inverse():
    params = params_with_adapters()
    adapters, rest = partition(params, is_adapter)
    assert len(jax.tree.leaves(adapters)) == 2 * 4 * 2
    assert jax.tree.structure(combine(adapters, rest)) == jax.tree.structure(params)
    with pytest.raises(ValueError, match="both"):
        combine(params, rest)
