"""One description of a refresh: the planner, the noise, the cost and the ledger read it."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

import hesim
from hesim.circuit.circuit import Circuit, Kind
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.errors import (
    LayoutError,
    LevelError,
    OverBudgetError,
    ParameterError,
    ValueOverflowWarning,
)
from hesim.noise.bootstrap import in_slots, law, log2_overflow
from hesim.params import SECURITY_LIMITS

PARAMS = hesim.CKKSParams(14, 5, 40, 50, 60)
X = np.random.default_rng(0).uniform(-1, 1, 64)


def power(x):
    for _ in range(7):
        x = x * X
    return x


PROGRAM = hesim.trace(power, X, encrypted=(0,))


def refreshes(circuit):
    """(levels below, levels above) of its refreshes."""
    made = np.flatnonzero(circuit.kind == Kind.REFRESH)
    below = circuit.level[circuit.arg[circuit.arg_ptr[made]]]
    return below.tolist(), circuit.level[made].tolist()


def test_the_key_holder_refreshes_from_0_to_any_level():
    circuit = hesim.compile(PROGRAM, PARAMS)
    below, above = refreshes(circuit)
    assert set(below) == {0} and max(above) <= PARAMS.levels
    assert circuit.refresher is KEY_HOLDER and KEY_HOLDER.interactive


def test_a_bootstrap_is_planned_within_its_levels():
    refresher = hesim.bootstrap("lattigo_40", depth=2, min_input_level=1, seconds=3.0)
    circuit = hesim.compile(PROGRAM, PARAMS, refresher=refresher)
    below, above = refreshes(circuit)
    assert below and set(below) == {1} and max(above) <= 3
    price = 3.0 * circuit.ledger.refreshes
    assert circuit.ledger.seconds > price
    assert circuit.ledger.seconds_bootstrapped == pytest.approx(circuit.ledger.seconds)
    capped = dataclasses.replace(refresher, output_level=2)
    below, above = refreshes(hesim.compile(PROGRAM, PARAMS, refresher=capped))
    assert below and max(above) <= 2


def test_a_bootstrap_that_leaves_no_level_is_refused():
    refresher = hesim.bootstrap("lattigo_40", depth=4, min_input_level=1)
    with pytest.raises(LevelError, match="no level in between"):
        hesim.compile(PROGRAM, PARAMS, refresher=refresher)


def test_layouts_keep_to_the_slots_that_it_refreshes():
    narrow = hesim.bootstrap("lattigo_40", slots=8)
    circuit = hesim.compile(PROGRAM, PARAMS, refresher=narrow)
    assert circuit.slots <= 8 < hesim.compile(PROGRAM, PARAMS).slots
    with pytest.raises(LayoutError, match="refreshes 8"):
        hesim.compile(PROGRAM, PARAMS, refresher=narrow, layouts=[(0,)], batch=False)


def test_its_errors_are_those_of_its_law_whatever_predicts_them():
    circuit = hesim.compile(PROGRAM, PARAMS, refresher=hesim.bootstrap("lattigo_30"))
    certified = hesim.certify(circuit, (X,), keys=8)
    assert certified.ops[-1].std > law("lattigo_30").std / 100
    plain = hesim.compile(PROGRAM, PARAMS)
    assert hesim.certify(plain, (X,), keys=2).ops[-1].std < certified.ops[-1].std / 100
    from hesim.noise.placement import of_circuit

    schedule = of_circuit(PROGRAM, circuit)
    for tier in ("predict", "train"):
        found = hesim.predict(
            PROGRAM, PARAMS, (X,), 8, schedule=schedule, tier=tier, jit=False, seed=1
        )
        assert abs(math.log2(found.ops[-1].std / certified.ops[-1].std)) < 0.5


def test_values_beyond_its_range_are_said():
    circuit = hesim.compile(PROGRAM, PARAMS, refresher=hesim.bootstrap("lattigo_40"))
    with pytest.warns(ValueOverflowWarning, match="made for 1"):
        hesim.certify(circuit, (X * 1e2,), keys=1)


def test_it_is_saved_with_the_circuit(tmp_path):
    refresher = hesim.bootstrap("lattigo_40", depth=2, slots=4096)
    hesim.compile(PROGRAM, PARAMS, refresher=refresher).save(tmp_path / "circuit.npz")
    assert Circuit.load(tmp_path / "circuit.npz").refresher == refresher


def test_prices_and_what_cannot_be():
    assert hesim.bootstrap("openfhe").seconds(0, 9, 16) == BOOTSTRAP_SECONDS
    assert KEY_HOLDER.seconds(0, 2, 14) < KEY_HOLDER.seconds(0, 2, 15) < 0.1
    assert KEY_HOLDER.highest(7) == 7
    with pytest.raises(ParameterError, match="lattigo_40"):
        hesim.bootstrap("magic")
    with pytest.raises(ParameterError, match="price"):
        Refresher("odd", interactive=False, price=-1.0)
    odds: list[dict[str, Any]] = [{"depth": 1.5}, {"depth": math.nan}, {"own_levels": 11.5}]
    for odd in [*odds, {"slots": 1.5}]:
        with pytest.raises(ParameterError, match="whole number"):
            Refresher("odd", interactive=False, **odd)


def test_a_machine_that_cannot_bootstrap_refuses():
    he_backend = pytest.importorskip("he_backend")
    circuit = hesim.compile(PROGRAM, PARAMS, refresher=hesim.bootstrap("lattigo_40"))
    report = he_backend.run(PROGRAM, X, circuit=circuit, backend="slots")
    np.testing.assert_allclose(report.outputs, X**8, atol=1e-6)
    assert report.refreshes and not report.interactive and "bootstrap" in str(report)
    with pytest.raises(he_backend.BackendError, match="does not bootstrap"):
        he_backend.run(PROGRAM, X, circuit=circuit, backend="pyfhel")


def openfhe_ring(log_n: int = 11, levels: int = 6, scale: int = 59) -> hesim.CKKSParams:
    with pytest.warns(hesim.params.InsecureParametersWarning):
        return hesim.CKKSParams(log_n, levels, scale, 60, 60, security=None, digits=2)


def test_the_bootstrap_of_openfhe_has_its_levels_and_law():
    params = openfhe_ring()
    for budget, least, top in (((1, 1), 2, 17), ((3, 2), 3, 19), ((4, 4), 5, 20)):
        refresher = hesim.openfhe_bootstrap(params, budget=budget)
        assert refresher.min_input_level == least and refresher.highest(6) == 6
        chain = refresher.chain(params)
        assert (chain.levels, chain.primes[:7]) == (top, params.primes)
    assert not refresher.interactive and refresher.value_range == 1.0
    chosen = law(str(hesim.openfhe_bootstrap(params, correction=11).error))
    assert chosen.on_slots and chosen.sine_bits == 11 and chosen.log_n == 11
    bent = chosen.deviation(np.array([1.0, 0.5]))
    c = 2.0**11 / (2 * np.pi)
    np.testing.assert_allclose(bent, [-1 / (6 * c * c), -1 / (48 * c * c)], rtol=1e-4)
    larger = hesim.openfhe_bootstrap(openfhe_ring(12))
    assert larger.seconds(3, 5, 12) > 2 * hesim.openfhe_bootstrap(params).seconds(3, 5, 11)


def test_fewer_slots_are_cheaper_to_bootstrap_and_plans_know_it():
    params = openfhe_ring()
    refresher = hesim.openfhe_bootstrap(params, budget=(2, 2), seconds=3.0)
    whole = refresher.in_slots(params.slots).seconds(3, 5, 11)
    assert whole == refresher.seconds(3, 5, 11) == 3.0
    few, half = (refresher.in_slots(s).seconds(3, 5, 11) for s in (8, params.slots // 2))
    assert 1.5 < few < half < 3.0
    assert hesim.bootstrap("lattigo_40", seconds=3.0, slots=8).seconds(3, 5, 11) == 3.0
    assert KEY_HOLDER.in_slots(8) is KEY_HOLDER
    for count, each in ((8, few), (params.slots, whole)):
        program = hesim.trace(lambda x: hesim.refresh(x * x) * x, np.linspace(-1, 1, count))
        circuit = hesim.compile(program, params, refresher=refresher, interactive=False)
        assert circuit.slots == count and circuit.refresher == refresher
        refreshed = [op for op in circuit.ledger.operations if op.refreshes]
        assert sum(op.refreshes for op in refreshed) == circuit.ledger.refreshes == 1
        rest = circuit.ledger.seconds - each
        assert 0.0 < rest < 0.3
        assert circuit.ledger.seconds_bootstrapped == pytest.approx(circuit.ledger.seconds)


def test_two_iterations_have_a_level_of_their_own_and_the_price_of_two():
    params = openfhe_ring()
    once = hesim.openfhe_bootstrap(params, budget=(3, 2))
    both = hesim.openfhe_bootstrap(params, budget=(3, 2), iterations=2)
    assert both.own_levels == once.own_levels + 1 and both.transforms == once.transforms == (3, 2)
    assert (both.min_input_level, both.highest(6)) == (once.min_input_level, once.highest(6))
    assert both.chain(params).primes[:7] == params.primes
    ratio = both.seconds(3, 5, 11) / once.seconds(3, 5, 11)
    assert 2.0 < ratio < 2.4
    assert law(str(both.error)).bits > law(str(once.error)).bits + 15
    with pytest.raises(ParameterError, match="iterations=3"):
        hesim.openfhe_bootstrap(params, iterations=3)
    with pytest.raises(ParameterError, match="iterations=0"):
        dataclasses.replace(once, iterations=0)
    secure = hesim.CKKSParams(16, 9, 59, 60, 60, digits=2)
    chain = hesim.openfhe_bootstrap(secure, iterations=2).chain(secure)
    assert (chain.levels, chain.digits) == (23, 5) and chain.log_qp < SECURITY_LIMITS[128][16]


def test_two_iterations_are_planned_with_saved_and_predicted(tmp_path):
    params = openfhe_ring()
    x = np.linspace(-1, 1, 64)

    def cube(x):
        return hesim.refresh(x * x) * x

    program = hesim.trace(cube, x)
    found = {}
    for iterations in (1, 2):
        refresher = hesim.openfhe_bootstrap(params, budget=(2, 2), iterations=iterations)
        circuit = hesim.compile(program, params, refresher=refresher, interactive=False)
        circuit.save(tmp_path / "circuit.npz")
        loaded = Circuit.load(tmp_path / "circuit.npz")
        assert loaded.refresher == refresher and loaded.error_law == circuit.error_law
        std = hesim.certify(circuit, (x,), keys=8, profile="openfhe").ops[-1].std
        with jax.enable_x64(True):
            noisy = hesim.simulate(cube, params, circuit=circuit, profile="openfhe")
            errors = [noisy(jax.random.key(k), x) - x**3 for k in range(8)]
        assert math.log2(np.sqrt(np.mean(np.square(errors))) / std) == pytest.approx(0, abs=0.5)
        found[iterations] = std, circuit.ledger.seconds, circuit.ledger.key_bytes
    assert found[2][0] < 2.0**-15 * found[1][0]
    assert found[2][1] > 1.7 * found[1][1] and found[2][2] > found[1][2]


@pytest.mark.parametrize(
    ("ring", "asked"),
    [
        ((11, 6, 50), {}),
        ((9, 6, 59), {}),
        ((11, 6, 59), {"correction": 30}),
        ((11, 6, 59), {"budget": (0, 2)}),
        ((11, 6, 59), {"budget": (2, 5)}),
        ((11, 6, 59), {"budget": (1.5, 3)}),
    ],
)
def test_a_bootstrap_of_openfhe_that_was_not_measured_is_refused(ring, asked):
    with pytest.raises(ParameterError, match="not measured|two whole numbers"):
        hesim.openfhe_bootstrap(openfhe_ring(*ring), **asked)


def test_a_sine_on_slots_bends_them_whatever_predicts_it():
    params = openfhe_ring()
    refresher = hesim.openfhe_bootstrap(params, budget=(2, 2), correction=9)
    x = np.linspace(-1, 1, 64)

    def cube(x):
        return hesim.refresh(x * x) * x

    program = hesim.trace(cube, x)
    circuit = hesim.compile(program, params, refresher=refresher, interactive=False)
    chosen = law(str(refresher.error))
    expected = np.sqrt(np.mean((chosen.std**2 + chosen.deviation(x * x) ** 2) * x * x))
    certified = hesim.certify(circuit, (x,), keys=8, profile="openfhe")
    assert certified.ops[-1].std == pytest.approx(expected, rel=0.05)
    with jax.enable_x64(True):
        noisy = hesim.simulate(cube, params, circuit=circuit, profile="openfhe")
        errors = [noisy(jax.random.key(k), x) - x**3 for k in range(16)]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(expected, rel=0.05)


def test_its_own_chain_is_as_secure_as_was_asked():
    params = hesim.CKKSParams(16, 9, 59, 60, 60, digits=2)
    chain = hesim.openfhe_bootstrap(params).chain(params)
    assert (chain.security, chain.levels, chain.digits) == (128, 22, 4)
    assert chain.log_qp < SECURITY_LIMITS[128][16]
    more = hesim.CKKSParams(16, 10, 59, 60, 60, digits=2)
    assert hesim.openfhe_bootstrap(more).chain(more).digits == 5
    with pytest.raises(ParameterError, match=r"log2\(QP\)"):
        hesim.openfhe_bootstrap(params, digits=3)
    with pytest.raises(ParameterError, match="take levels=9"):
        most = hesim.CKKSParams(16, 13, 59, 60, 60, digits=2)
        hesim.openfhe_bootstrap(most)
    with pytest.raises(ParameterError, match="take log_n=16"):
        hesim.openfhe_bootstrap(hesim.CKKSParams(14, 3, 59, 60, 60, digits=4))
    with pytest.raises(ParameterError, match="give the parameters digits"):
        hesim.openfhe_bootstrap(hesim.CKKSParams(16, 9, 59, 60, 60))


def test_failures_are_those_of_its_sparse_secret():
    found = law(str(hesim.openfhe_bootstrap(openfhe_ring(12)).error))
    assert found.log2_failure == log2_overflow(32, 16, 2**12)
    assert found.secret_weight is None
    rng = np.random.default_rng(0)
    sums = rng.uniform(-0.5, 0.5, (5, 10**6)).sum(0)
    assert 2.0 ** log2_overflow(4, 1, 1) == pytest.approx(np.mean(abs(sums) > 1), rel=0.02)


def test_a_circuit_errs_by_the_law_of_its_slots():
    params = openfhe_ring()
    refresher = hesim.openfhe_bootstrap(params, budget=(2, 2), correction=9)
    program = hesim.trace(lambda x: hesim.refresh(x * x) * x, np.linspace(-1, 1, 8))
    circuit = hesim.compile(program, params, refresher=refresher, interactive=False)
    assert circuit.slots < params.slots
    assert circuit.error_law == f"openfhe_n11_cf9_s{circuit.slots}"
    assert law(str(circuit.error_law)).bits > law("openfhe_n11_cf9").bits
    assert in_slots("openfhe_n11_cf9", 1024) == "openfhe_n11_cf9" and in_slots(None, 8) is None
    assert in_slots("lattigo_40", 8) == "lattigo_40"
    for name in ("openfhe_n11_cf9_s1024", "openfhe_n11_cf9_s0", "openfhe_n9_cf9_s8"):
        with pytest.raises(ParameterError, match="there is no bootstrap law"):
            law(name)


def test_keys_of_bootstraps_are_not_counted_among_those_of_a_plan():
    params = openfhe_ring()
    program = hesim.trace(lambda x: hesim.refresh(x * x) * x, np.linspace(-1, 1, 8))
    refresher = hesim.openfhe_bootstrap(params)
    with pytest.raises(OverBudgetError, match=r"MB \(1 without a limit\)"):
        hesim.compile(program, params, refresher=refresher, memory=10_000_000)


def test_bootstraps_under_one_key_share_a_part_of_their_errors():
    params = openfhe_ring()
    refresher = hesim.openfhe_bootstrap(params, budget=(2, 2))
    x, y = np.zeros((2, params.slots))

    def combined(x, y):
        return hesim.refresh(x) + hesim.refresh(y), hesim.refresh(x) - hesim.refresh(y)

    program = hesim.trace(combined, x, y, encrypted=(0, 1))
    circuit = hesim.compile(program, params, refresher=refresher, interactive=False, batch=False)
    chosen = law(str(refresher.error))
    assert chosen.common == 0.2
    found = hesim.certify(circuit, (x, y), keys=16, profile="openfhe")
    for output, variance in zip(found.outputs, (2.0 + 2 * 0.2, 2.0 - 2 * 0.2), strict=True):
        assert output is not None
        assert output.std == pytest.approx(chosen.std * np.sqrt(variance), rel=0.03)
    with pytest.raises(ParameterError, match="is a share"):
        dataclasses.replace(chosen, common=1.5)
