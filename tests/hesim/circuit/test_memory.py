"""Plans within a number of bytes: fewer rotation keys, of which other rotations are composed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesim import OverBudgetError, compile, trace
from hesim.circuit import sizes
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.table import current
from hesim.circuit.limits.rotation_keys import chosen_steps, ways
from hesim.circuit.plain.encoded import EncodedPlaintexts
from hesim.errors import ParameterError, TooLargeError

RNG = np.random.default_rng(0)
W = RNG.normal(size=(24, 24)) / 5
X = RNG.normal(size=(5, 24))


def fn(x):
    y = (x @ W) ** 2
    return y - y.mean(1, keepdims=True), y @ W.T


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 9).flatmap(
        lambda bits: st.tuples(
            st.just(1 << bits),
            st.dictionaries(st.integers(1, (1 << bits) - 1), st.floats(1e-3, 1.0), min_size=1),
            st.integers(1, 12),
        )
    )
)
def test_few_steps_make_up_all_others(case):
    slots, uses, most = case
    keys = chosen_steps(uses, slots, most)
    assert keys is not None and len(keys) <= most
    found = ways(keys, uses, slots)
    for step, way in found.items():
        assert sum(way) % slots == step and set(way) <= set(keys)
    if len(uses) <= most:
        assert set(keys) == set(uses)


def test_the_steps_that_save_most_are_kept():
    uses = dict.fromkeys(range(1, 128), 1.0)
    uses[77] = 1000.0
    for most in (8, 20, 60):
        keys = chosen_steps(uses, 128, most)
        assert keys is not None and 77 in keys
        lengths = [len(way) for way in ways(keys, uses, 128).values()]
        assert np.mean(lengths) <= math.log2(128) / 2 + 0.1
        assert max(lengths) <= 7
    with pytest.raises(ValueError, match="no sum of rotations"):
        ways((4, 8), (6,), 128)
    assert chosen_steps(uses, 128, 0) is None


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_rotations_are_composed_where_keys_do_not_fit(check, small_params, tmp_path):
    params = small_params(levels=4)
    free = check(fn, X, params=params)
    each = current().key_factor * params.key_bytes()
    assert free.ledger.rotation_keys > 4 and free.spare_bytes is None
    for keys in (free.ledger.rotation_keys - 1, 3, 1):
        memory = free.ledger.peak_bytes - each * (free.ledger.rotation_keys - keys) + each / 2
        circuit = check(fn, X, params=params, memory=memory)
        ledger = circuit.ledger
        assert 0 < ledger.rotation_keys <= keys + 1 and ledger.peak_bytes <= memory
        assert ledger.rotations > free.ledger.rotations and ledger.seconds > free.ledger.seconds
        assert ledger.key_seconds < free.ledger.key_seconds
        assert len(circuit.rotation_steps) == ledger.rotation_keys
    circuit.save(tmp_path / "c.npz")
    assert Circuit.load(tmp_path / "c.npz").spare_bytes == circuit.spare_bytes
    enough = check(fn, X, params=params, memory=free.ledger.peak_bytes)
    np.testing.assert_array_equal(enough.param, free.param)


def test_plaintexts_are_kept_as_far_as_there_is_room(small_params):
    params, program = small_params(levels=4), trace(fn, X)
    peak = compile(program, params).ledger.peak_bytes
    plain = np.zeros(100)
    for spare, kept in ((0, 0), (900, 1), (10_000, 12)):
        circuit = compile(program, params, memory=peak + spare)
        cache = EncodedPlaintexts(circuit, 10**9, repeated=True)
        vectors = np.flatnonzero(circuit.arg2 >= 0)[:12]
        for place in vectors.tolist():
            cache.get(place, lambda: plain)
        assert cache.held == min(kept, len({int(circuit.arg2[p]) for p in vectors})) * 800


def test_what_fits_in_no_way_says_what_it_takes(small_params):
    params, program = small_params(levels=4), trace(fn, X)
    with pytest.raises(OverBudgetError, match=r"fn takes at least \d+ MB .* memory=1,000,000") as e:
        compile(program, params, memory=1_000_000)
    assert compile(program, params, memory=1.05 * e.value.needed).ledger.rotation_keys >= 1
    for memory in (0, math.inf, math.nan):
        with pytest.raises(ParameterError, match="must be a positive number of bytes"):
            compile(program, params, memory=memory)


def test_the_compiler_itself_takes_no_more():
    with sizes.limited(10**9):
        assert sizes.available() <= 10**9
        sizes.reserve(lambda: "x", 9 * 10**8)
        held = np.ones(3 * 10**8, np.uint8)
        with pytest.raises(TooLargeError, match=r"takes about 0.9 GB of memory, and 0\.\d GB"):
            sizes.reserve(lambda: "x", 9 * 10**8)
        assert held[-1]
    assert sizes.available() > 10**9
