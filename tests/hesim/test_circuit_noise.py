"""What compiled Circuits add to the noise, operation by operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from hesim import noise as formulas
from hesim.circuit.compile import compile
from hesim.circuit_noise import OperationNoise
from hesim.params import CKKSParams
from hesim.predictions import predict
from hesim.profiles import profile
from hesim.schedule import of_circuit
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
    assert place.added_std == pytest.approx(np.sqrt(noise.result(circuit.taps[0].ciphers)))
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
