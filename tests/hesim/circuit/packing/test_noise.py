"""Errors of operations that one set of instructions makes together."""

from __future__ import annotations

import math

import numpy as np

from hesim import certify, predict, trace
from hesim.circuit.candidate import Candidate
from hesim.circuit.packing.lowering import lowerings
from hesim.circuit.refresher import KEY_HOLDER
from hesim.noise.placement import of_circuit

rng = np.random.default_rng(0)
X = rng.normal(size=(8, 16))
Q, K = rng.normal(size=(2, 16, 16)) / 4


def test_products_by_two_matrices_err_alike_though_one_makes_both(small_params):
    program, params = trace(lambda x: (x @ Q, x @ K), X), small_params(log_n=12, levels=2)
    lowered = next(iter(lowerings(program, params, None, KEY_HOLDER, True)))
    circuit = Candidate(lowered, params, None).circuit(params)
    assert set(circuit.source[circuit.source >= 0].tolist()) == {0}
    schedule = dict(of_circuit(program, circuit))
    one, two = schedule.values()
    assert one.operand_stds and one.operand_stds == two.operand_stds
    assert one.operand_level == two.operand_level == two.level + 1
    predicted = predict(program, params, (X,), 16, schedule=schedule, jit=False)
    certified = certify(circuit, (X,), keys=16)
    for found, wanted in zip(predicted.ops, certified.ops, strict=True):
        assert abs(math.log2(found.std / wanted.std)) < 0.2
