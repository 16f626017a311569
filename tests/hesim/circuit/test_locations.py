"""Places of tensors that are found when they are asked for."""

import copy
import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import hesim
from hesim.circuit.circuit import Circuit, TensorLocation

CIPHER, COLUMN = np.array([3, 3, -1, 5], np.int32), np.array([1, 0, 0, 1], np.int32)
REST = {"op": 0, "shape": (4,), "batch_axis": -1, "gain": 2.0, "batch": 1, "width": 2}


def later(calls: list[int]) -> TensorLocation:
    def places() -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        return CIPHER, COLUMN

    return TensorLocation(cipher=places, column=None, **REST)


@pytest.mark.parametrize("first", ["cipher", "column", "ciphers"])
def test_places_are_found_once_when_any_is_asked_for(first):
    calls: list[int] = []
    tap = later(calls)
    assert (tap.gain, tap.shape, calls) == (2.0, (4,), [])
    getattr(tap, first)
    assert tap.cipher is CIPHER and tap.column is COLUMN
    assert tap.ciphers.tolist() == [3, 5]
    assert calls == [1]
    assert not hasattr(tap, "rows")


def test_values_are_read_as_from_given_places():
    vectors = {c: np.arange(4.0) + c for c in (3, 5)}
    given = TensorLocation(cipher=CIPHER, column=COLUMN, **REST)
    np.testing.assert_array_equal(later([]).read(vectors), given.read(vectors))
    np.testing.assert_array_equal(given.read(vectors), [10.0, 6.0, 0.0, 14.0])


def test_copies_have_the_places():
    tap = later([])
    for other in (copy.copy(tap), dataclasses.replace(tap, gain=1.0)):
        np.testing.assert_array_equal(other.cipher, CIPHER)
        np.testing.assert_array_equal(other.column, COLUMN)


def test_files_hold_places_that_nobody_had_asked_for(tmp_path):
    params = hesim.CKKSParams(log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40)
    circuit = hesim.compile(hesim.trace(lambda x: x + x, np.ones(4)), params)
    dataclasses.replace(circuit, taps=(later([]),)).save(tmp_path / "c.npz")
    (tap,) = Circuit.load(tmp_path / "c.npz").taps
    np.testing.assert_array_equal(tap.cipher, CIPHER)
    np.testing.assert_array_equal(tap.column, COLUMN)


def test_axes_that_are_numbers_of_numpy_are_saved(tmp_path):
    params = hesim.CKKSParams(log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40)
    axes: Any = (np.int64(1),)
    program = hesim.trace(lambda x: jax.lax.reduce_sum(x * x, axes), np.zeros((4, 2)))
    hesim.compile(program, params).save(tmp_path / "c.npz")
    (tap,) = Circuit.load(tmp_path / "c.npz").outputs
    assert tap is not None
    assert tap.shape == (4,)
