"""`predict`: error per operation against simulation and closed forms."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hesim.errors import ParameterError
from hesim.noise import formulas
from hesim.noise.profiles import profile
from hesim.params import CKKSParams
from hesim.predict import predict
from hesim.trace import trace

#: The module, whose public function has its name.
PREDICT = importlib.import_module("hesim.predict")

PARAMS = CKKSParams(14, 5, 40, 50, 60)
SEAL = profile("seal")


def fn(x, w):
    return {"y": jnp.square(x @ w) * 0.5 + x, "w": w}


def arguments():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(128, 16)), rng.normal(size=(16, 16)) / 4
    return x.astype(np.float32), w.astype(np.float32)


def test_predictions_are_float64_and_leave_the_precision_of_jax_alone():
    args = arguments()
    program = trace(fn, *args)
    prediction = predict(program, PARAMS, args, keys=2)
    assert len(prediction.ops) == len(program.ops)
    assert prediction.exact["y"].dtype == np.float64
    x, w = (a.astype(np.float64) for a in args)
    np.testing.assert_allclose(prediction.exact["y"], 0.5 * (x @ w) ** 2 + x, rtol=1e-13)
    np.testing.assert_array_equal(prediction.outputs["w"], w)
    error = prediction.outputs["y"] - prediction.exact["y"]
    assert 0 < np.std(error) < 2.0**-22
    assert jnp.zeros(1).dtype == jnp.float32


def test_the_first_operation_has_the_closed_form():
    x, w = arguments()
    prediction = predict(trace(fn, x, w), PARAMS, (x, w), keys=16)
    carried = [formulas.fresh(PARAMS.n, SEAL), formulas.key_switch(PARAMS, 5, SEAL)]
    variance = sum(formulas.value_std(c, PARAMS, 5, SEAL) ** 2 for c in carried)
    variance *= float(np.mean(np.sum(w.astype(float) ** 2, 0)))
    variance += formulas.value_std(formulas.rescale(SEAL), PARAMS, 4, SEAL) ** 2
    first = prediction.ops[0]
    assert first.std == pytest.approx(math.sqrt(variance), rel=0.04)
    assert 3.2 < first.q999 / first.std < 5.5
    assert [op.level for op in prediction.ops] == [4, 3, 3, 3]


def test_operations_one_by_one_predict_the_same():
    args = arguments()
    program = trace(fn, *args)
    one, other = (predict(program, PARAMS, args, keys=2, jit=jit) for jit in (True, False))
    for a, b in zip(one.ops, other.ops, strict=True):
        assert a.by_key == pytest.approx(b.by_key, rel=1e-6)
    np.testing.assert_allclose(one.outputs["y"], other.outputs["y"], atol=1e-12)


def test_the_same_seed_gives_the_same_prediction():
    args = arguments()
    program = trace(fn, *args)
    one, two, other = (predict(program, PARAMS, args, keys=2, seed=s) for s in (0, 0, 1))
    assert one.ops == two.ops
    assert one.ops != other.ops


def test_gradients_are_predicted_too():
    x, w = arguments()

    def loss(x, w):
        return jnp.sum(jnp.square(fn(x, w)["y"]))

    program = trace(jax.grad(loss, argnums=1), x[:8], w)
    prediction = predict(program, PARAMS, (x[:8], w), keys=2)
    x64, w64 = jnp.asarray(x[:8]), jnp.asarray(w)
    np.testing.assert_allclose(prediction.exact, jax.grad(loss, argnums=1)(x64, w64), rtol=1e-4)
    assert all(0 < op.std < 2.0**-14 for op in prediction.ops)


def test_the_training_tier_is_predicted_too_and_unknown_ones_are_refused():
    args = arguments()
    program = trace(fn, *args)
    one, two = (predict(program, PARAMS, args, keys=4, tier=t) for t in ("train", "predict"))
    for a, b in zip(one.ops, two.ops, strict=True):
        assert abs(math.log2(a.std / b.std)) < 0.1
    with pytest.raises(ParameterError, match="train, predict"):
        predict(program, PARAMS, args, tier="fast")
    with pytest.raises(ParameterError, match="at least 1"):
        predict(program, PARAMS, args, keys=0)


def test_a_second_prediction_traces_nothing():
    traced = 0

    def counted(x, w):
        nonlocal traced
        traced += 1
        return fn(x, w)

    args = arguments()
    program = trace(counted, *args)
    predict(program, PARAMS, args, keys=1)
    before = PREDICT._compiled.cache_info()
    predict(program, PARAMS, (2 * args[0], args[1]), keys=3, seed=5)
    after = PREDICT._compiled.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    assert traced == 1


@pytest.mark.parametrize("largest, wraps", [(2.0**12, 0.0), (2.0**13, 1.0), (2.0**200, 1.0)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_runaway_values_are_foreseen_to_wrap_around_the_modulus(largest, wraps):
    params = CKKSParams(12, 3, 30, 40, 40, security=None)
    x = np.zeros((2, 8))
    x[0, 0] = largest
    program = trace(lambda x: ((x * x) * (x * x)) * (1.0 / 4096), x)  # 1/4096 costs no level
    prediction = predict(program, params, (x,), keys=2)
    last = prediction.ops[-1]
    room = params.log_q(last.level) - 1 - math.log2(params.scale(last.level))
    slots = 4 * math.log2(largest) - math.log2(params.slots)  # the one slot, among zeros
    assert last.spare_bits == pytest.approx((room - slots,) * 2, abs=0.01)
    assert prediction.overflows == wraps
    assert last.rows == ((0,) if wraps else ())


def test_rows_that_run_away_are_named():
    params = CKKSParams(12, 3, 30, 40, 40, security=None)
    x = np.ones((4, 8))
    x[2] = 2.0**13
    program = trace(lambda x: (x * x) * (x * x), x)
    with pytest.warns(UserWarning, match=r"test_predict\.py.* wrap around.*in rows 2:"):
        predict(program, params, (x,), keys=1)
