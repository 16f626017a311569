"""What the machine on OpenFHE does that others do not have to."""

from __future__ import annotations

import gc
import os
import signal
import subprocess

import numpy as np
import pytest

from he_backend.errors import (
    BackendError,
    BlobError,
    CircuitError,
    ProtocolError,
    ValueRangeError,
)
from he_backend.machines.openfhe.remote import RemoteMachine
from he_backend.machines.openfhe.values import Remote, packed, unpacked
from hesim.params import CKKSParams, InsecureParametersWarning


def test_parameters_without_digits_are_refused(params, needs_openfhe):
    with pytest.raises(BackendError, match="give the parameters digits=3"):
        RemoteMachine.evaluator(params, 32)


# Largest digits of 56 and 57 bits, of 116 and 117, of 176 and 177: OpenFHE keeps four bits spare.
@pytest.mark.parametrize(
    ("ring", "specials"),
    [
        ((4, 45, 56, 5), 1),
        ((4, 45, 57, 5), 2),
        ((5, 57, 59, 3), 2),
        ((5, 58, 59, 3), 3),
        ((8, 58, 59, 3), 3),
        ((8, 58, 60, 3), 4),
    ],
)
def test_keys_have_the_special_primes_of_the_parameters(ring, specials, tmp_path, needs_openfhe):
    levels, scale, first, digits = ring
    with pytest.warns(InsecureParametersWarning):
        params = CKKSParams(10, levels, scale, first, 60, security=None, digits=digits)
    assert len(params.moduli) - len(params.primes) == specials
    RemoteMachine.make_keys(params, [1], tmp_path, tmp_path)  # or is refused
    one = 16 * params.n * digits * len(params.moduli)
    assert one < (tmp_path / "relin.key").stat().st_size < 1.02 * one


def test_keys_of_other_special_primes_are_refused(tmp_path, needs_openfhe):
    wrong = """
import pathlib, sys, warnings
from he_backend.machines.openfhe import files
from he_backend.machines.openfhe.machine import NativeMachine
from hesim.params import CKKSParams, InsecureParametersWarning

warnings.simplefilter("ignore")
made, said = (CKKSParams(10, n, 40, 50, 60, security=None, digits=3) for n in (2, 5))
tag = NativeMachine.generate(made)._secret.GetKeyTag()
files.write_relinearization(pathlib.Path(sys.argv[1]), tag, said)
"""
    call = [needs_openfhe, "-c", wrong, str(tmp_path / "relin.key")]
    ended = subprocess.run(call, check=False, capture_output=True, text=True)
    assert "BackendError: OpenFHE's keys have 4 primes where the parameters have 8" in ended.stderr


def test_a_process_that_dies_is_an_error_of_the_call(digit_params, needs_openfhe):
    machine = RemoteMachine.evaluator(digit_params, 32)
    os.kill(machine.process.pid, signal.SIGKILL)
    with pytest.raises(BackendError, match=r"ended in 'cipher_size' \(signal 9\)"):
        machine.cipher_size(2, 1)


def test_the_process_ends_with_its_machine(digit_params, needs_openfhe):
    machine = RemoteMachine.evaluator(digit_params, 32)
    process = machine.process
    assert process.poll() is None
    del machine
    gc.collect()
    assert process.poll() == 0


@pytest.mark.parametrize("components", [2, 3])
def test_bytes_have_the_size_that_is_told_whatever_they_hold(openfhe, rng, components):
    for level in (0, 2):
        a = openfhe.encrypt(rng.uniform(-1, 1, 32), level, openfhe.params.scale(level) ** 0.5)
        if components == 3:
            a = openfhe.dot([a], [a], [1])
        blob = openfhe.to_bytes(a)
        assert len(blob) == openfhe.cipher_size(components, level)
        back = openfhe.from_bytes(blob, level, a.scale, components)
        assert openfhe.to_bytes(back) == blob
        np.testing.assert_allclose(openfhe.decrypt(back), openfhe.decrypt(a), atol=0.15)


def test_foreign_bytes_do_not_reach_the_library(openfhe, rng):
    scale = openfhe.params.scale(1)
    blob = openfhe.to_bytes(openfhe.encrypt(rng.uniform(-1, 1, 32), 1, scale))
    large = bytearray(blob)
    large[-8:] = b"\xff" * 8
    with pytest.raises(BlobError, match="residues that no reduction leaves"):
        openfhe.from_bytes(bytes(large), 1, scale)
    for wrong in (blob[:-1], blob + b"0", b"x" + blob[1:], b""):
        with pytest.raises(BlobError, match="not the ciphertext that was announced"):
            openfhe.from_bytes(wrong, 1, scale)
    with pytest.raises(BlobError):
        openfhe.from_bytes(blob, 0, openfhe.params.scale(0))
    with pytest.raises(BlobError):
        openfhe.from_bytes(blob, 1, 1.5 * scale)


def test_what_cancels_leaves_as_an_encryption(openfhe):
    a = openfhe.encrypt(0.5, 1, openfhe.params.scale(1))
    nothing = openfhe.to_bytes(openfhe.add([a, a], [1, -1]))
    residues = np.frombuffer(nothing[-openfhe.params.ciphertext_bytes(1) :], np.uint64)
    assert np.all(np.std(residues.reshape(2, 2, -1).astype(float), axis=-1) > 2.0**35)
    back = openfhe.from_bytes(nothing, 1, a.scale)
    np.testing.assert_allclose(openfhe.decrypt(back), 0.0, atol=1e-6)


