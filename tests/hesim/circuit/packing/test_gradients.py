"""Plans of gradients: low-rank products, sums over tokens, sheared matrices summed and reused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hesim.circuit.packing.arrangement import straight
from hesim.circuit.packing.inputs import factors, input_layouts, meeting, members_lowest
from hesim.circuit.packing.layout import REPLICATED, Coordinate, Layout, Roll
from hesim.circuit.packing.offers.movement import reshaped
from hesim.trace import trace

rng = np.random.default_rng(0)
TOKENS, HIDDEN, HEADS, RANK = 8, 16, 2, 2
X, UPSTREAM = rng.normal(size=(2, TOKENS, HIDDEN)) / 2
Q, K, V = rng.normal(size=(3, HIDDEN, HIDDEN)) / 4
ADAPTERS = [
    {"a": rng.normal(size=(HIDDEN, RANK)) / 4, "b": rng.normal(size=(RANK, HIDDEN)) / 4}
    for _ in range(3)
]


def heads(x):
    return x.reshape(TOKENS, HEADS, -1).transpose(1, 0, 2)


def adapted(x, w, pair):
    return heads(x @ w + (x @ pair["a"]) @ pair["b"])


def attention(adapters, x):
    q, k, v = (adapted(x, w, pair) for w, pair in zip((Q, K, V), adapters, strict=True))
    near = jnp.einsum("hid,hjd->hij", q + q, k)
    score = near - (q * q).sum(-1)[..., :, None] - (k * k).sum(-1)[..., None, :]
    mixed = jnp.einsum("hij,hjd->hid", 1 + 0.1 * score * score, v)
    return mixed.transpose(1, 0, 2).reshape(TOKENS, HIDDEN)


def loss(adapters, x):
    return (attention(adapters, x) * UPSTREAM).sum()


def test_gradient_by_adapters_of_attention(check):
    forward = check(attention, ADAPTERS, X, encrypted=(0, 1), finalists=1)[0].ledger
    whole = check(jax.grad(loss), ADAPTERS, X, encrypted=(0, 1), finalists=1)[0].ledger
    assert whole.products < 4 * forward.products
    assert whole.rotations < 4 * forward.rotations


def test_products_of_low_rank_take_a_rotate_and_sum_a_rank(check):
    def product(pair, x):
        return heads(x @ Q + (x @ pair["a"]) @ pair["b"])

    def without(x):
        return heads(x @ Q)

    found = check(product, ADAPTERS[0], X, encrypted=(0, 1))
    with_rank = min((c.ledger for c in found), key=lambda ledger: ledger.rotations)
    alone = check(without, X, finalists=1)[0].ledger
    assert with_rank.rotations - alone.rotations <= RANK * 4
    assert with_rank.products == 2 * RANK


@pytest.mark.parametrize("axis", [1, 2])
def test_rows_and_columns_of_scores_are_summed_in_few_rotations(check, axis):
    def product(x):
        return jnp.einsum("hid,hjd->hij", heads(x), heads(x))

    def summed(x):
        return product(x).sum(axis)

    alone = check(product, X, finalists=1)[0].ledger
    both = check(summed, X, finalists=1)[0].ledger
    assert both.rotations - alone.rotations <= 2 * TOKENS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("axis", [1, 2])
def test_rows_and_columns_of_scores_are_summed_however_they_lie(check, axis, seed):
    def summed(x):
        return jnp.einsum("hid,hjd->hij", heads(x), heads(x)).sum(axis)

    assert check(summed, X, finalists=8, seed=seed)


def test_members_of_a_batch_have_the_lowest_columns():
    found = members_lowest(list(input_layouts((64, 16, 32), {}, 4096, 1000)))
    assert len(found) > 3
    assert all(x.slots[0] == Coordinate(0, 64, 1) or 0 not in x.along_slots for x in found)
    few = list(input_layouts((4, 16, 32), {}, 512, 1000))
    assert members_lowest(few) == few


def test_a_digit_below_others_may_have_a_part_on_ciphertexts():
    found = {str(x) for x in input_layouts((64, 16, 32), {}, 4096, 1000)}
    assert {"[c8/4 | c4 b16 a64]", "[c8/4 | b16 c4 a64]"} <= found


def test_a_value_that_was_brought_somewhere_is_not_paid_for_again(check):
    def twice(x):
        k = heads(x)
        first = jnp.einsum("hid,hjd->hij", heads(x @ Q), k)
        second = jnp.einsum("hid,hjd->hij", heads(x @ V), k)
        return first * second

    def once(x):
        return jnp.einsum("hid,hjd->hij", heads(x @ Q), heads(x))

    two, one = check(twice, X, finalists=1)[0].ledger, check(once, X, finalists=1)[0].ledger
    assert two.rotations < 2 * one.rotations


def test_splits_are_followed_through_encrypted_contractions():
    program = trace(
        lambda pair, x: heads((x @ pair["a"]) @ pair["b"]), ADAPTERS[0], X, encrypted=(0, 1)
    )
    found = factors(program, {}, lambda v, a: a)
    b = next(v for v in program.inputs if v.shape == (RANK, HIDDEN))
    assert found[b.id, 1] == (HIDDEN // HEADS, HEADS)


def test_a_fresh_tensor_meets_another_that_lacks_its_axes():
    # x: tokens (axis 0) on columns, repeated above; the tensor has axes 1 and 2.
    model = Layout(
        (8, 2, 16), (Coordinate(0, 8, 1), Coordinate(REPLICATED, 16)), (Coordinate(1, 2, 1),)
    )
    found = list(meeting(model, [Coordinate(2, 4, 1), Coordinate(2, 4, 4)], (1, 2, 16)))
    assert {str(x) for x in found} >= {"[b2 | c16 *8]", "[b2 | c4 c4/4 *8]"}
    assert all(x.pieces(1) == [Coordinate(1, 2, 1)] for x in found)


def test_an_axis_that_others_are_rolled_by_is_merged_with_a_whole_one():
    rolled = Layout(
        (8, 2, 8),
        (Coordinate(0, 8, 1), Coordinate(1, 2, 1), Coordinate(2, 8, 1)),
        (),
        (Roll(0, 2, 1, 1),),
    )
    merged = reshaped(rolled, (8, 16))
    assert merged is not None and merged.rolls == (Roll(0, 1, 1, 1),)
    plain = straight(rolled)
    assert plain is not None and reshaped(plain, (8, 16)) == merged._replace(rolls=())
