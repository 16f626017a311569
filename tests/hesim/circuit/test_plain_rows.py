"""Rows of plaintexts by rule: the same as their tables, alone, in blocks, and read from files."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hesim
from hesim import ParameterError
from hesim.circuit import plain_rows
from hesim.circuit.circuit import Circuit, PlaintextFamily
from hesim.circuit.plain_rows import LiteralRows, MapRows, MaskRows

PARAMS = hesim.CKKSParams(log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40)


def some_map(seed: int, columns: int = 8, weighted: bool = False) -> dict[str, np.ndarray]:
    """Arrays of a map between 3 results and 2 operands, of 7 rows."""
    rng = np.random.default_rng(seed)
    key = {"out": rng.integers(-1, 3, (3, columns)), "in": rng.integers(-1, 3, (2, columns))}
    part = {side: rng.integers(0, 5, k.shape) for side, k in key.items()}
    return {
        **{f"{side}_key": k.astype(np.int32) for side, k in key.items()},
        **{f"{side}_part": k.astype(np.int32) for side, k in part.items()},
        "out": rng.integers(0, 3, 7),
        "into": rng.integers(0, 2, 7),
        "shift": rng.integers(-columns, 2 * columns, 7),
        "roll": rng.integers(-columns, 2 * columns, 7),
        **({"weight": rng.integers(-1, 20, 9)} if weighted else {}),
    }


def table_of(m: dict[str, np.ndarray]) -> np.ndarray:
    """What the rule says, entry by entry."""
    columns = m["out_key"].shape[1]
    found = np.full((len(m["out"]), columns), -1)
    for r, (o, i) in enumerate(zip(m["out"], m["into"], strict=True)):
        for q in range(columns):
            p = (q - m["roll"][r]) % columns
            to = (p + m["shift"][r]) % columns
            if m["out_key"][o, p] >= 0 and m["out_key"][o, p] == m["in_key"][i, to]:
                entry = m["out_part"][o, p] + m["in_part"][i, to]
                found[r, q] = m["weight"][entry] if "weight" in m else entry
    return found


def agrees(rows, table: np.ndarray) -> None:
    assert (len(rows), rows.columns) == table.shape
    some = np.arange(len(table))[::-2]
    np.testing.assert_array_equal(rows.block(some), table[some])
    for r, line in enumerate(table):
        assert rows.row(r).dtype == np.int32
        np.testing.assert_array_equal(rows.row(r), line)
    for column in range(0, rows.columns, 3):
        np.testing.assert_array_equal(rows.entries_of(some, column), table[some, column])
    np.testing.assert_array_equal(plain_rows.entries(rows), np.unique(table[table >= 0]))
    assert np.all(rows.first <= np.arange(len(table)))
    np.testing.assert_array_equal(table[rows.first], table)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 8]), st.booleans())
def test_a_map_is_its_table(seed, columns, weighted):
    arrays = some_map(seed, columns, weighted)
    rows, table = MapRows(**arrays), table_of(arrays)
    agrees(rows, table)
    agrees(plain_rows.from_arrays("map", rows.arrays()), table)
    np.testing.assert_array_equal(rows.rows_any(), np.any(table >= 0, axis=1))


def test_rows_of_ciphertexts_that_differ_in_their_keys_alone_are_one():
    """Four ciphertexts of other tokens each, in the same places; the last has other places."""
    token = np.repeat(np.arange(4), 2)[None] + np.array([[0], [4], [8], [12]])
    token[3] = token[3, ::-1]
    feature = np.tile(np.arange(2), (4, 4))
    o, shift = (a.reshape(-1) for a in np.meshgrid(np.arange(4), np.arange(2), indexing="ij"))
    rows = MapRows(token, 2 * feature, token, feature, o, o, shift, 0 * o)
    assert rows.first.tolist() == [0, 1, 0, 1, 0, 1, 6, 7]
    crossed = MapRows(
        token,
        2 * feature,
        token,
        feature,
        o[:6],
        np.array([2, 2, 0, 0, 1, 1]),
        shift[:6],
        0 * o[:6],
    )
    assert crossed.first.tolist() == [0, 1, 2, 3, 2, 3]
    moved = MapRows(
        token, feature, token, feature, o[:6], o[:6], shift[:6], np.array([0, 0, 1, 1, 0, 0])
    )
    assert moved.first.tolist() == [0, 1, 2, 3, 0, 1]


def test_masks_that_are_the_same_are_one():
    held = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]], bool)
    assert MaskRows(held).first.tolist() == [0, 1, 0]


def test_entries_below_zero_are_nothing_in_rows_that_a_map_has():
    arrays = some_map(3)
    arrays["in_part"] = np.full_like(arrays["in_part"], -9)
    assert np.any(table_of(arrays) < -1), "some keys agree"
    assert not MapRows(**arrays).rows_any().any()


def test_rows_that_a_map_has_are_found_block_by_block(monkeypatch):
    arrays = some_map(4)
    monkeypatch.setattr(plain_rows, "_BLOCK_CELLS", 16)
    rows, table = MapRows(**arrays), table_of(arrays)
    np.testing.assert_array_equal(rows.rows_any(), np.any(table >= 0, axis=1))
    np.testing.assert_array_equal(np.concatenate(list(plain_rows.blocks(rows))), table)


@given(st.integers(0, 2**32), st.sampled_from([1, 7, 16, 19]))
def test_masks_are_their_table(seed, columns):
    held = np.random.default_rng(seed).random((5, columns)) < 0.5
    rows = MaskRows(held)
    agrees(rows, np.where(held, 0, -1))
    agrees(plain_rows.from_arrays("mask", rows.arrays()), np.where(held, 0, -1))


def test_a_table_is_itself():
    table = np.array([[0, -1, 3], [2, 2, -1]], np.int32)
    agrees(LiteralRows(table), table)
    agrees(plain_rows.from_arrays("table", LiteralRows(table).arrays()), table)


@pytest.mark.parametrize("stride", [0, 5])
@pytest.mark.parametrize("kind", ["map", "mask"])
def test_vectors_are_those_of_the_table(kind, stride):
    arrays = some_map(5)
    rows = MapRows(**arrays) if kind == "map" else MaskRows(arrays["out_key"] > 0)
    sizes = {"stride": stride, "batch": 3, "width": 4, "columns": 8, "weight": 0.5}
    family = PlaintextFamily(0, rows, **sizes)
    table = PlaintextFamily(0, index=rows.block(np.arange(len(rows))), **sizes)
    values = [np.random.default_rng(0).normal(size=40)]
    assert len(family) == len(table) and not family.scalar
    for r in range(len(family)):
        vector = np.asarray(family.vector(r, values)).reshape(8, 4)
        np.testing.assert_array_equal(vector.reshape(-1), table.vector(r, values))
        np.testing.assert_array_equal(vector[:, 3], vector[:, 0])
        for column, element in enumerate(family.row(r)):
            members = element + stride * np.arange(3)
            expected = values[0][members] * 0.5 if element >= 0 else np.zeros(3)
            np.testing.assert_array_equal(vector[column, :3], expected)
    some = np.arange(len(family))[::-1]
    for slot in range(32):
        expected = [np.asarray(family.vector(r, values))[slot] for r in some]
        np.testing.assert_array_equal(family.in_slot(some, slot, values), expected)


@pytest.mark.parametrize("operand", [-1, 0])
def test_numbers_are_those_of_single_rows(operand):
    index = np.array([[3], [-1], [0], [2]], np.int32)
    family = PlaintextFamily(operand, index, 0, 3, 4, 8, 0.5, np.arange(4.0) + 1)
    values, rows = [np.arange(12.0).reshape(3, 4)], np.array([2, 0, 1, 0])
    found = family.numbers(rows, values)
    assert found.tolist() == [family.vector(r, values) for r in rows]
    np.testing.assert_array_equal(family.in_slot(rows, 5, values), found)
    assert found[0] != 0.0 or operand == 0


def with_rows(*rows) -> Circuit:
    """A Circuit with a family of plaintexts for each of these, beside its own."""
    circuit = hesim.compile(hesim.trace(lambda x: x * np.arange(8.0), np.ones(8)), PARAMS)
    more = tuple(PlaintextFamily(-1, r, 0, 1, 1, 8, 1.0, np.arange(30.0)) for r in rows)
    return dataclasses.replace(circuit, packs=(*circuit.packs, *more))


def test_files_hold_the_rule_and_not_its_table(tmp_path):
    columns = 4096
    long = some_map(6, columns)
    many = {**long, **{k: np.tile(long[k], 50) for k in ("out", "into", "shift", "roll")}}
    circuit = with_rows(MapRows(**some_map(7, weighted=True)), MaskRows(np.eye(8, dtype=bool)))
    large = with_rows(MapRows(**many))
    circuit.save(tmp_path / "c.npz")
    large.save(tmp_path / "large.npz")
    loaded = Circuit.load(tmp_path / "c.npz")
    for a, b in zip(circuit.packs, loaded.packs, strict=True):
        assert a.rows.kind == b.rows.kind
        np.testing.assert_array_equal(a.index, b.index)
        np.testing.assert_array_equal(
            a.vector(1 % len(a), [np.arange(8.0)]), b.vector(1 % len(b), [np.arange(8.0)])
        )
    table = 4 * columns * len(many["out"])
    assert (tmp_path / "large.npz").stat().st_size < table / 10
    assert Circuit.load(tmp_path / "large.npz").packs[-1].row(3).shape == (columns,)


def test_files_differ_where_only_a_rule_does(tmp_path):
    arrays = some_map(8)
    other = {**arrays, "roll": arrays["roll"] + 1}
    for name, m in (("a", arrays), ("again", arrays), ("b", other)):
        with_rows(MapRows(**m)).save(tmp_path / name)
    read = {name: (tmp_path / name).read_bytes() for name in ("a", "again", "b")}
    assert read["a"] == read["again"] != read["b"]


def rewritten(path, change) -> None:
    """A Circuit's file with its description and arrays changed."""
    with np.load(path) as data:
        arrays = dict(data)
    meta = json.loads(arrays["meta"].tobytes())
    change(meta, arrays)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def test_files_with_tables_only_are_read(tmp_path):
    path = tmp_path / "c.npz"
    circuit = with_rows()
    circuit.save(path)

    def older(meta, arrays):
        del meta["format"]
        for group in ("packs", "inputs"):
            for k, entry in enumerate(meta[group]):
                arrays[f"{group}{k}"] = arrays.pop(f"{group}{k}_index")
                meta[group][k] = entry[:6]

    rewritten(path, older)
    for a, b in zip(circuit.packs, Circuit.load(path).packs, strict=True):
        np.testing.assert_array_equal(a.index, b.index)


def test_files_of_later_versions_are_refused(tmp_path):
    path = tmp_path / "c.npz"
    with_rows().save(path)
    rewritten(path, lambda meta, _: meta.update(format=99))
    with pytest.raises(ParameterError, match="a later version wrote it: update"):
        Circuit.load(path)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"out": np.full(7, 3)}, "`out` names a ciphertext that is not one of 3"),
        ({"into": np.full(7, -1)}, "`into` names a ciphertext"),
        ({"shift": np.zeros(6)}, "one entry a row each"),
        ({"in_part": np.zeros((2, 7))}, "in_key and in_part"),
        ({"weight": np.zeros(0)}, "weight has no entries"),
        (
            {"in_key": np.zeros((2, 4)), "in_part": np.zeros((2, 4))},
            "results have 8 columns and operands 4",
        ),
    ],
)
def test_maps_that_cannot_be_are_refused(change, match):
    with pytest.raises(ParameterError, match=match):
        MapRows(**{**some_map(1), **change})
