"""The noise profile of OpenFHE against OpenFHE, operation by operation."""

from __future__ import annotations

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hesim
from he_backend.local import run_local
from he_backend.machines.openfhe.remote import RemoteMachine
from hesim.noise import formulas
from hesim.noise.profiles import profile
from hesim.params import CKKSParams

KEYS = 4
NAMES = ("sum", "moved", "times plain", "times", "squared thrice")


def operations(x, y, w):
    power = x
    for _ in range(3):
        power = power * power
    return x - y, jnp.roll(x, 1), x * w, x * y, power


def away_from_zero(seed: int, slots: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 1.0, slots) * rng.choice([-1.0, 1.0], slots)


def bits(errors: list[np.ndarray]) -> float:
    return math.log2(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize(("scale", "digits"), [(40, 3), (50, 5)])
def test_each_operation_has_the_noise_of_the_profile(scale, digits, needs_openfhe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = CKKSParams(11, 4, scale, 60, 60, security=None, digits=digits)
        args = tuple(away_from_zero(seed, params.slots) for seed in range(3))
        with jax.enable_x64(True):
            program = hesim.trace(operations, *args, encrypted=(0, 1))
            circuit = hesim.compile(program, params, batch=False)
            right = [np.asarray(v) for v in operations(*map(jnp.asarray, args))]
    certificate = hesim.certify(circuit, args, keys=16, profile="openfhe")
    operands = program.flatten(args)[2:]
    taps = [tap for tap in circuit.outputs if tap is not None]
    ciphers = sorted({int(c) for tap in taps for c in tap.ciphers})
    errors: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    fresh = []
    for _ in range(KEYS):
        machine = RemoteMachine.generate(params, circuit.rotation_steps, circuit.slots)
        vectors, _ = run_local(circuit, machine, list(args[:2]), operands, ciphers)
        for name, tap, exact in zip(NAMES, taps, right, strict=True):
            errors[name].append(tap.read(vectors) - exact)
        fresh.append(machine.decrypt(machine.encrypt(args[0], 2, params.scale(2))) - args[0])
    library = profile("openfhe")
    noise = formulas.value_std(formulas.fresh(params.n, library), params, 2, library)
    seen = math.sqrt(1.0 + library.decryption_variance)
    assert bits(fresh) == pytest.approx(math.log2(seen * noise), abs=0.15)
    for name, predicted in zip(NAMES, certificate.outputs, strict=True):
        assert predicted is not None
        assert bits(errors[name]) == pytest.approx(math.log2(predicted.std), abs=0.15), name


def test_bootstraps_leave_nothing_for_decryption_to_see():
    from hesim.noise.profiles import refreshed_by

    library = profile("openfhe")
    assert refreshed_by(library, None) is library
    found = refreshed_by(library, "openfhe_n11_cf13")
    assert (found.secret_weight, found.decryption_variance) == (None, 0.0)
    assert refreshed_by(library, "openfhe_n11_cf13_x2").decryption_variance == 1.0
    other = refreshed_by(library, "lattigo_40")
    assert (other.secret_weight, other.decryption_variance) == (None, 1.0)
