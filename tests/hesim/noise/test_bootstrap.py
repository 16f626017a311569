"""Bootstrap laws and the profiles of other libraries, as the simulator and certify read them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
import hesim
from hesim.errors import ParameterError
from hesim.noise import formulas
from hesim.noise.bootstrap import LAWS, in_slots, law, twice
from hesim.noise.placement import of_circuit
from hesim.noise.profiles import PROFILES, profile

PARAMS = hesim.CKKSParams(14, 4, 40, 50, 60)
X = np.random.default_rng(0).uniform(-1, 1, 8192)


def bootstrapping(name):
    return dataclasses.replace(profile("seal"), name="bootstrapping", bootstrap=name)


def refreshed(name, x=X, keys=8):
    with jax.enable_x64(True):
        f = jax.jit(hesim.simulate(hesim.refresh, PARAMS, profile=bootstrapping(name)))
        runs = [f(k, x) for k in jax.random.split(jax.random.key(0), keys)]
        return np.stack(runs) - x


@pytest.mark.parametrize("name", ["lattigo_40", "lattigo_30", "lattigo_dense_45"])
def test_a_refresh_has_the_published_precision(name):
    fresh = formulas.value_std(
        formulas.fresh(PARAMS.n, profile("seal")), PARAMS, 4, profile("seal")
    )
    expected = np.hypot(law(name).std, fresh)
    assert np.std(refreshed(name)) == pytest.approx(expected, rel=0.05)


def test_the_sine_is_left_over():
    error = refreshed("sine_1_slot").mean(0)
    c = 256 / (2 * np.pi)
    # Six standard errors of a mean over eight keys.
    tolerance = 6 * law("sine_1_slot").std / np.sqrt(8)
    np.testing.assert_allclose(error, c * np.sin(X / c) - X, rtol=0, atol=tolerance)
    assert np.max(np.abs(error)) > 5e-5


def test_failures_happen_as_often_as_the_law_says(monkeypatch):
    often = dataclasses.replace(law("lattigo_40"), name="often", log2_failure=-1.0)
    monkeypatch.setitem(LAWS, "often", often)
    sizes = np.std(refreshed("often", keys=64), axis=1)
    assert 16 <= np.sum(sizes > 0.5) <= 48
    assert np.all((sizes > 0.5) | (sizes < 1e-6))


def output_std(circuit, **options):
    (output,) = hesim.certify(circuit, (X,), keys=4, **options).outputs
    assert output is not None
    return output.std


def test_certify_bootstraps_too():
    program = hesim.trace(lambda x: hesim.refresh(x * x) * x, X)
    circuit = hesim.compile(program, PARAMS)
    assert circuit.ledger.refreshes
    quiet = output_std(circuit)
    loud = output_std(circuit, profile=bootstrapping("lattigo_30"))
    assert loud == pytest.approx(law("lattigo_30").std * np.sqrt(np.mean(X**2)), rel=0.1)
    assert quiet < loud / 100


def test_the_sine_acts_on_coefficients(monkeypatch):
    """A constant is one coefficient of its own size; varying values share small ones."""
    quiet = dataclasses.replace(law("sine_1_slot"), name="quiet", bits=60.0)
    monkeypatch.setitem(LAWS, "quiet", quiet)
    program = hesim.trace(lambda x: hesim.refresh(x * x) * x, X)
    circuit = hesim.compile(program, PARAMS)
    plain, bent = {}, {}
    for name, x in (("constant", np.full_like(X, 0.9)), ("varying", X)):
        for found, library in ((plain, "seal"), (bent, bootstrapping("quiet"))):
            (output,) = hesim.certify(circuit, (x,), keys=2, profile=library).outputs
            assert output is not None
            found[name] = output.std
    c = 256 / (2 * np.pi)
    expected = abs(c * np.sin(0.81 / c) - 0.81) * 0.9
    assert bent["constant"] == pytest.approx(expected, rel=1e-3)
    # x² has a mean of 1/3, which is a coefficient; the rest of it is spread over N / 2 others.
    mean = np.mean(X**2)
    expected = abs(c * np.sin(mean / c) - mean) * np.sqrt(np.mean(X**2))
    assert bent["varying"] == pytest.approx(expected, rel=1e-2)
    assert all(bent[name] > 10 * plain[name] for name in bent)


def test_decryption_noise_is_in_the_outputs_only():
    program = hesim.trace(lambda x: x * x, X)
    circuit = hesim.compile(program, PARAMS)
    found = hesim.certify(circuit, (X,), keys=4, profile="openfhe")
    output = output_std(circuit, profile="openfhe")
    assert output == pytest.approx(np.sqrt(2) * found.ops[-1].std)


def test_libraries_differ_where_they_should():
    fresh = {
        n: formulas.slot_std(formulas.fresh(PARAMS.n, p), PARAMS.n, p) for n, p in PROFILES.items()
    }
    assert fresh["lattigo"] == pytest.approx(fresh["seal"])
    assert fresh["openfhe"] > 5 * fresh["seal"]
    digits = {n: formulas.digit_key_switch(PARAMS, 4, p) for n, p in PROFILES.items()}
    assert digits["seal"] / digits["lattigo"] == pytest.approx(4 * 10.5 / 3.2**2)
    for p in PROFILES.values():
        error = hesim.certify(_square(), (X,), profile=p, keys=2).ops[-1].std
        assert 0 < error < 2.0**-18


def _square():
    return hesim.compile(hesim.trace(lambda x: x * x, X), PARAMS)


@pytest.mark.parametrize(("log_n", "correction"), [(11, 9), (11, 13), (16, 13), (16, 16)])
def test_a_second_iteration_takes_away_noise_and_sine(log_n, correction):
    name = f"openfhe_n{log_n}_cf{correction}"
    once, both = law(name), law(twice(name))
    gain = 2.0**both.gain_bits
    # The second is within its range, and bends by no more than it is noisy; no larger gain is.
    for factor, kept in ((1.0, True), (2.0, False)):
        shown = factor * gain * (8 * once.std + abs(once.deviation(1.0)))
        bent = (factor * gain) ** 2 * once.deviation(1.0) ** 4
        assert bool(shown <= 1.0 and bent <= once.std / (factor * gain)) == kept
    rounded = 4.0**log_n / 9 * 4.0**-59
    assert both.std**2 == pytest.approx(once.std**2 / gain**2 + rounded, rel=1e-2)
    assert both.log2_failure == once.log2_failure + 1 and both.sine_bits == once.sine_bits
    x = np.array([1.0, 0.3])
    c = 2.0**correction / (2 * np.pi)
    left = gain * once.deviation(x)
    bent = left**3 / (6 * c * c) / gain
    np.testing.assert_allclose(both.deviation(x), bent, rtol=0.01, atol=2.0**-60)
    few = law(str(in_slots(both.name, 64)))
    assert few.name == f"{name}_x2_s64" and few.gain_bits == both.gain_bits
    assert few.bits > both.bits and few.std**2 > rounded


def test_two_iterations_are_of_openfhe_alone():
    for name in ("lattigo_40", "openfhe_n11_cf9_x2", "openfhe_n11_cf9_s8", "openfhe_n9_cf9"):
        with pytest.raises(ParameterError, match="no law of one iteration|no bootstrap law"):
            twice(name)


def test_unknown_laws_are_refused():
    with pytest.raises(ParameterError, match="lattigo_40"):
        bootstrapping("magic")


TANH = approx.fit("tanh", (-4, 4), degree=15)

DEEP = {
    "a polynomial": lambda x: TANH(3 * x),
    "a power": lambda x: x**8,
    "a product of elements": lambda x: jnp.prod(1.5 * x.reshape(-1, 8), -1),
}


@pytest.mark.parametrize(
    ("name", "law_name"), [*((name, "lattigo_30") for name in DEEP), ("a polynomial", "sine_dense")]
)
@pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")
def test_bootstraps_within_an_operation_have_the_noise_of_their_law(name, law_name):
    short = hesim.CKKSParams(10, 1, 40, 50, 60, security=None)
    library = bootstrapping(law_name)
    x = X[:256]
    program = hesim.trace(DEEP[name], x)
    circuit = hesim.compile(program, short)
    assert circuit.ledger.refreshes
    certified = hesim.certify(circuit, (x,), keys=16, profile=library).ops[-1].std
    assert certified > law(law_name).std / 10
    for tier in ("train", "predict"):
        schedule = of_circuit(program, circuit, library)
        found = hesim.predict(
            program, short, (x,), 16, library, schedule=schedule, tier=tier, jit=False
        )
        assert abs(np.log2(found.ops[-1].std / certified)) < 0.3
    guessed = hesim.predict(program, short, (x,), 16, library, jit=False).ops[-1].std
    assert abs(np.log2(guessed / certified)) < 1.5


@pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")
def test_bootstraps_within_an_operation_fail_and_bend_as_the_law_says(monkeypatch):
    often = dataclasses.replace(law("sine_1_slot"), name="often", bits=60.0, log2_failure=-3.0)
    never = dataclasses.replace(often, name="never", log2_failure=-np.inf)
    for entry in (often, never):
        monkeypatch.setitem(LAWS, entry.name, entry)
    short = hesim.CKKSParams(10, 1, 40, 50, 60, security=None)
    x = np.full(512, 0.9)
    program = hesim.trace(lambda x: x**4, x)
    schedule = of_circuit(program, hesim.compile(program, short))
    found = hesim.predict(program, short, (x,), 64, bootstrapping("often"), schedule=schedule)
    failed = np.array(found.ops[-1].by_key) > 0.1
    assert 2 <= failed.sum() <= 30
    found = hesim.predict(program, short, (x,), 4, bootstrapping("never"), schedule=schedule)
    c = 256 / (2 * np.pi)
    expected = (c * np.sin(0.81 / c)) ** 2 - 0.9**4
    assert found.ops[-1].std == pytest.approx(abs(expected), rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bits": -2000.0}, "bits of 200"),
        ({"bits": 1e9}, "bits of 200"),
        ({"bits": math.nan}, "bits of 200"),
        ({"bits": "20"}, "are numbers"),
        ({"sine_bits": 2000.0}, "bits of 200"),
        ({"gain_bits": math.nan}, "gain_bits=nan"),
        ({"gain_bits": -5}, "gain_bits=-5"),
        ({"gain_bits": 1.5}, "whole number"),
        ({"log2_failure": 1.0}, "probability 1"),
        ({"common": 2.0}, "a share"),
    ],
)
def test_laws_that_no_bootstrap_has_are_refused(changes, said):
    with pytest.raises(ParameterError, match=said):
        dataclasses.replace(law("openfhe_n16_cf13"), **changes)
