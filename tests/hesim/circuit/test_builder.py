"""The builder: where nodes may differ from zero, and what it holds of them."""

import numpy as np
import pytest

from hesim.circuit.builder import Builder
from hesim.circuit.circuit import PlaintextFamily
from hesim.circuit.plain_rows import MapRows, MaskRows

COLUMNS = 16


@pytest.fixture
def b() -> Builder:
    made = Builder(COLUMNS, 1, 1)
    made.begin(0)
    return made


def columns(*held: int) -> np.ndarray:
    return np.isin(np.arange(COLUMNS), held)


def family(b: Builder, rows) -> int:
    return b.pack(PlaintextFamily(-1, rows, 0, 1, 1, COLUMNS, 1.0, np.ones(3)))


def test_what_may_differ_from_zero_follows_the_operations(b):
    x, y = b.input(0, columns(0, 1, 2)), b.input(1, columns(2, 3))
    mask = family(b, MaskRows(columns(1, 2, 9)[None]))
    table = family(b, np.where(columns(0, 9), 2, -1).astype(np.int32)[None])
    one = family(b, np.zeros((1, 1), np.int32))
    expected = {
        b.add([(1, x), (-1, y)]): columns(0, 1, 2, 3),
        b.dot([(1, x, y)]): columns(2),
        b.dot([(1, x, x), (1, y, y)]): columns(0, 1, 2, 3),
        b.dot_plain([(x, (mask, 0))]): columns(1, 2),
        b.dot_plain([(x, (table, 0)), (y, (mask, 0))]): columns(0, 2),
        b.dot_plain([(x, (one, 0))]): columns(0, 1, 2),
        b.add_plain(x, (mask, 0)): columns(0, 1, 2, 9),
        b.rotate(x, 1): columns(15, 0, 1),
        b.rescale(b.dot([(1, x, y)])): columns(2),
    }
    for node, held in expected.items():
        np.testing.assert_array_equal(b.support[node], held)


def test_a_number_added_is_everywhere(b):
    node = b.add_plain(b.input(0, columns(3)), (family(b, np.zeros((1, 1), np.int32)), 0))
    assert b.support[node].all()


def test_equal_sets_of_columns_are_held_once(b):
    every = b.input(0, np.ones(COLUMNS, bool))
    other = b.input(1, columns(1, 2))
    again = b.input(2, columns(2, 3))
    full = [b.add([(1, other), (1, every)]), b.rotate(every, 5), b.dot([(1, every, every)])]
    assert all(b.support[n] is b.support[every] for n in full)
    assert b.support[b.rotate(again, 1)] is b.support[other]
    assert b.support[b.dot([(1, other, every)])] is b.support[other]
    size = b.supports.size
    for step in range(1, COLUMNS):
        b.rotate(b.rotate(every, step), step)
    assert b.supports.size == size


def test_shared_sets_cannot_be_written_to(b):
    held = columns(1)
    node = b.input(0, held)
    held[:] = True
    np.testing.assert_array_equal(b.support[node], columns(1))
    with pytest.raises(ValueError, match="read-only"):
        b.support[node][0] = True


def test_rows_of_a_map_are_not_made_for_where_they_are_zero(b, monkeypatch):
    key, none = np.zeros((1, COLUMNS), np.int32), np.zeros(1, int)
    rows = MapRows(key, key, key, key, none, none, none, none)
    monkeypatch.setattr(MapRows, "row", lambda *_: pytest.fail("a row was made"))
    x, plain = b.input(0, columns(0, 5)), (family(b, rows), 0)
    np.testing.assert_array_equal(b.support[b.dot_plain([(x, plain)])], columns(0, 5))
    assert b.support[b.add_plain(x, plain)].all()


def test_the_caller_may_know_where_a_result_differs_from_zero(b):
    x = b.input(0, np.ones(COLUMNS, bool))
    mask, known = (family(b, MaskRows(columns(1, 2)[None])), 0), columns(1)
    for node in (
        b.dot_plain([(x, mask)], support=known),
        b.add_plain(x, mask, support=known),
        b.add([(1, x)], support=known),
        b.dot([(1, x, x)], support=known),
    ):
        np.testing.assert_array_equal(b.support[node], known)
