"""The gradient of a two-layer LoRA encoder's loss, run on the slot machine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import tree_util

from hesim import compile, trace
from models.config import EncoderConfig
from models.nn.encoder import Model
from models.nn.lora import combine, is_adapter, partition
from models.objectives.losses import squared_error
from models.sites.sites import FitSettings, fit_ranges, function_of, site_names

CONFIG = EncoderConfig(
    hidden=8,
    heads=2,
    ffn=8,
    sequence=4,
    vocabulary=20,
    pooler=(6,),
    lora_rank=2,
    activation="glu_bilinear",
)
RANGES = {"exp": (-6.0, 0.0), "inv_sqrt": (0.3, 6.0), "tanh": (-2.5, 2.5)}


def model_and_arguments():
    model = Model(CONFIG, low_rank=True)
    wide = {name: RANGES[function_of(name)] for name in site_names(CONFIG)}
    degrees = tuple((f, 3) for f in RANGES)
    model = model.with_sites(fit_ranges(CONFIG, wide, FitSettings(degrees=degrees, margin=0.0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) + 0.05 * rng.normal(size=leaf.shape),
        model.init(jax.random.key(0)),
    )
    adapters, frozen = partition(params, is_adapter)
    tokens = rng.integers(1, CONFIG.vocabulary, (3, CONFIG.sequence)).astype(np.int32)
    mask = (np.arange(CONFIG.sequence) < np.array([[4], [2], [3]])).astype(np.float64)
    with jax.enable_x64(True):
        rows = np.asarray(model.embed(frozen, tokens))
    return model, (adapters, frozen, rows, mask, np.eye(2)[[0, 1, 1]])


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_gradient_of_a_two_layer_lora_model_has_the_float64_numbers_of_jax(run_slots, small_params):
    model, arguments = model_and_arguments()

    def loss(adapters, frozen, x, mask, targets):
        return squared_error(model.encrypted_forward(combine(adapters, frozen), x, mask), targets)

    with jax.enable_x64(True):
        wanted = jax.jit(jax.grad(loss))(*jax.tree.map(jnp.asarray, arguments))
        program = trace(jax.grad(loss), *arguments, encrypted=(2, 4))
        circuit = compile(program, small_params(), batch=False, layouts=[(0, 1), (0,)])
        outputs, _ = run_slots(circuit, arguments)
    leaves = tree_util.tree_leaves(wanted)
    assert len(leaves) == len(outputs) == 12
    for found, exact in zip(outputs, leaves, strict=True):
        assert found is not None
        largest = np.abs(exact).max()
        assert largest > 0
        assert np.abs(found - exact).max() <= 1e-9 * largest
