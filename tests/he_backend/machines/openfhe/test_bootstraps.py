"""Bootstraps on OpenFHE: their law, what they refuse, and runs in which no client takes part."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import he_backend
import hesim
from he_backend.errors import BackendError, BlobError, CircuitError, ValueRangeError
from he_backend.machines.openfhe.remote import RemoteMachine
from he_backend.refreshed import check_refreshed
from hesim.circuit.circuit import Kind
from hesim.circuit.costs.bootstraps import bootstrap_memory
from hesim.errors import OverBudgetError, ValueOverflowWarning
from hesim.noise.bootstrap import in_slots, law
from hesim.params import CKKSParams


@pytest.fixture(scope="module")
def ring() -> CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(10, 5, 59, 60, 60, security=None, digits=2)


@pytest.fixture(scope="module")
def refresher(ring) -> hesim.Refresher:
    return hesim.openfhe_bootstrap(ring, budget=(2, 2), correction=11)


@pytest.fixture(scope="module")
def machine(ring, refresher, needs_openfhe) -> RemoteMachine:
    own = dataclasses.replace(refresher, slots=ring.slots)
    return RemoteMachine.generate(ring, [1], ring.slots, own)


def bits(errors: np.ndarray) -> float:
    return math.log2(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("size", [1.0, 0.25, 2.0**-6])
def test_errors_are_those_of_the_law(machine, ring, refresher, rng, size):
    chosen = law(str(refresher.error))
    rest, whole, predicted = [], [], []
    for _ in range(3):
        x = rng.uniform(-size, size, ring.slots)
        fresh = machine.bootstrap(machine.encrypt(x, 3, ring.scale(3)), 5)
        assert (fresh.level, fresh.scale, fresh.components) == (5, ring.scale(5), 2)
        error, bent = machine.decrypt(fresh) - x, chosen.deviation(x)
        rest.append(error - bent)
        whole.append(error)
        predicted.append(math.sqrt(chosen.std**2 + np.mean(bent**2)))
    assert bits(np.array(rest)) == pytest.approx(-chosen.bits, abs=0.15)
    assert bits(np.array(whole)) == pytest.approx(math.log2(np.mean(predicted)), abs=0.15)


def test_fewer_slots_are_quieter_as_their_law_says(ring, refresher, rng, needs_openfhe):
    slots = 64
    few = RemoteMachine.generate(ring, [], slots, dataclasses.replace(refresher, slots=slots))
    whole, chosen = law(str(refresher.error)), law(str(in_slots(refresher.error, slots)))
    assert chosen.bits > whole.bits and chosen.sine_bits == whole.sine_bits
    errors = []
    for _ in range(12):
        x = rng.uniform(-1, 1, slots)
        fresh = few.bootstrap(few.encrypt(x, 3, ring.scale(3)), 5)
        errors.append(few.decrypt(fresh) - x - chosen.deviation(x))
    # 768 errors know their std within 0.04 bit.
    assert bits(np.array(errors)) == pytest.approx(-chosen.bits, abs=0.25)


@pytest.mark.parametrize(("slots", "correction"), [(512, 11), (32, 13)])
def test_a_second_iteration_takes_away_what_the_first_errs_by(
    ring, rng, needs_openfhe, slots, correction
):
    twofold = hesim.openfhe_bootstrap(ring, budget=(2, 2), correction=correction, iterations=2)
    own = dataclasses.replace(twofold, slots=slots)
    machine = RemoteMachine.generate(ring, [], slots, own)
    chosen = law(str(in_slots(twofold.error, slots)))
    errors, taken = [], []
    for _ in range(3):
        x = rng.uniform(-1, 1, slots)
        given = machine.encrypt(x, 3, ring.scale(3))
        fresh = machine.bootstrap(given, 5)
        assert (fresh.level, fresh.scale, fresh.components) == (5, ring.scale(5), 2)
        errors.append(machine.decrypt(fresh) - x)
        taken.append(machine.decrypt(given) - x)
    # Both are decrypted, which sees an encryption's error twice.
    fresh_std = np.sqrt(np.mean(np.square(taken)) / 2)
    assert bits(np.array(errors)) <= math.log2(math.hypot(1.5 * chosen.std, fresh_std)) + 0.25
    assert chosen.bits > law(str(twofold.error).removesuffix("_x2")).bits + 13


def test_a_run_of_two_iterations_errs_as_is_predicted(ring, rng, needs_openfhe):
    twofold = hesim.openfhe_bootstrap(ring, budget=(2, 2), iterations=2)
    x = rng.uniform(-1, 1, ring.slots)
    with jax.enable_x64(True):
        program = hesim.trace(lambda x: hesim.refresh(x * x) * x, x)
    circuit = hesim.compile(program, ring, refresher=twofold, interactive=False)
    report = he_backend.run(program, x, circuit=circuit, backend="openfhe")
    (found,) = hesim.certify(circuit, (x,), keys=4, profile="openfhe").outputs
    assert found is not None and found.std < 2.0**-44 and not report.interactive
    assert bits(report.outputs - x**3) == pytest.approx(math.log2(found.std), abs=0.5)


@pytest.mark.slow
def test_errors_of_neighbouring_slots_are_independent(rng, needs_openfhe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ring = CKKSParams(13, 5, 59, 60, 60, security=None, digits=2)
    refresher = hesim.openfhe_bootstrap(ring, budget=(2, 2), digits=4)
    own, chosen = dataclasses.replace(refresher, slots=ring.slots), law(str(refresher.error))
    errors = []
    for _ in range(2):
        machine = RemoteMachine.generate(ring, [], ring.slots, own)
        for _ in range(3):
            x = rng.uniform(-1, 1, ring.slots)
            fresh = machine.bootstrap(machine.encrypt(x, 3, ring.scale(3)), 5)
            errors.append(machine.decrypt(fresh) - x - chosen.deviation(x))
    # As OpenFHE leaves them, the mean over 64 neighbours is off by 1.5 bits, over 256 by 2.4.
    for size in (1, 16, 64, 256):
        means = np.reshape(errors, (-1, size)).mean(axis=1)
        assert bits(means * math.sqrt(size)) == pytest.approx(-chosen.bits, abs=0.5), size


@pytest.mark.parametrize(("above", "level"), [(3, 0), (5, 4), (4, 5)])
def test_it_begins_and_ends_at_any_level_that_it_reaches(machine, ring, rng, above, level):
    x = rng.uniform(-0.1, 0.1, ring.slots)
    fresh = machine.bootstrap(machine.encrypt(x, above, ring.scale(above)), level)
    assert (fresh.level, fresh.scale) == (level, ring.scale(level))
    np.testing.assert_allclose(machine.decrypt(fresh), x, atol=2.0**-26)


def test_what_would_end_the_process_is_refused_before(machine, ring, refresher):
    def given(level: int, scale: float | None = None):
        return machine.encrypt(0.5, level, ring.scale(level) if scale is None else scale)

    with pytest.raises(CircuitError, match="begins at level 3, not at 2"):
        machine.bootstrap(given(2), 1)
    with pytest.raises(CircuitError, match="ends at level 5 at most, not at 6"):
        machine.bootstrap(given(3), 6)
    with pytest.raises(CircuitError, match="canonical scale of level 3"):
        machine.bootstrap(given(3, 2.0**50), 5)
    with pytest.raises(CircuitError, match="2 components"):
        machine.bootstrap(machine.dot([given(3)], [given(3)], [1]), 5)
    with pytest.raises(BackendError, match="not made to bootstrap"):
        plain = RemoteMachine.generate(ring, [], ring.slots)
        plain.bootstrap(plain.encrypt(0.5, 3, ring.scale(3)), 5)
    own = dataclasses.replace(refresher, slots=8)
    few = RemoteMachine.generate(ring, [], 16, own)
    with pytest.raises(CircuitError, match="prepared for 8 slots, not 16"):
        few.bootstrap(few.encrypt(0.5, 3, ring.scale(3)), 5)
    with pytest.raises(BackendError, match="is no bootstrap of OpenFHE's"):
        RemoteMachine.evaluator(ring, 8, bootstrap=hesim.bootstrap("lattigo_40", depth=12))
    odd = dataclasses.replace(refresher, iterations=2, own_levels=refresher.own_levels + 1)
    with pytest.raises(BackendError, match="is no bootstrap of OpenFHE's"):  # by its law
        RemoteMachine.evaluator(ring, 8, bootstrap=odd)


def test_a_chain_that_is_too_short_is_refused(refresher, needs_openfhe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = CKKSParams(10, 3, 59, 60, 60, security=None, digits=2)
    with pytest.raises(BackendError, match="take levels=4 at least"):
        RemoteMachine.evaluator(short, 8, bootstrap=dataclasses.replace(refresher, slots=8))


def deep(x, w):
    for _ in range(20):
        x = (x + w) * (x - w)
    return jnp.roll(x, 1)


@pytest.fixture(scope="module")
def deep_circuit(ring, refresher):
    args = np.linspace(-1, 1, 16), np.linspace(0.2, 0.9, 16)
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = CKKSParams(10, 4, 59, 60, 60, security=None, digits=2)
        program = hesim.trace(deep, *args)
        circuit = hesim.compile(program, short, refresher=refresher, interactive=False)
        return circuit, args, np.asarray(deep(*args))


def test_a_run_asks_its_client_nothing_between_inputs_and_outputs(deep_circuit, needs_openfhe):
    circuit, args, right = deep_circuit
    bootstraps = circuit.ledger.refreshes
    assert bootstraps > 0 and not circuit.refresher.interactive
    stopped, done = [], []

    def watch(progress: he_backend.Progress) -> None:
        client = progress.processes.get("client 0", 0)
        left = progress.tasks_total - progress.tasks_done
        if client and not stopped and progress.tasks_done > 0:
            os.kill(client, signal.SIGSTOP)
            stopped.append(progress.tasks_done)
        elif stopped and not done and left == 1:  # the decryption
            done.append(progress.tasks_done)
            os.kill(client, signal.SIGCONT)

    report = he_backend.run(
        *(circuit.program, *args),
        circuit=circuit,
        backend="openfhe",
        workers=1,
        clients=1,
        progress=watch,
    )
    assert stopped and done and done[0] > stopped[0]
    np.testing.assert_allclose(report.outputs, right, atol=2.0**-14)
    assert not report.interactive and report.refreshes == bootstraps
    assert f"{bootstraps} ciphertexts refreshed by OpenFHE bootstrap" in str(report)


def test_machines_that_do_not_bootstrap_say_which_does(deep_circuit):
    circuit, args, _ = deep_circuit
    with pytest.raises(BackendError, match="backend='openfhe'"):
        he_backend.run(circuit.program, *args, circuit=circuit, backend="pyfhel")


@pytest.mark.parametrize(("size", "raises"), [(0.9, None), (4.0, False), (400.0, True)])
def test_what_a_bootstrap_is_not_made_for_is_said_before_anything_runs(ring, size, raises):
    def squares(x):
        return hesim.refresh(x * x) * x

    refresher = hesim.openfhe_bootstrap(ring, budget=(2, 2), correction=11)
    program = hesim.trace(squares, np.ones(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        circuit = hesim.compile(program, ring, refresher=refresher, interactive=False)
    (i,) = np.flatnonzero(circuit.kind == Kind.REFRESH)
    found = {circuit.operands(int(i))[0]: (-size, 0.5 * size)}
    if raises is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_refreshed(circuit, found)
    elif raises:
        with pytest.raises(ValueRangeError, match=r"slots of up to 400 .*sine is off by"):
            check_refreshed(circuit, found)
    else:
        with pytest.warns(ValueOverflowWarning, match=r"up to 4 and is made for 1.*larger corr"):
            check_refreshed(circuit, found)


def test_keys_take_the_bytes_that_are_predicted(ring, refresher, needs_openfhe, tmp_path):
    own = dataclasses.replace(refresher, slots=ring.slots)
    RemoteMachine.make_keys(ring, [], tmp_path, tmp_path, own)
    names = ("bootstrap-rotation.key", "bootstrap-relin.key")
    written = sum((tmp_path / name).stat().st_size for name in names)
    assert written == pytest.approx(bootstrap_memory(ring, own, ring.slots).keys, rel=0.03)
    assert not (tmp_path / "rotation.key").exists()
    common = (tmp_path / "bootstrap-common.cipher").read_bytes()
    assert len(common) == pytest.approx(ring.ciphertext_bytes(5, 2), rel=0.01)
    (tmp_path / "bootstrap-common.cipher").write_bytes(common[:-8])
    with pytest.raises(BlobError, match="truncated"):
        RemoteMachine.evaluator(ring, ring.slots, bootstrap=own).load_keys(tmp_path, [])
    (tmp_path / "bootstrap-common.cipher").unlink()
    with pytest.raises(BlobError, match=r"bootstrap-common.cipher is missing: make the keys"):
        RemoteMachine.evaluator(ring, ring.slots, bootstrap=own).load_keys(tmp_path, [])


def test_what_does_not_fit_is_refused_before_keys_are_made(
    deep_circuit, needs_openfhe, tmp_path, monkeypatch
):
    circuit, args, _ = deep_circuit
    boots = bootstrap_memory(circuit.params, circuit.refresher, circuit.slots)
    assert circuit.ledger.peak_bytes > boots.total > 0
    assert circuit.ledger.key_bytes >= boots.keys
    monkeypatch.setattr("he_backend.processes.memory.available", lambda: 10**7)
    with pytest.raises(BackendError, match=r"keys and .* GB are free, so no keys were made"):
        he_backend.run(
            *(circuit.program, *args), circuit=circuit, backend="openfhe", run_dir=tmp_path / "run"
        )
    assert not list((tmp_path / "run").rglob("*.key"))
    with pytest.raises(OverBudgetError, match="matrices of bootstraps"):
        hesim.compile(
            circuit.program,
            circuit.params,
            refresher=circuit.refresher,
            interactive=False,
            memory=boots.total,
        )
