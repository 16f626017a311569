"""Terms and plaintexts held as arrays are those that were given one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hesim
from hesim.circuit import nodes as held
from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Kind, PlaintextFamily
from hesim.circuit.emission import PlainNumbers
from hesim.circuit.nodes import Terms, compact
from hesim.circuit.plain_rows import MaskRows

WHOLE = st.integers(-(2**31), 2**31 - 1)
NODE = st.integers(0, 2**31 - 1)


def many(entries: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(entries, min_size=5, max_size=9)


@given(
    st.one_of(
        st.tuples(st.just(Kind.ADD), many(st.tuples(WHOLE, NODE, st.none()))),
        st.tuples(st.just(Kind.DOT), many(st.tuples(WHOLE, NODE, NODE))),
        st.tuples(
            st.just(Kind.DOT_PLAIN),
            many(st.tuples(st.just(1), NODE, st.tuples(NODE, NODE))),
        ),
    )
)
def test_many_terms_are_read_as_they_were_given(case):
    kind, given_terms = case
    found = compact(kind, given_terms)
    assert isinstance(found, Terms)
    assert list(found) == given_terms
    assert found.first == [node for _, node, _ in given_terms]
    assert [found[k] for k in range(-len(found), len(found))] == given_terms * 2
    assert list(found[1:3]) == given_terms[1:3]


def test_few_terms_stay_tuples():
    assert compact(Kind.ADD, [(1, 2, None)]) == ((1, 2, None),)


PLAIN = st.tuples(st.integers(0, 2), st.integers(0, 40), st.sampled_from([2.0, 3.0]))


@given(
    st.lists(
        st.one_of(
            st.lists(PLAIN, max_size=12),
            # Of one pack in one encoding, with repetitions.
            st.lists(st.integers(0, 9), min_size=1, max_size=12).map(
                lambda rows: [(1, r, 2.0) for r in rows]
            ),
        ),
        max_size=6,
    ),
    st.integers(0, 1),
)
def test_plaintexts_are_numbered_in_the_order_in_which_they_are_asked_for(calls, level):
    numbers, model = PlainNumbers(), {}
    for plains in calls:
        pack, row, scale = (np.array([p[k] for p in plains]) for k in range(3))
        expected = [model.setdefault((p, r, level, s), len(model)) for p, r, s in plains]
        found = numbers.many(pack.astype(np.int32), row.astype(np.int32), level, scale)
        assert found.tolist() == expected
        assert [numbers.one(p, r, level, s) for p, r, s in plains] == expected
    arrays = numbers.arrays()
    assert len(numbers) == len(model)
    assert list(zip(*(a.tolist() for a in arrays.values()), strict=True)) == list(model)


@pytest.fixture
def b() -> Builder:
    return Builder(8, 1, 1)


@pytest.mark.parametrize(
    "rows", [np.arange(4, dtype=np.int32)[:, None], MaskRows(np.eye(4, 8) > 0)]
)
def test_rows_of_one_pack_are_multiplied_as_one_by_one(b, rows):
    b.begin(0)
    x = [b.input(k, np.arange(8) % 3 == k) for k in range(3)]
    pack = b.pack(PlaintextFamily(-1, rows, 0, 1, 1, 8, 1.0, np.ones(4)))
    pairs = [(x[k % 3], k % 4) for k in range(7)]
    one = b.dot_plain([(n, (pack, r)) for n, r in pairs])
    other = b.dot_rows(*np.array(pairs).T[:1], pack, np.array(pairs).T[1])
    assert list(b.nodes[one].terms) == list(b.nodes[other].terms)
    assert b.support[one] is b.support[other]
    for name in ("kind", "size", "power", "below", "stage"):
        assert getattr(b.nodes[one], name) == getattr(b.nodes[other], name)
    assert b.period[one] == b.period[other]
    known = np.arange(8) == 1
    few = b.dot_rows(np.array(x), pack, np.arange(3), support=known)
    np.testing.assert_array_equal(b.support[few], known)


def test_equal_masks_are_one_plaintext(b):
    b.begin(0)
    x = np.array([b.input(k, np.ones(8, bool)) for k in range(3)])
    pack = b.pack(
        PlaintextFamily(-1, MaskRows(np.eye(2, 8)[[0, 1, 0]] > 0), 0, 1, 1, 8, 1.0, np.ones(1))
    )
    one = b.dot_plain([(int(n), (pack, k)) for k, n in enumerate(x)])
    other = b.dot_rows(x, pack, np.arange(3))
    for node in (one, other):
        assert [row for _, _, (_, row) in b.nodes[node].terms] == [0, 1, 0]
    assert list(b.nodes[b.add_plain(int(x[0]), (pack, 2))].terms) == [(1, x[0], (pack, 0))]


def test_circuits_are_the_same_whatever_form_terms_have(monkeypatch, small_params):
    w = np.linspace(-1, 1, 40).reshape(8, 5)
    program = hesim.trace(lambda x: ((x @ w) ** 2 + x @ w) @ w.T * x, np.ones((4, 8)))
    one = hesim.compile(program, small_params())
    kinds = np.repeat(one.kind, np.diff(one.arg_ptr))
    of = np.isin(kinds, (Kind.DOT_PLAIN, Kind.ADD_PLAIN))
    for few in (0, 10**9):
        monkeypatch.setattr(held, "_FEW", few)
        other = hesim.compile(program, small_params())
        assert one.ledger == other.ledger
        for name in ("kind", "level", "scale", "arg_ptr", "arg", "factor", "param", "source"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("plain_pack", "plain_row", "plain_level", "plain_scale"):
            plain = [getattr(c, name)[c.arg2[of]] for c in (one, other)]
            np.testing.assert_array_equal(*plain)
