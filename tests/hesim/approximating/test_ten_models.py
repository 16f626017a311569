"""Models of others, no line of theirs changed, made polynomial, traced, simulated and run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import he_backend
import hesim
from tests.hesim.approximating.others import CASES, Case

NAMES = tuple(CASES)
OPERATIONS = {
    "mlp": {"gelu_tanh"},
    "mixer": {"inv_sqrt", "gelu_tanh"},
    "transformer": {"inv_sqrt", "exp", "inv", "gelu_tanh"},
    "gru": {"sigmoid", "tanh"},
    "resnet": {"max", "relu"},
    "pooling": {"exp", "inv"},
    "logistic": {"sigmoid"},
    "gated": {"inv_sqrt", "silu"},
    "scorer": {"tanh", "exp", "log"},
    "cnn": {"elu", "sigmoid"},
}


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Case, hesim.Approximated, tuple[Any, ...]]:
    """A model, what was made of it, and a batch that was held out."""
    one = CASES[request.param]()
    rng = np.random.default_rng(1)
    batches, held = [one.batch(rng) for _ in range(4)], one.batch(rng)
    made = hesim.approximate(one.fn, batches, tol=one.tol, encrypted=one.encrypted)
    return one, made, held


def gap(result: Any, other: Any) -> float:
    return float(np.max(np.abs(np.asarray(result, np.float64) - np.asarray(other, np.float64))))


@pytest.mark.parametrize(("case", "operations"), OPERATIONS.items(), indirect=["case"])
def test_held_out_inputs_keep_to_the_error_asked_for(
    case: Any, operations: set[str], ring: hesim.CKKSParams
) -> None:
    one, made, held = case
    assert {site.operation for site in made.sites} == operations
    exact, smooth = jax.jit(lambda *args: (one.fn(*args), made(*args)))(*held)
    assert 0.0 < gap(smooth, exact) <= one.tol
    if operations & {"inv_sqrt", "log"}:
        with jax.enable_x64(True):  # dtypes are converted in other places then
            wide = jax.tree.map(lambda a: np.asarray(a, np.float64), held)
            assert gap(jax.jit(made)(*wide), exact) <= one.tol
    program = hesim.trace(made, *held, encrypted=made.encrypted)
    report = he_backend.run(program, *held, params=ring, backend="slots")
    assert gap(report.outputs, exact) <= one.tol
    assert gap(report.outputs, smooth) < 1e-4


@pytest.mark.filterwarnings("ignore::hesim.errors.SwallowedNoiseWarning")
@pytest.mark.parametrize(
    "case",
    [n if n in ("mlp", "gated") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
    indirect=True,
)
def test_with_noise_it_keeps_to_the_error_asked_for(case: Any, ring: hesim.CKKSParams) -> None:
    one, made, held = case
    noisy = hesim.simulate(made, ring, encrypted=made.encrypted)(jax.random.key(0), *held)
    assert gap(noisy, one.fn(*held)) <= one.tol
    assert gap(noisy, made(*held)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_encrypted_it_keeps_to_the_error_asked_for(case: Any, ring: hesim.CKKSParams) -> None:
    one, made, held = case
    program = hesim.trace(made, *held, encrypted=made.encrypted)
    report = he_backend.run(program, *held, params=ring, backend="pyfhel")
    assert gap(report.outputs, one.fn(*held)) <= one.tol
    assert gap(report.outputs, program(*held, precision="float64")) < 1e-3