def test_scales_are_exact_at_any_power(openfhe, rng):
    x, params = rng.uniform(-1, 1, 32), openfhe.params
    for bits in (20.0, 33.7, 40.0, 59.9, 80.0, 100.3):
        a = openfhe.encrypt(x, 3, 2.0**bits)
        np.testing.assert_allclose(openfhe.decrypt(a), x, atol=2.0 ** (16 - min(bits, 40)))
    scale = 2.0**35.3
    a = openfhe.encrypt(x, 3, params.scale(3))
    for weight in (0.37, rng.uniform(-1, 1, 32)):
        product = openfhe.rescale(openfhe.dot_plain([a], [openfhe.encode(weight, 3, scale)]))
        assert product.scale == pytest.approx(a.scale * scale / params.primes[3], rel=1e-12)
        np.testing.assert_allclose(openfhe.decrypt(product), weight * x, atol=2.0**-14)


def test_a_product_can_be_multiplied_again_before_it_is_rescaled(openfhe, rng):
    x, y, w = rng.uniform(-1, 1, (3, 32))
    a, b = (openfhe.encrypt(v, 3, openfhe.params.scale(3)) for v in (x, y))
    product = openfhe.dot([a], [b], [1])
    masked = openfhe.dot_plain([product], [openfhe.encode(w, 3, openfhe.params.scale(3))])
    twice = openfhe.rescale(openfhe.rescale(openfhe.relinearize(masked)))
    assert (twice.level, twice.components) == (1, 2)
    np.testing.assert_allclose(openfhe.decrypt(twice), x * y * w, atol=2.0**-20)


def test_what_is_no_encryption_is_said_to_hold_no_numbers(openfhe):
    blob = bytearray(openfhe.to_bytes(openfhe.encrypt(0.5, 1, openfhe.params.scale(1))))
    rng = np.random.default_rng(1)
    body = openfhe.params.ciphertext_bytes(1)
    blob[-body:] = rng.integers(0, 2**40 - 2**20, body // 8, np.uint64).tobytes()
    wrong = openfhe.from_bytes(bytes(blob), 1, openfhe.params.scale(1))
    with pytest.raises(ValueRangeError, match="holds no numbers"):
        openfhe.decrypt(wrong)


def test_only_who_has_a_key_uses_it(digit_params, needs_openfhe, tmp_path):
    RemoteMachine.make_keys(digit_params, [1], tmp_path, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("public.key", "relin.key", "rotation.key", "secret.key")
    }
    server = RemoteMachine.evaluator(digit_params, 32)
    with pytest.raises(BackendError, match="no public key"):
        server.encrypt(0.5, 1, digit_params.scale(1))
    server.load_keys(tmp_path, [1])
    a = server.encrypt(0.5, 1, digit_params.scale(1))
    with pytest.raises(BackendError, match="only the client decrypts"):
        server.decrypt(a)
    (tmp_path / "relin.key").write_bytes(b"no key")
    with pytest.raises(BlobError, match=r"relin\.key is malformed"):
        RemoteMachine.evaluator(digit_params, 32).load_keys(tmp_path, [])


def test_keys_of_another_owner_are_refused(digit_params, needs_openfhe, tmp_path):
    for call in (RemoteMachine.key_sizes, RemoteMachine.check_keys):
        with pytest.raises(BackendError, match="between two owners"):
            call(digit_params, [1], *([tmp_path] if call == RemoteMachine.check_keys else []))


def test_impossible_steps_are_refused(digit_params, needs_openfhe):
    with pytest.raises(CircuitError, match="not between 1 and 1023"):
        RemoteMachine.generate(digit_params, [5000])


def test_arguments_and_results_cross_as_they_are(digit_params, tmp_path):
    given = [
        *(None, True, 3, "text", 0.1, float("nan"), -float("inf"), b"\x00\xff", tmp_path),
        *([1, [2.5]], digit_params, np.arange(6.0).reshape(2, 3), Remote(7, 2, 0.3, 3, True, 9)),
    ]
    blobs: list[bytes] = []
    found = unpacked(packed(given, blobs), blobs, lambda remote: remote)
    for a, b in zip(given, found, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif isinstance(a, Remote):
            assert vars(a) == vars(b)
        else:
            assert a == b or (a != a and b != b)
        assert type(a) is type(b)
    assert isinstance(found[10], CKKSParams)
    with pytest.raises(ProtocolError, match="set does not cross"):
        packed({1}, [])


def test_rotations_of_one_ciphertext_share_its_digits_and_those_of_others_do_not(openfhe, rng):
    x, y = rng.uniform(-1, 1, (2, 32))
    a, b = (openfhe.encrypt(v, 3, openfhe.params.scale(3)) for v in (x, y))
    for cipher, values, step in ((a, x, 1), (a, x, 2), (a, x, 5), (b, y, 2), (b, y, 1), (a, x, 2)):
        found = openfhe.decrypt(openfhe.rotate(cipher, step))
        np.testing.assert_allclose(found, np.roll(values, -step), atol=2.0**-20)
    low = openfhe.drop(a, 1)
    for step in (1, 5, 5):
        found = openfhe.decrypt(openfhe.rotate(low, step))
        np.testing.assert_allclose(found, np.roll(x, -step), atol=2.0**-20)
