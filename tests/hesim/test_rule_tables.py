"""The two tables of rules, for lowering and for noise, have a row for every supported primitive."""

import dataclasses

import numpy as np
import pytest
from jax.extend import core
from jax.interpreters import mlir

import hesim
from he_backend import run
from hesim.circuit.batching import rules as batch_rules
from hesim.circuit.gains import meeting, scales_left, stays_pending
from hesim.errors import HesimError, UnknownNoiseError
from hesim.noise import rules
from hesim.noise.placement import canonical, of_circuit
from hesim.noise.rules import RULES as NOISE
from hesim.primitives import PRIMITIVES, Primitive


def test_tables_are_total_over_the_supported_primitives():
    assert set(NOISE) == set(PRIMITIVES)


def _toy() -> core.Primitive:
    """A primitive of a test's own: toy(x) = -2 x."""
    toy = core.Primitive("toy")
    toy.def_abstract_eval(lambda x: x)
    toy.def_impl(lambda x: -2.0 * x)
    mlir.register_lowering(toy, mlir.lower_fun(lambda x: -2.0 * x, multiple_results=False))
    return toy


def test_a_new_operation_is_a_row_in_each_of_two_tables(monkeypatch):
    """Then it is traced, counted, batched, compiled, run, predicted and certified."""
    toy = _toy()
    x = np.random.default_rng(0).uniform(-1, 1, (8, 4))
    params = hesim.CKKSParams(14, 3, 40, 50, 60)
    fn = lambda x: toy.bind(x * x) + x
    with pytest.raises(hesim.NotHomomorphicError, match="`toy`"):
        hesim.trace(fn, x)
    row = Primitive(
        lower=lambda ctx, eqn: [ctx.times(eqn.outputs[0], ctx.tensor(eqn.inputs[0]), -2.0)],
        batch=batch_rules.elementwise,
    )
    monkeypatch.setitem(PRIMITIVES, "toy", row)
    monkeypatch.setitem(NOISE, "toy", rules.NoiseRule(lambda op, args: op.bind(args)))
    program = hesim.trace(fn, x)
    assert program.depth == 1
    report = run(program, x, params=params, backend="slots", compare=True)
    np.testing.assert_allclose(report.outputs, -2.0 * x * x + x, atol=1e-9)
    assert [op.name for op in report.ops] == ["mul", "toy", "add"]
    circuit = hesim.compile(program, params)
    assert circuit.outputs[0] is not None and circuit.outputs[0].batch_axis == 0
    predicted = hesim.predict(program, params, (x,), keys=1).ops[1]
    certified = hesim.certify(circuit, (x,)).ops[1]
    assert certified.name == "toy"
    assert 0.5 < predicted.std / certified.std < 2.0


def test_a_primitive_without_a_row_is_an_error(monkeypatch):
    x = np.ones(4)
    program = hesim.trace(lambda x: x[::-1], x)
    monkeypatch.delitem(rules.RULES, "rev")
    with pytest.raises(UnknownNoiseError, match="`rev`"):
        hesim.predict(program, hesim.CKKSParams(13, 2, 40, 50, 60), (x,), keys=1)
    assert issubclass(UnknownNoiseError, (HesimError, LookupError))


def test_gains_meet_by_whole_factors_or_by_a_level():
    assert meeting(0.5, 1.0) == ((1, 2), 0.5)
    assert meeting(1.0, -0.5) == ((-2, 1), -0.5)
    assert meeting(1.0, 3.0) is None and not scales_left(1.0, 3.0)
    assert scales_left(1.0, 9.0) and scales_left(1.0, 3.0, fewer=True)
    assert stays_pending(2.0**-7) and not stays_pending(200.0)


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0, 1 / 3.0, 20.0, 1 / 200.0, 300.0])
def test_the_canonical_schedule_applies_gains_where_the_compiler_does(factor):
    """By a sum of unequal gains, and by a product of one that is far from 1."""
    x = np.random.default_rng(0).uniform(-1, 1, (8, 4))
    params = hesim.CKKSParams(14, 4, 30, 50, 60)

    def fn(x):
        return x * factor + x, (x * factor) * x

    program = hesim.trace(fn, x)
    compiled = of_circuit(program, hesim.compile(program, params, refresh_price=float("inf")))
    guessed = canonical(program, params)
    for equation in program.ops:
        one, two = guessed[equation.index], compiled[equation.index]
        assert one.gain == pytest.approx(two.gain), dataclasses.asdict(two)
