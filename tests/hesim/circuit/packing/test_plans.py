"""Programs planned by the search."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import approx
import hesim.circuit.compile as compiling
from hesim.circuit.candidate import Candidate
from hesim.circuit.packing import lowering
from hesim.circuit.refresher import KEY_HOLDER
from hesim.errors import LayoutError
from hesim.trace import trace
from tests.hesim.circuit.conftest import quiet_params

rng = np.random.default_rng(0)
X = rng.normal(size=(8, 16))
W, V = rng.normal(size=(2, 16, 32)) / 4
U = rng.normal(size=(32, 16)) / 6
Q, K, O = rng.normal(size=(3, 16, 16)) / 4


def heads(x):
    return x.reshape(8, 2, 8).transpose(1, 0, 2)


def scores(x):
    q, k = heads(x @ Q), heads(x @ K)
    cross = jnp.einsum("...id,...jd->...ij", q + q, k)
    return cross - (q * q).sum(-1)[..., :, None] - (k * k).sum(-1)[..., None, :]


def attention(x):
    mixed = jnp.einsum("...ij,...jd->...id", 1 + 0.1 * scores(x), heads(x @ O))
    return x + mixed.transpose(1, 0, 2).reshape(8, 16)


@pytest.mark.parametrize("batch", [True, False])
def test_gated_layer(check, batch):
    found = check(lambda x: x + ((x @ W) * (x @ V)) @ U, X, batch=batch)
    assert len(found) >= 2


def test_attention_packs_whole_heads_into_a_ciphertext(check):
    first = check(attention, X)[0]
    assert first.ledger.inputs == 1
    assert first.ledger.products < 60 and first.ledger.rotations < 110


def test_scores_of_a_kernel(check):
    assert check(scores, X)


def test_layer_norm_with_a_polynomial(check):
    inverse = approx.fit("inv_sqrt", (0.2, 5.0), degree=7)

    def normed(x):
        return x * inverse(jnp.mean(x * x, -1, keepdims=True)) @ Q

    assert check(normed, X)


def test_a_plan_that_cannot_be_written_leaves_the_tables(monkeypatch):
    def refused(*args):
        raise LayoutError("too large to write")

    monkeypatch.setattr(compiling, "_WORTH_TABLES", 0)  # the search comes first
    monkeypatch.setattr(lowering, "PackedLowering", refused)
    circuit = compiling.compile(trace(lambda x: x @ W, X), quiet_params())
    assert circuit.ledger.inputs > 0


def test_a_contraction_keeps_the_ciphertexts_of_a_few_sums_alive():
    q = rng.normal(size=(6, 32, 16))
    program = trace(lambda q, k: jnp.einsum("hid,hjd->hij", q, k), q, q, encrypted=(0, 1))
    params = quiet_params(10, 6)  # a head in each ciphertext
    for lowered in lowering.lowerings(program, params, None, KEY_HOLDER, False, most=6):
        circuit = Candidate(lowered, params, None).circuit(params)
        assert circuit.ledger.rotations > 200
        assert circuit.most_alive < 150
