"""Canonical schedules: levels, refreshes, rotations and drops on tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from hesim.noise.placement import canonical
from hesim.params import CKKSParams
from hesim.refresh import refresh
from hesim.trace import trace

PARAMS = CKKSParams(14, 4, 40, 50, 60)
X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def placements(fn, *args, params=PARAMS, encrypted=(0,)):
    program = trace(fn, *args, encrypted=encrypted)
    schedule = canonical(program, params)
    return [(e.name, schedule[e.index]) for e in program.ops]


def test_one_level_for_each_multiplication():
    ops = dict(placements(lambda x, w: jnp.square(x @ w) + 1.0, X, W))
    assert [ops[name].level for name in ("dot_general", "square", "add")] == [3, 2, 2]
    assert ops["dot_general"].rotated and ops["dot_general"].rescaled
    assert not ops["add"].rescaled and not ops["add"].rotated


def test_constants_are_free_and_public_arguments_are_not():
    ops = placements(lambda x: (x * 0.125) / 3.0, X)
    assert all(p.level == 4 and not p.rescaled for _, p in ops)
    ((_, place),) = placements(lambda x, w: x * w, X, X)
    assert place.level == 3 and place.rescaled
    mask = np.eye(4, 8, dtype=np.float32)
    ((_, place),) = placements(lambda x: x * mask, X)
    assert place.rescaled


def test_polynomials_take_their_depth():
    poly = approx.fit("gelu", (-4, 4), degree=7)
    ((_, place),) = placements(lambda x: poly(x), X)
    assert place.level == 4 - poly.depth


def test_exhausted_operands_are_refreshed_once():
    def fn(x, w):
        y = x
        for _ in range(4):
            y = y * w
        return y * w + y * w * w

    ops = placements(fn, X, X)
    refreshed = [i for i, (_, p) in enumerate(ops) if p.refreshed]
    assert len(refreshed) == 1
    assert ops[refreshed[0]][1].level == PARAMS.levels - 1


def test_operands_of_unequal_levels_meet_at_the_lower_one():
    ops = placements(lambda x, w: x + x * w * w, X, X)
    name, place = ops[-1]
    assert name == "add"
    assert place.operand_level == place.level == 2
    assert len(place.lowered) == 1


def test_refresh_by_hand_gives_all_levels_back():
    ops = placements(lambda x, w: refresh(x * w) * w, X, X)
    assert [p.level for _, p in ops] == [3, 4, 3]


@pytest.mark.parametrize(
    ("shape", "rotated"), [((4, 1), False), ((1, 4), True)], ids=["outer", "inner"]
)
def test_only_sums_over_several_positions_rotate(shape, rotated):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    ops = placements(lambda x: jnp.sum(x, axis=1), x)
    assert any(p.rotated for _, p in ops) == rotated
