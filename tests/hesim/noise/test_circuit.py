"""What compiled Circuits add to the noise, operation by operation."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from hesim.certify import certify
from hesim.circuit.compile import compile
from hesim.errors import ParameterError
from hesim.noise import formulas
from hesim.noise.circuit import OperationNoise
from hesim.noise.placement import of_circuit
from hesim.noise.profiles import profile
from hesim.params import CKKSParams
from hesim.predict import predict
from hesim.simulate import TIERS, simulate
from hesim.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")
SEAL = profile("seal")
PARAMS = CKKSParams(14, 6, 40, 50, 60)


def placed(fn, *shapes, encrypted=(0,), **options):
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    program = trace(fn, *args, encrypted=encrypted)
    circuit = compile(program, PARAMS, **options)
    schedule = of_circuit(program, circuit)
    return program, circuit, [schedule[e.index] for e in program.ops]


def rescale_std(level: int) -> float:
    return formulas.value_std(formulas.rescale(SEAL), PARAMS, level, SEAL)


def rotate_std(level: int) -> float:
    return formulas.value_std(formulas.key_switch(PARAMS, level, SEAL), PARAMS, level, SEAL)


def test_a_product_is_one_rescale():
    _, _, (place,) = placed(lambda x, w: x * w, (4, 8), (4, 8), refresh_price=float("inf"))
    assert place.rescaled and place.operand_stds == (0.0, 0.0)
    assert place.added_std == pytest.approx(rescale_std(place.level), rel=1e-3)


def test_constants_and_moves_add_nothing_and_keep_the_gain():
    _, _, places = placed(lambda x: (x * 0.25).T, (4, 8))
    assert [p.gain for p in places] == [0.25, 0.25]
    assert all(p.shared and p.added_std == 0.0 and not p.rescaled for p in places)


def test_a_sum_over_slots_adds_its_rotations():
    _, circuit, (place,) = placed(lambda x: x.sum(0), (64,), layouts=[(0,)], batch=False)
    assert circuit.ledger.rotations == 6
    noise = OperationNoise(circuit, SEAL)
    assert place.added_std == pytest.approx(np.sqrt(noise.result(circuit.taps[0])[0]))
    # Doubling: a rotation of a sum of 2^t terms is added up in all later ones, 1 + 2 + ... + 32.
    assert place.added_std == pytest.approx(np.sqrt(63) * rotate_std(place.level), rel=1e-3)


def test_rotations_before_a_product_count_for_its_operand():
    _, circuit, (place,) = placed(
        lambda x, w: x @ w, (1, 16), (16, 16), layouts=[(0, 1)], batch=False
    )
    assert circuit.ledger.rotations > 0
    assert place.operand_stds is not None
    assert 0 < place.operand_stds[0] <= 1.01 * rotate_std(place.operand_level)


def test_refreshes_are_told_apart():
    def fn(x, w):
        return x * w * w * w

    program = trace(fn, *[jax.ShapeDtypeStruct((4, 8), jnp.float32)] * 2)
    short = CKKSParams(13, 1, 40, 50, 60)
    circuit = compile(program, short)
    schedule = of_circuit(program, circuit)
    refreshed = [schedule[e.index].refreshed_after for e in program.ops]
    assert refreshed == [True, True, False]
    prediction = predict(
        program, short, (np.ones((4, 8)), np.ones((4, 8))), keys=4, schedule=schedule
    )
    assert prediction.ops[-1].std > prediction.ops[0].std


def test_every_operation_of_a_block_has_a_placement():
    gelu = approx.fit("gelu", (-4, 4), degree=7)

    def block(x, w, v):
        h = x @ w
        s = jnp.einsum("bik,bjk->bij", h, h) * 0.1
        return (gelu(s @ h) @ v + x).mean(1)

    program, circuit, places = placed(block, (8, 4, 8), (8, 8), (8, 8))
    assert len(places) == len(program.ops)
    for k, place in enumerate(places):
        assert place.added_std is not None and np.isfinite(place.added_std)
        assert 0 <= place.level <= place.operand_level <= PARAMS.levels
        tap = next((t for t in circuit.taps if t.op == k), None)
        if tap is not None and len(tap.ciphers):
            assert place.level == circuit.level[tap.ciphers].min()


@pytest.mark.slow
@pytest.mark.parametrize("levels", [3, 8])
def test_predicted_errors_are_those_of_an_encrypted_run(levels):
    pytest.importorskip("Pyfhel")
    run = pytest.importorskip("he_backend.run").run
    gelu = approx.fit("gelu", (-4, 4), degree=7)

    def block(x, wq, wk, wo):
        q, k = x @ wq, x @ wk
        s = ((q[:, :, None, :] - k[:, None, :, :]) ** 2).sum(-1) * 0.05
        return gelu((x - jnp.einsum("bij,bjd->bid", s, x) / 4) @ wo).mean(1)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4, 8)).astype(np.float32)
    weights = [(rng.normal(size=(8, 8)) / 4).astype(np.float32) for _ in range(3)]
    params = CKKSParams(13, levels, 40, 50, 60, security=None)
    report = run(trace(block, x, *weights), x, *weights, params=params, compare=True)
    ratios = [op.predicted_std / op.measured_std for op in report.ops if op.measured_std > 0]
    assert len(ratios) == len(report.ops)
    assert max(abs(np.log2(ratios))) < 0.75
    assert abs(np.log2(ratios[-1])) < 0.5


def agreement(fn, args, params, encrypted=(0,), **options) -> np.ndarray:
    """log2 of the training tier's std over the certificate's, for every operation with one."""
    program = trace(fn, *args, encrypted=encrypted)
    circuit = compile(program, params, **options)
    schedule = of_circuit(program, circuit)
    certificate = certify(circuit, args, keys=8)
    predicted = predict(program, params, args, 8, schedule=schedule, tier="train")
    pairs = zip(predicted.ops, certificate.ops, strict=True)
    return np.array([np.log2(p.std / c.std) for p, c in pairs if c.std > 0])


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SHORT = CKKSParams(12, 3, 40, 50, 60, security=None)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("target", ["exp", "tanh"])
@pytest.mark.parametrize("levels", [2, 3, 8])
def test_polynomials_with_refreshes_inside_agree_with_the_certificate(target, levels):
    poly = approx.fit(target, (-8.0, 8.0), degree=15)
    params = CKKSParams(12, levels, 40, 50, 60, security=None)
    x = np.clip(2 * normal(params.slots), -8, 8)
    assert np.all(np.abs(agreement(lambda x: poly(x), (x,), params)) < 0.1)


def test_inputs_masked_and_brought_down_before_a_sum_are_counted():
    x = normal(SHORT.slots // 16, 16)
    found = agreement(lambda x: x - x.mean(-1, keepdims=True), (x,), SHORT)
    assert np.all(np.abs(found) < 0.1)


def test_factors_of_unequal_error_keep_their_own():
    scores, values = 6 * normal(16, 8, 8), normal(16, 8, 8, seed=1)
    w = normal(8, 8, seed=2) / 3

    def attend(s, v, w):
        return jnp.einsum("bij,bjd->bid", s, v @ w)

    assert np.all(np.abs(agreement(attend, (scores, values, w), SHORT, (0, 1))) < 0.15)


def test_rotations_shared_by_two_products_count_for_both():
    x, w, u = normal(16, 8, 16), normal(16, 8, seed=1) / 4, normal(16, 8, seed=2) / 4
    assert np.all(np.abs(agreement(lambda x, w, u: (x @ w, x @ u), (x, w, u), SHORT)) < 0.1)


def test_a_layer_norm_agrees_with_the_certificate():
    inverse = approx.fit("inv_sqrt", (0.1, 4.0), degree=7)

    def norm(x, w):
        h = x @ w
        return h * inverse(jnp.mean(h * h, -1, keepdims=True))

    x, w = normal(16, 8, 16), normal(16, 16, seed=1) / 4
    assert np.all(np.abs(agreement(norm, (x, w), SHORT)) < 0.15)


def test_a_circuit_is_simulated_for_another_batch():
    w = normal(8, 8, seed=1) / 2

    def fn(x, w):
        h = x @ w
        return (h * h).sum(-1)

    program = trace(fn, normal(32, 8), w)
    circuit = compile(program, SHORT)
    x = normal(5, 8)
    found = {}
    for name, given in (("circuit", circuit), ("canonical", None)):
        f = simulate(fn, SHORT, circuit=given)
        keys = jax.random.split(jax.random.key(0), 500)
        with jax.enable_x64(True):
            wide = [a.astype(np.float64) for a in (x, w)]
            runs = jax.vmap(lambda k, f=f, wide=wide: f(k, *wide))(keys)
            found[name] = float(jnp.std(runs - fn(*wide)))
    assert found["circuit"] != found["canonical"]
    assert abs(np.log2(found["circuit"] / found["canonical"])) < 1.5


def test_circuits_of_other_functions_and_parameters_are_refused():
    x = normal(8, 8)
    circuit = compile(trace(lambda x: x * x, x), SHORT)
    with pytest.raises(ParameterError, match="compile the function"):
        simulate(lambda x: x + x, SHORT, circuit=circuit)(jax.random.key(0), x)
    with pytest.raises(ParameterError, match="own params"):
        simulate(lambda x: x * x, PARAMS, circuit=circuit)


def test_a_small_gain_applied_before_a_product_rounds_in_slots():
    x, v = normal(16, 8, 8), normal(16, 8, 8, seed=1)

    def fn(x, v):
        return jnp.einsum("bij,bjd->bid", x / 4096.0, v)

    assert np.all(np.abs(agreement(fn, (x, v), SHORT, (0, 1))) < 0.25)


def test_copies_that_rotations_make_have_their_errors_in_common():
    """|k|^2 - |q|^2 spreads one number over eight tokens; the sum over them shows what they share:
    errors drawn token by token are too small by a bit.
    """
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(64, 1, 4)), rng.normal(size=(64, 8, 4))

    def distances(q, k):
        return ((k * k).sum(-1) - (q * q).sum(-1)).sum(1)

    params = CKKSParams(10, 3, 40, 50, 60, security=None)
    program = trace(distances, q, k, encrypted=(0, 1))
    circuit = compile(program, params)
    certified = certify(circuit, (q, k), keys=48).outputs[0]
    assert certified is not None
    schedule = of_circuit(program, circuit)
    for tier in TIERS:
        found = predict(program, params, (q, k), 24, schedule=schedule, tier=tier).ops[-1]
        assert abs(math.log2(found.std / certified.std)) < 0.2
