"""Encoded plaintexts that are kept for their next use."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import hesim
from hesim.circuit import sizes
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.plain.encoded import EncodedPlaintexts, next_uses


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    params = hesim.CKKSParams(log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40)
    w = np.linspace(-1, 1, 64).reshape(8, 8)
    found = hesim.compile(hesim.trace(lambda x: x @ w + 0.5 * x, np.ones(8)), params)
    assert np.count_nonzero(next_uses(found) >= 0) == 0, "each is used once"
    return found


def using(circuit: Circuit, *plains: int) -> Circuit:
    """A Circuit whose operands are these plaintexts, one product after another."""
    vectors = np.flatnonzero([not circuit.packs[k].scalar for k in circuit.plain_pack])
    count = len(plains)
    return dataclasses.replace(
        circuit,
        kind=np.full(count, Kind.DOT_PLAIN, np.uint8),
        arg_ptr=np.arange(count + 1),
        arg=np.zeros(count, np.int32),
        arg2=vectors[list(plains)].astype(np.int32),
    )


def encoded(store: EncodedPlaintexts, places: list[int]) -> list[int]:
    """The places at which a plaintext of 10 bytes had to be encoded."""
    made = []
    for k in places:

        def make(place: int = k) -> SimpleNamespace:
            made.append(place)
            return SimpleNamespace(nbytes=10)

        store.get(k, make)
    return made


def test_next_uses_are_of_the_same_plaintext(circuit):
    assert next_uses(using(circuit, 0, 1, 0, 2, 1, 0)).tolist() == [2, 4, 5, -1, -1, -1]


def test_numbers_are_not_kept(circuit):
    number = dataclasses.replace(circuit.packs[0], rows=np.zeros((1, 1), np.int32), stride=0)
    numbers = dataclasses.replace(using(circuit, 0, 0), packs=(number,) * len(circuit.packs))
    assert np.all(next_uses(numbers) == -1)


def test_what_is_kept_stays_below_the_limit(circuit):
    store = EncodedPlaintexts(using(circuit, *range(3), *range(3)), 20)
    assert encoded(store, [0, 1, 2]) == [0, 1, 2]
    assert store.held == 20
    assert encoded(store, [3, 4, 5]) == [5]
    assert store.held == 0


def test_what_another_process_has_used_makes_room(circuit):
    store = EncodedPlaintexts(using(circuit, 0, 1, 0, 1, 2, 0, 2), 10)
    assert encoded(store, [0, 1]) == [0, 1], "there is room for the first"
    assert encoded(store, [4]) == [4], "whose next use would have been before"
    assert encoded(store, [5, 6]) == [5], "the third is kept in its place"
    assert store.held == 0


def test_a_quarter_of_what_is_free_is_kept(circuit, monkeypatch):
    monkeypatch.setattr(sizes, "available", lambda: 40)
    store = EncodedPlaintexts(using(circuit, 0, 1, 0, 1))
    assert encoded(store, [0, 1, 2, 3]) == [0, 1, 3]


def test_what_is_used_in_every_run_stays_while_there_is_room(circuit):
    store = EncodedPlaintexts(using(circuit, 0, 1, 2), 20, repeated=True)
    assert encoded(store, [0, 1, 2]) == [0, 1, 2]
    assert encoded(store, [0, 1, 2]) == [2]
    assert store.held == 20


def test_what_is_encoded_ahead_is_used_once_and_bounded(circuit):
    uses = using(circuit, 0, 1, 0, 2, 3)
    plains = uses.arg2.tolist()

    def store(limit: int, stop: Callable[[], bool]) -> tuple[list[int], list[int]]:
        """Plaintexts encoded ahead, and places at which others were."""
        ahead: list[int] = []
        found = EncodedPlaintexts(uses, limit=0)

        def encode(plain: int) -> SimpleNamespace:
            ahead.append(plain)
            return SimpleNamespace(nbytes=10)

        found.encode_ahead(range(5), limit, encode, stop)
        return ahead, encoded(found, list(range(5)))

    first, second, _, third, fourth = plains
    assert store(1000, lambda: False) == ([first, second, third, fourth], [2])
    assert store(15, lambda: False) == ([first, second], [2, 3, 4])
    assert store(1000, lambda: True) == ([], [0, 1, 2, 3, 4])
