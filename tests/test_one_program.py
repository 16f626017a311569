"""One traced program, run three ways: functions that no kernel was written for."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
import he_backend
import hesim
from hesim.params import InsecureParametersWarning
from models.config import EncoderConfig
from models.nn.encoder import Model
from models.nn.lora import combine, is_adapter_or_head, partition
from models.objectives.losses import squared_error
from models.sites.sites import Sites, function_of, site_names

DOMAINS = {"exp": (-8, 0), "inv_sqrt": (0.3, 9), "relu": (-6, 6), "tanh": (-4, 4)}


@pytest.fixture(scope="module")
def small() -> hesim.CKKSParams:
    """A ring too small to be secure, with room for one chain of products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        return hesim.CKKSParams(
            log_n=11, levels=3, scale_bits=36, first_bits=46, special_bits=56, security=None
        )


def unplanned(x, w):
    return jnp.einsum("bij,kj->bik", x * x, w).sum(1) - x.mean(1)[:, :1]


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(7)
    return rng.uniform(-1, 1, (4, 6, 5)).astype("f"), rng.uniform(-1, 1, (7, 5)).astype("f")


def worst(tree, reference) -> float:
    """Largest error relative to the largest element, over all leaves."""
    return max(
        float(np.max(np.abs(np.asarray(a) - b)) / max(np.max(np.abs(b)), 1e-30))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    )


def in_float64(fn, *args):
    """What JAX computes for `fn` itself, untraced, in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, fn(*jax.tree.map(lambda a: np.asarray(a, np.float64), args))
        )


@pytest.mark.parametrize("backend", ["slots", "pyfhel"])
def test_an_unplanned_function_and_its_gradient_run_encrypted(small, operands, backend):
    functions = [unplanned, jax.grad(lambda x, w: (unplanned(x, w) ** 2).sum(), argnums=(0, 1))]
    for fn in functions:
        program = hesim.trace(fn, *operands, encrypted=(0,))
        report = he_backend.run(program, *operands, params=small, backend=backend)
        assert worst(report.outputs, in_float64(fn, *operands)) < (
            1e-12 if backend == "slots" else 1e-4
        )


def test_an_unplanned_function_is_simulated_and_differentiated(small, operands):
    x, w = operands
    simulated = hesim.simulate(unplanned, small, encrypted=(0,))
    key = jax.random.key(3)
    exact = in_float64(unplanned, x, w)
    assert 0 < worst(simulated(key, x, w), exact) < 1e-4
    gradient = jax.grad(lambda x: simulated(key, x, w).sum())
    expected = in_float64(jax.grad(lambda x, w: unplanned(x, w).sum()), x, w)
    assert worst(gradient(x), expected) < 1e-4
    np.testing.assert_allclose(jax.jit(gradient)(x), gradient(x), rtol=1e-5, atol=1e-6)
    keys = jax.random.split(key, 3)
    mapped = jax.vmap(lambda k: simulated(k, x, w))(keys)
    np.testing.assert_allclose(mapped[1], simulated(keys[1], x, w), rtol=1e-5, atol=1e-6)


def lora_gradient(hidden: int, tokens: int):
    """The gradient of a two-layer model's loss in its adapters, pooler and head, and arguments.

    Encrypted are the trained matrices (argument 0), the embedded sentence (1) and its label (2).
    """
    config = EncoderConfig(
        layers=2,
        hidden=hidden,
        heads=2,
        ffn=2 * hidden,
        sequence=tokens,
        vocabulary=50,
        pooler=(hidden,),
        lora_rank=2,
        lora_alpha=2.0,
    )
    fits = {
        name: approx.fit(function_of(name), DOMAINS[function_of(name)], degree=7)
        for name in site_names(config)
    }
    model = Model(config, Sites.of(fits), low_rank=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.05 * rng.standard_normal(leaf.shape).astype("f"),
        model.init(jax.random.key(0)),
    )
    x = np.asarray(model.embed(params, rng.integers(0, 50, (1, tokens))))
    mask = (np.arange(tokens) < tokens - 1).astype("f")[None]
    trained, frozen = partition(params, is_adapter_or_head)

    def loss(trained, x, label, frozen, mask):
        logits = model.encrypted_forward(combine(trained, frozen), x, mask)
        return squared_error(logits, label)

    return jax.grad(loss), (trained, x, np.eye(2, dtype="f")[:1], frozen, mask)


def test_the_gradient_of_a_lora_model_is_exact_on_slots(small):
    gradient, args = lora_gradient(hidden=8, tokens=4)
    args = jax.tree.map(lambda a: np.asarray(a, np.float64), args)
    with jax.enable_x64(True):  # so that the function's own constants are float64 in the trace
        program = hesim.trace(gradient, *args, encrypted=(0, 1, 2))
    across = [()] * sum(v.encrypted for v in program.inputs)
    circuit = hesim.compile(program, small, layouts=across)
    report = he_backend.run(program, *args, circuit=circuit, backend="slots", outside="warn")
    assert worst(report.outputs, in_float64(gradient, *args)) < 1e-9
    assert report.counts == circuit.ledger.counts()


@pytest.mark.slow
def test_the_gradient_of_a_lora_model_runs_encrypted():
    params = hesim.CKKSParams(
        log_n=14, levels=3, scale_bits=40, first_bits=50, special_bits=60, security=128
    )
    gradient, args = lora_gradient(hidden=32, tokens=8)
    program = hesim.trace(gradient, *args, encrypted=(0, 1, 2))
    report = he_backend.run(program, *args, params=params, backend="pyfhel", outside="warn")
    assert worst(report.outputs, in_float64(gradient, *args)) < 1e-3
    assert report.counts == report.ledger.counts()
