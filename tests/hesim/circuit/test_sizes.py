"""What does not fit into memory is refused before its tables are built, with place and remedy."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hesim import LayoutError, compile, trace
from hesim.circuit import sizes
from hesim.circuit.layout import input_count, input_tables
from hesim.errors import TooLargeError


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, np.float32)


@pytest.mark.parametrize(
    ("fn", "args", "encrypted", "operation"),
    [
        (lambda x, y: x @ y, (shape(1, 128, 128), shape(1, 128, 128)), (0, 1), "dot_general"),
        (lambda x, y: x @ y, (shape(1, 2000), shape(2000, 300)), (0,), "dot_general"),
        (lambda x, y: x[:, None] + y, (shape(3), shape(3, 10**5)), (0,), "add"),
        (lambda x, y: x[:, None] * y, (shape(3), shape(10**6)), (0, 1), "broadcast_in_dim"),
        (lambda x, y: x[::-1] + y, (shape(10**5), shape(10**5)), (0, 1), "add"),
        (lambda x: x.sum(), (shape(10**6),), (0,), "reduce_sum"),
        (lambda x, i: x[i], (shape(1000), jnp.arange(1000)), (0,), "gather"),
    ],
)
def test_operations_that_do_not_fit_are_refused(
    monkeypatch, small_params, fn, args, encrypted, operation
):
    monkeypatch.setattr(sizes, "available", lambda: 2 * 10**8)
    # The search has no tables; it would find plans for some of these.
    monkeypatch.setattr("hesim.circuit.compile.lowerings", lambda *args, **options: iter(()))
    program = trace(fn, *args, encrypted=encrypted)
    with pytest.raises(TooLargeError) as caught:
        compile(program, small_params())
    error = caught.value
    assert isinstance(error, (LayoutError, MemoryError))
    assert error.size > error.free >= 2 * 10**8
    assert f"`{operation}` at " in str(error)
    assert f"{Path(__file__).name}:" in str(error)
    assert "GB of memory" in str(error)
    assert "Split" in str(error)


def test_what_is_small_is_compiled_when_nothing_is_free(monkeypatch, check):
    monkeypatch.setattr(sizes, "available", lambda: 0)
    check(lambda x: x @ x.T, np.linspace(-1.0, 1.0, 12).reshape(4, 3))


def test_what_is_free_is_known():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 <= sizes.available() < total


def test_inputs_of_too_many_ciphertexts_are_said_to_be_that(small_params):
    program = trace(lambda x: x * 2.0, shape(10**8))
    with pytest.raises(LayoutError, match=r"100,000,000 encrypted elements .* 20,000 ciphertexts"):
        compile(program, small_params())
    with pytest.raises(LayoutError, match="no encrypted input"):
        compile(trace(lambda x: x * 2.0, shape(3), encrypted=()), small_params())


def test_a_matrix_whose_batch_needs_too_many_ciphertexts_is_laid_out_as_one_tensor(small_params):
    """A member of the batch would meet every element of the matrix in a ciphertext of its own."""
    program = trace(lambda x, w: x + w[0], shape(1024, 1), shape(1024, 30), encrypted=(0, 1))
    assert compile(program, small_params(11)).ledger.seconds > 0


def test_ciphertexts_of_an_input_are_counted_without_its_tables():
    for size, axes, columns in [
        ((3, 5), (1,), 8),
        ((7, 5), (0, 1), 16),
        ((4,), (), 4),
        ((0,), (), 1),
    ]:
        assert input_count(size, axes, columns) == input_tables(size, axes, columns)[2]
