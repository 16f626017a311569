"""One vector in the columns of many: matrices beside its copies, and one query of attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hesim.circuit.packing.arrangement import relay
from hesim.circuit.packing.lowering import PackedLowering, lowerings
from hesim.circuit.refresher import KEY_HOLDER
from hesim.trace import trace
from tests.hesim.circuit.conftest import quiet_params
from tests.hesim.circuit.packing.conftest import unlikely
from tests.hesim.circuit.packing.vectors import COUNTED, foretold

rng = np.random.default_rng(0)
X = rng.normal(size=(8, 24))
W, V = rng.normal(size=(2, 24, 40)) / 5
U = rng.normal(size=(40, 24)) / 6
Q, K = rng.normal(size=(2, 24, 24)) / 5


def gated_first_token(x):
    first = x[:1]
    return first + ((first @ W) * (first @ V)) @ U


def pooled(x):
    return ((x[0] @ W) ** 2) @ U[:, :5]


def one_query(x):
    def heads(y):
        return y.reshape(-1, 3, 8).transpose(1, 0, 2)

    scores = jnp.einsum("hid,hjd->hij", heads(x[:1] @ Q), heads(x @ K))
    return jnp.einsum("hij,hjd->hid", scores, heads(x))


def outer(x):
    """A sum over rows times a public vector, as in the gradient of a mean that was taken off."""
    return jnp.tensordot((x @ W[:, :3]).sum(0), V[0], 0) + jnp.tensordot(x[1, :3], U[:, 0], 0)


PROGRAMS = (gated_first_token, pooled, one_query, outer)


@pytest.mark.parametrize("fn", PROGRAMS)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_values(check: Callable[..., list], fn: Callable, seed: int | None):
    assert check(fn, X, seed=seed, finalists=6)


def counted(lowered: PackedLowering) -> tuple[dict[str, int], dict[str, int]]:
    """What a plan says, and what it wrote."""
    said: Counter[str] = Counter()
    copies = set()
    for op, offer, layouts in lowered.plan.steps:
        said.update(foretold(offer.works))
        for k, (x, y) in enumerate(offer.moves(layouts)):
            copy = op.operands[min(k, len(op.operands) - 1)].id, y
            if y is None or copy in copies:
                continue
            copies.add(copy)
            way = relay(x, y)
            assert way is not None
            said.update(foretold(way.works))
    wrote: Counter[str] = Counter()
    for node in lowered.builder.nodes:
        if node.kind in COUNTED:
            many = COUNTED[node.kind] in ("products", "plain products")
            wrote[COUNTED[node.kind]] += len(node.terms) if many else 1
    return dict(said), dict(wrote)


@pytest.mark.parametrize("fn", (gated_first_token, one_query, outer))
def test_counts(fn: Callable[..., Any]):
    params = quiet_params()
    for seed in (None, 1):
        with unlikely(seed, 4):
            for lowered in lowerings(trace(fn, X), params, None, KEY_HOLDER, True):
                said, wrote = counted(lowered)
                assert said == {name: wrote.get(name, 0) for name in said}


def test_a_vector_takes_few_products_for_whole_matrices(check: Callable[..., list]):
    x = rng.normal(size=(32, 24))
    first = check(lambda x: ((x[:1] @ Q) @ K)[:, :10], x)[0]
    assert first.ledger.plain_products < 8 and first.ledger.rotations < 20


def test_a_vector_meets_a_public_one_where_it_is_repeated(check: Callable[..., list]):
    x, p = rng.normal(size=(64, 32)), rng.normal(size=32)
    found = check(lambda x: jnp.tensordot(x.sum(0)[:2], p, 0), x)[0]
    assert found.ledger.plain_products < 12 and found.ledger.rotations < 30
