"""Levels, refreshes, the ledger, and Circuits as files."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import approx
from hesim import LevelError, compile, refresh, trace
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.compile import planned
from hesim.circuit.cost import encoding_seconds
from hesim.errors import LayoutError, ParameterError, TraceError
from hesim.params import CKKSParams

X = np.linspace(-0.9, 0.9, 12).reshape(4, 3)
W = np.random.default_rng(0).normal(size=(3, 3)) / 2


def deep(x):
    """Eight products one after another, each with a matrix in between."""
    for _ in range(8):
        x = (x @ W) * x + 0.1
    return x


def test_depth_of_the_ledger_is_the_programs(check, small_params):
    params = small_params(levels=6)
    for fn, depth in ((lambda x: x @ W, 1), (lambda x: (x @ W) ** 2 * x, 3), (lambda x: x**8, 3)):
        circuit = check(fn, X, params=params, refresh_price=math.inf)
        assert circuit.ledger.depth == trace(fn, X).depth == depth
        assert circuit.ledger.refreshes == circuit.ledger.refresh_rounds == 0


def test_work_is_done_as_low_as_it_can_be(check):
    circuit = check(lambda x: x @ W, X, refresh_price=math.inf)
    assert circuit.level[circuit.kind == Kind.INPUT].max() == 1
    assert circuit.level[circuit.outputs[0].ciphers].max() == 0


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_the_ledger_says_what_each_operation_spends(small_params, tmp_path):
    program = trace(deep, X)
    circuit = compile(program, small_params(levels=3))
    ledger, (inputs, *own) = circuit.ledger, circuit.ledger.operations
    assert [op.name for op in own] == [op.name for op in program.ops] and inputs.name == "input"
    for name in ("rotations", "relinearizations", "rescales", "plain_products", "products"):
        assert sum(getattr(op, name) for op in ledger.operations) == getattr(ledger, name) > 0
    assert sum(op.refreshes for op in own) == ledger.refreshes > 0
    assert 0.5 * ledger.seconds < sum(op.seconds for op in ledger.operations) < ledger.seconds
    whole = sum(op.seconds + op.encoding for op in ledger.operations)
    assert ledger.seconds == pytest.approx(whole)
    vectors = circuit.plain_level[~circuit.scalars]
    encoded = sum(encoding_seconds(int(k), circuit.params.log_n) for k in vectors)
    assert ledger.encoding_seconds == pytest.approx(encoded) and encoded > 0.0
    for tap in circuit.taps:
        mine = tap.ciphers[circuit.source[tap.ciphers] == tap.op]
        if len(mine):
            assert own[tap.op].level == circuit.level[mine].min()
            assert 2 ** own[tap.op].scale_bits == pytest.approx(circuit.scale[mine].max())
    text = ledger.table().splitlines()
    assert len(text) == len(ledger.operations) + 1 and "test_plan.py" in text[-1]
    circuit.save(tmp_path / "c.npz")
    assert Circuit.load(tmp_path / "c.npz").ledger == ledger


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_one_plan_serves_all_scales_of_a_ring_and_as_many_levels():
    program = trace(deep, X)
    one, other = (CKKSParams(10, 4, bits, bits + 10, 60, None) for bits in (25, 40))
    plan = planned(program, one)
    for params in (one, other):
        ours, theirs = plan.circuit(params), compile(program, params)
        assert ours.ledger.refreshes > 0
        for name in ("kind", "level", "scale", "arg", "arg2", "plain_scale"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    with pytest.raises(ParameterError, match="plan again"):
        plan.circuit(CKKSParams(10, 5, 25, 35, 60, None))


def test_levels_run_out_where_refreshes_are_forbidden(small_params):
    def fn(x):
        y = x * x
        z = y * y
        return z * z

    line = fn.__code__.co_firstlineno + 1
    program = trace(fn, X)
    with pytest.raises(LevelError) as caught:
        compile(program, small_params(levels=2), refresh_price=math.inf)
    text = str(caught.value)
    assert "needs 3 levels but the parameters have 2" in text
    assert f"mul at {__file__.rsplit('/', 1)[-1]}:{line}" in text.replace(
        str(program.ops[0].source).rsplit(":", 1)[0].rsplit("/", 1)[0] + "/", ""
    )
    assert compile(program, small_params(levels=3), refresh_price=math.inf).ledger.depth == 3
    assert compile(program, small_params(levels=2)).ledger.refreshes > 0


def test_refreshes_asked_for_by_hand_are_kept_even_where_others_are_forbidden(check, small_params):
    params = small_params(levels=2)
    circuit = check(lambda x: refresh(x**4) ** 4, X, params=params, refresh_price=math.inf)
    assert circuit.ledger.refresh_rounds == 1
    assert circuit.ledger.refreshes == 1
    assert circuit.ledger.levels == circuit.program.levels == 2
    assert circuit.ledger.depth == circuit.program.depth == 4


def test_a_bootstrap_is_used_less_often_than_a_cheap_refresh(check, small_params):
    params = small_params(levels=8)
    cheap = check(deep, X, params=params)
    dear = check(deep, X, params=params, refresh_price="bootstrap")
    assert 0 < dear.ledger.refreshes < cheap.ledger.refreshes
    assert dear.ledger.refresh_rounds >= 1
    assert dear.ledger.seconds_bootstrapped < cheap.ledger.seconds_bootstrapped
    assert cheap.ledger.seconds < dear.ledger.seconds


def test_short_chains_are_refreshed_as_often_as_needed(check, small_params):
    for levels in (1, 2, 3):
        circuit = check(deep, X, params=small_params(levels=levels))
        assert circuit.ledger.levels <= levels and circuit.ledger.depth >= circuit.program.depth
        assert circuit.level.max() <= levels


def test_operands_at_different_levels_meet(check, small_params):
    """What is needed late waits: drops, and a product by 1 at the correcting scale."""
    poly = approx.fit("tanh", (-1, 1), degree=15)

    def fn(x):
        return x * poly(x) + (x @ W) * x - poly(x) * 0.5

    for levels in (2, 4, 6):
        check(fn, X, params=small_params(levels=levels))
    circuit = check(fn, X, params=small_params(levels=6), refresh_price=math.inf)
    assert circuit.ledger.drops > 0


def test_prices_are_checked(small_params):
    program = trace(lambda x: x * x, X)
    for price in ("free", -1.0, math.nan):
        with pytest.raises(ValueError, match="refresh_price"):
            compile(program, small_params(), refresh_price=price)
    assert compile(program, small_params(), refresh_price=0.5).ledger.refreshes == 0


def test_layouts_are_checked(small_params):
    program = trace(lambda x: x * x, X)
    for layouts in ([(0, 1), (0,)], [(2,)], [(0, 0)], []):
        with pytest.raises(LayoutError, match="layouts"):
            compile(program, small_params(), batch=False, layouts=layouts)
    with pytest.raises(LayoutError, match="no encrypted"):
        compile(trace(lambda x: x * x, X, encrypted=()), small_params())


def test_a_tensor_larger_than_the_ring(check, small_params):
    params = small_params(log_n=10)
    x = np.random.default_rng(0).normal(size=(3, 700)) * 0.3
    for batch in (True, False):
        check(lambda x: (x * x).sum(1) + x[:, ::-1].sum(), x, params=params, batch=batch)
    check(lambda x: x.reshape(-1)[::-1] * 2.0 + 1.0, x, params=params, batch=False)


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_circuits_as_files(check, tmp_path):
    poly = approx.fit("tanh", (-3, 3), degree=5)

    def fn(x, w, i):
        h = poly(x @ w)
        return refresh(h) * x[:, i], w.sum(), x * 0.0

    circuit = check(fn, X, W, np.array([2, 1, 0]))
    circuit.save(tmp_path / "circuit.npz")
    loaded = Circuit.load(tmp_path / "circuit.npz")
    assert loaded.ledger == circuit.ledger
    assert loaded.params == circuit.params
    for field in dataclasses.fields(Circuit):
        before, after = getattr(circuit, field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after)
            assert before.dtype == after.dtype
        elif field.name in ("packs", "inputs", "outputs", "taps"):
            assert len(before) == len(after)
            for a, b in zip(before, after, strict=True):
                _same_record(a, b)
        elif field.name not in ("program", "publics", "origin"):
            assert before == after
    assert loaded.program is None
    assert loaded.origin == circuit.publics.origin()
    with np.load(tmp_path / "circuit.npz", allow_pickle=False) as data:
        assert all(data[name].dtype != object for name in data.files)


def _same_record(a, b) -> None:
    assert (a is None) == (b is None)
    if a is None:
        return
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y)
        elif field.name == "rows":
            assert x.kind == y.kind
            np.testing.assert_array_equal(a.index, b.index)
        else:
            assert x == y


def test_sources_name_operation_and_line(check):
    def fn(x):
        return (x @ W) * x

    circuit = check(fn, X)
    line = fn.__code__.co_firstlineno + 1
    assert circuit.op_names == ("dot_general", "mul")
    for k in range(2):
        assert f"test_plan.py:{line}" in circuit.op_sources[k]
    described = {circuit.describe(i) for i in range(len(circuit))}
    assert "input" in described
    assert {text.split(" at ")[0] for text in described} == {"input", "dot_general", "mul"}


def test_ledger_is_readable(check):
    text = str(check(lambda x: (x @ W) * x, X).ledger)
    rows = dict(line.rsplit("  ", 1) for line in text.splitlines())
    assert {"depth", "refreshes", "rotations", "seconds"} <= {name.strip() for name in rows}


def test_a_function_that_was_not_traced_is_refused(small_params):
    with pytest.raises(TraceError, match=r"takes a Program .*hesim.trace"):
        compile(deep, small_params(levels=2))  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="not a Program and a str"):
        compile(trace(deep, X), "large")  # type: ignore[arg-type]


def test_no_level_at_all_is_refused_by_name(small_params):
    params = small_params(levels=0)
    with pytest.raises(LevelError, match=r"`?mul`? at .*test_plan\.py.*levels=1"):
        compile(trace(lambda x: x * x, np.ones(3, np.float32)), params)
