"""Operations that only the tables have a rule for: the rest of a Program packs around them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hesim.circuit.circuit import Kind
from hesim.circuit.levels import LevelPlanner
from hesim.circuit.packing import recognition
from hesim.circuit.packing.layout import places
from hesim.circuit.packing.lowering import lowerings
from hesim.circuit.packing.offers import table
from hesim.circuit.refresher import KEY_HOLDER
from hesim.trace import trace
from tests.hesim.circuit.conftest import quiet_params
from tests.hesim.circuit.packing.test_small_cases import normal, thorough
from tests.hesim.circuit.packing.vectors import foretold, random_layout

X, Y = normal(3, 5), normal(3, 5)
KERNEL = jnp.asarray(normal(2, 3, 1, 3))
PLACES = np.array([2, 0, 2])


def added(x):
    return x.at[PLACES].add(x * x)


CASES = {
    "products of rows": (lambda x: jnp.prod(x, 0), (X,), (0,)),
    "a slice at a run-time place": (
        lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 5)) * 2.0 + x[:2],
        (X, np.int32(1)),
        (0,),
    ),
    "two cases by a run-time mask": (
        lambda x, y, m: jnp.where(m, x * x, y) @ np.ones((5, 2)),
        (X, Y, np.tri(3, 5) > 0),
        (0, 1),
    ),
    "additions at places": (added, (X,), (0,)),
    "rows at run-time places": (lambda x, i: (x * x)[i].sum(1), (X, PLACES), (0,)),
}


@pytest.mark.parametrize("name", CASES)
def test_values(check, name, monkeypatch):
    monkeypatch.setattr("hesim.circuit.packing.search.TIERS", (table.OFFERS, table.OPAQUE))
    fn, args, encrypted = CASES[name]
    thorough(check, fn, *args, encrypted=encrypted)


@pytest.mark.parametrize("kind", ["mul", "dot_general", "reduce_sum", "conv_general_dilated"])
def test_counts_are_those_of_what_is_written(kind, monkeypatch):
    """Any rule of the tables may stand in, and costs what it is said to."""
    fn = {
        "mul": lambda x: x * Y,
        "dot_general": lambda x: x @ Y.T,
        "reduce_sum": lambda x: x.sum(1),
        "conv_general_dilated": lambda x: lax.conv_general_dilated(
            x.reshape(1, 3, 5, 1), KERNEL, (1, 2), "SAME", dimension_numbers=NHWC
        ),
    }[kind]
    tiers = ({k: v for k, v in table.OFFERS.items() if k != kind}, table.OPAQUE)
    monkeypatch.setattr("hesim.circuit.packing.search.TIERS", tiers)
    program = trace(fn, X)
    seen = 0
    for lowered in lowerings(program, quiet_params(), None, KEY_HOLDER, False):
        wanted = foretold(w for _, offer, _ in lowered.plan.steps for w in offer.works)
        b = lowered.builder
        results = [n for v in program.outputs for n in lowered.nodes(v)]  # type: ignore
        live = LevelPlanner(b, quiet_params(), results, str, None).live
        shapes = [b.nodes[n] for n in live]
        rotations = sum(n.kind == Kind.ROTATE for n in shapes)
        masks = sum(len(n.terms) for n in shapes if n.kind == Kind.DOT_PLAIN)
        assert (rotations, masks) == (wanted["rotations"], wanted["plain products"])
        seen += 1
    assert seen


NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("seed", range(40))
def test_a_layout_is_recognised_by_its_tables(seed):
    """The found layout has the elements where the tables say, whatever its notation."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(d) for d in rng.choice([1, 2, 3, 4, 6], size=rng.integers(1, 4)))
    layout = random_layout(rng, shape, 64, rolled=False)
    cipher, column = places(layout)
    found = recognition.recognised(cipher, column, 64, 64)
    if found is None:
        return
    read, number = found
    again, where = places(read)
    assert np.array_equal(number[again], cipher) and np.array_equal(where, column)
    assert not read.zeros or not read.padded


def test_most_layouts_are_recognised():
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        layout = random_layout(rng, (4, 3, 2), 64, rolled=False)
        found += recognition.recognised(*places(layout), 64, 64) is not None
    assert found > 30
