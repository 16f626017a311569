"""Both machines do the same, and refuse the same."""

from __future__ import annotations

import numpy as np
import pytest

from he_backend.errors import (
    BackendError,
    BlobError,
    CircuitError,
    EncodeError,
    MissingRotationKey,
    ValueRangeError,
)
from he_backend.machines.protocol import Machine
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.machines.slots import SlotsMachine

TOLERANCE = 2.0**-20


def fresh(machine, rng, level=3, count=1):
    values = [rng.uniform(-1, 1, machine.slots) for _ in range(count)]
    scale = machine.params.scale(level)
    return values, [machine.encrypt(v, level, scale) for v in values]


def near(machine, cipher, expected):
    np.testing.assert_allclose(machine.decrypt(cipher), expected, atol=TOLERANCE)


def test_is_a_machine(machine):
    assert isinstance(machine, Machine)
    assert machine.encrypts == (machine.name != "slots")


@pytest.mark.parametrize("level", [0, 1, 3])
def test_encrypts_at_any_level(machine, rng, level):
    (x,), (a,) = fresh(machine, rng, level)
    assert (a.level, a.components) == (level, 2)
    near(machine, a, x)


def test_add_with_factors(machine, rng):
    (x, y, z), (a, b, c) = fresh(machine, rng, 2, 3)
    near(machine, machine.add([a, b, c], [3, -1, -5]), 3 * x - y - 5 * z)
    near(machine, machine.add([a], [-1]), -x)


def test_results_are_new_and_arguments_unchanged(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    machine.add([a, b], [1, 1])
    machine.rescale(machine.relinearize(machine.dot([a], [b], [1])))
    machine.rotate(a, 1)
    machine.drop(a, 0)
    machine.add_plain(a, machine.encode(1.0, 2, a.scale))
    near(machine, a, x)
    near(machine, b, y)


def test_dot_rescaled(machine, rng):
    (x, y, z), (a, b, c) = fresh(machine, rng, 2, 3)
    product = machine.dot([a, b, b], [a, c, b], [1, -1, 3])
    assert product.components == 3 and product.scale == a.scale * a.scale
    result = machine.rescale(machine.relinearize(product))
    assert result.components == 2 and result.level == 1
    near(machine, result, x * x - y * z + 3 * y * y)


def test_three_components_decrypt(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    near(machine, machine.dot([a], [b], [1]), x * y)


def test_canonical_scale_after_rescale(machine, rng):
    _, (a,) = fresh(machine, rng, 3)
    result = machine.rescale(machine.relinearize(machine.dot([a], [a], [1])))
    settled = machine.set_exact_scale(result, 2, machine.params.scale(2))
    assert settled.scale == machine.params.scale(2)


def test_dot_plain_vectors_and_scalars(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    w = rng.uniform(-1, 1, machine.slots)
    scale = machine.params.scale(2)
    plains = [machine.encode(w, 2, scale), machine.encode(-0.37, 2, scale)]
    near(machine, machine.rescale(machine.dot_plain([a, b], plains)), w * x - 0.37 * y)


def test_plaintexts_of_a_sum_are_taken_one_by_one(machine, rng):
    (x, y), ciphers = fresh(machine, rng, 2, 2)
    plains = (machine.encode(value, 2, ciphers[0].scale) for value in (0.5, -0.25))
    near(machine, machine.rescale(machine.dot_plain(ciphers, plains)), 0.5 * x - 0.25 * y)


def test_plaintexts_at_another_level_are_refused(machine, rng):
    _, (a, b) = fresh(machine, rng, 2, 2)
    plains = [machine.encode(np.ones(machine.slots), level, a.scale) for level in (2, 1)]
    with pytest.raises(CircuitError, match="different levels"):
        machine.dot_plain([a, b], plains)


def test_dot_scalars_is_dot_plain_row_by_row(machine, rng):
    values, ciphers = fresh(machine, rng, 2, 5)
    rows = rng.uniform(-2, 2, (6, 5))
    rows[3] = 0.0
    scale = machine.params.scale(2)
    results = machine.dot_scalars(ciphers, rows, scale)
    for row, result in zip(rows, results, strict=True):
        near(machine, machine.rescale(result), row @ np.stack(values))
    plains = [machine.encode(float(v), 2, scale) for v in rows[0]]
    one = machine.dot_plain(ciphers, plains)
    assert (results[0].level, results[0].scale) == (one.level, one.scale)
    if machine.encrypts:
        assert machine.to_bytes(results[0]) == machine.to_bytes(one)


def test_rotate_is_cyclic_in_the_effective_slots(machine, rng):
    (x,), (a,) = fresh(machine, rng, 1)
    near(machine, machine.rotate(a, 5), np.roll(x, -5))
    near(machine, machine.rotate(a, 0), x)
    near(machine, machine.rotate(a, machine.slots + 1), np.roll(x, -1))


def test_missing_rotation_key_names_the_step(machine, rng):
    _, (a,) = fresh(machine, rng, 1)
    with pytest.raises(MissingRotationKey, match="step 3") as caught:
        machine.rotate(a, 3)
    assert caught.value.step == 3


def test_zero_plaintexts(machine, rng):
    (x,), (a,) = fresh(machine, rng, 2)
    scale = machine.params.scale(2)
    for zero in (0.0, np.zeros(machine.slots), 1e-14, np.full(machine.slots, 1e-15)):
        plain = machine.encode(zero, 2, scale)
        nothing = machine.dot_plain([a], [plain])
        assert (nothing.level, nothing.scale) == (2, a.scale * scale)
        near(machine, machine.rescale(nothing), np.zeros_like(x))
        near(machine, machine.add_plain(a, plain), x)
    near(
        machine,
        machine.dot_plain([a, a], [machine.encode(0.0, 2, scale), machine.encode(1.0, 2, scale)]),
        x,
    )


def test_cancelling_sums(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    near(machine, machine.add([a, a], [1, -1]), np.zeros_like(x))
    near(machine, machine.add([a, a, b], [1, -1, 1]), y)
    nothing = machine.dot([a, a], [b, b], [1, -1])
    assert nothing.components == 3
    near(machine, machine.rescale(machine.relinearize(nothing)), np.zeros_like(x))


def opaque(machine, cipher, expected):
    """Holds what is expected, and nobody can read it without the key."""
    near(machine, cipher, expected)
    blob = machine.to_bytes(cipher)  # `from_bytes` refuses what is transparent
    near(machine, machine.from_bytes(blob, cipher.level, cipher.scale, cipher.components), expected)


def test_sums_keep_their_public_part_when_the_ciphertexts_cancel(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    w = rng.uniform(-1, 1, machine.slots)
    moved = machine.add_plain(a, machine.encode(w, 2, a.scale))
    opaque(machine, machine.add([moved, a], [1, -1]), w)
    opaque(machine, machine.add([a, moved], [-3, 3]), 3 * w)
    opaque(machine, machine.add([moved, a, a, a], [2, -3, 2, -1]), 2 * w)
    opaque(machine, machine.add([moved, a, b], [1, -1, 1]), w + y)
    opaque(machine, machine.add([a, b, moved, b], [1, 2, -1, -2]), -w)
    twice = machine.add_plain(machine.add([moved, a], [1, -1]), machine.encode(w, 2, a.scale))
    opaque(machine, twice, 2 * w)
    opaque(machine, machine.add([twice, twice, moved, a], [1, -1, 1, -1]), w)


def test_what_is_made_of_a_cancelled_sum_keeps_its_public_part(machine, rng):
    (x,), (a,) = fresh(machine, rng, 3)
    w = rng.uniform(-1, 1, machine.slots)
    plain = machine.encode(w, 3, a.scale)
    left = machine.add([machine.add_plain(a, plain), a], [1, -1])
    opaque(machine, machine.rotate(left, 5), np.roll(w, -5))
    opaque(machine, machine.drop(left, 1), w)
    opaque(machine, machine.rescale(machine.dot_plain([left], [plain])), w * w)
    square = machine.dot([left], [left], [1])
    opaque(machine, square, w * w)
    opaque(machine, machine.rescale(machine.relinearize(square)), w * w)
    opaque(machine, machine.relinearize(machine.dot([left], [a], [-2])), -2 * w * x)


def test_products_keep_what_does_not_cancel(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    w = rng.uniform(-1, 1, machine.slots)
    moved = machine.add_plain(a, machine.encode(w, 2, a.scale))
    # The last component cancels, the one before it does not.
    rest = machine.dot([moved, a], [b, b], [1, -1])
    assert rest.components == 3
    opaque(machine, rest, w * y)
    opaque(machine, machine.rescale(machine.relinearize(rest)), w * y)
    mixed = machine.dot([moved, a, a, a], [moved, a, a, moved], [1, 1, -2, 0])
    opaque(machine, mixed, (x + w) ** 2 - x * x)
    # All components but the first cancel.
    square = machine.dot([a], [a], [1])
    public = machine.add_plain(square, machine.encode(w, 2, square.scale))
    gone = machine.add([public, square], [1, -1])
    assert gone.components == 3
    opaque(machine, gone, w)
    opaque(machine, machine.rescale(machine.relinearize(gone)), w)
    opaque(machine, machine.dot([a, b, a], [b, a, a], [3, -3, 1]), x * x)
    opaque(machine, machine.dot([a, b, a], [b, a, b], [3, -1, -2]), np.zeros_like(x))
    half = machine.dot_plain([a], [machine.encode(0.5, 2, a.scale)])
    opaque(machine, machine.add([square, half, square], [1, 1, -1]), 0.5 * x)


def test_products_by_plaintexts_keep_what_does_not_cancel(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    w, v = rng.uniform(-1, 1, (2, machine.slots))
    moved = machine.add_plain(a, machine.encode(w, 2, a.scale))
    scale = machine.params.scale(2)
    signs = [machine.encode(v, 2, scale), machine.encode(-v, 2, scale)]
    opaque(machine, machine.dot_plain([moved, a], signs), v * w)
    opaque(machine, machine.dot_plain([moved, a, b], [*signs, signs[0]]), v * (w + y))
    opaque(machine, machine.dot_plain([a, a], signs), np.zeros_like(x))
    ones = [machine.encode(c, 2, scale) for c in (0.75, -0.75)]
    opaque(machine, machine.dot_plain([a, moved], ones), -0.75 * w)
    rows = np.array([[1.0, -1.0, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 2.0]])
    results = machine.dot_scalars([moved, a, b], rows, scale)
    for result, expected in zip(results, (w, -0.5 * w, 0 * w, w + 2 * y), strict=True):
        opaque(machine, result, expected)
    squares = [machine.dot([c], [c], [1]) for c in (a, a)]
    squares[0] = machine.add_plain(squares[0], machine.encode(w, 2, squares[0].scale))
    small = 2.0**20
    for result in machine.dot_scalars(squares, np.array([[1.0, -1.0]]), small):
        assert result.components == 3
        opaque(machine, result, w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_values_that_are_not_finite(machine, bad):
    vector = np.zeros(machine.slots)
    vector[3] = bad
    for values in (vector, bad):
        with pytest.raises(EncodeError, match="NaN or infinite"):
            machine.encode(values, 1, machine.params.scale(1))
        with pytest.raises(EncodeError, match="NaN or infinite"):
            machine.encrypt(values, 1, machine.params.scale(1))


def test_encode_refuses_what_would_wrap(machine):
    scale = machine.params.scale(0)
    limit = machine.params.capacity(0)
    machine.encrypt(0.9 * limit, 0, scale)
    for values in (1.1 * limit, np.full(machine.slots, -1.1 * limit)):
        with pytest.raises(EncodeError, match="too large for level 0"):
            machine.encrypt(values, 0, scale)
    machine.encrypt(1.1 * limit, 1, machine.params.scale(1))


def test_encode_refuses_a_wrong_length(machine):
    with pytest.raises(EncodeError, match="slots"):
        machine.encode(np.zeros(machine.slots + 1), 1, machine.params.scale(1))


def test_levels_and_scales_must_agree(machine, rng):
    _, (a,) = fresh(machine, rng, 2)
    _, (b,) = fresh(machine, rng, 1)
    with pytest.raises(CircuitError, match="different levels"):
        machine.add([a, b], [1, 1])
    with pytest.raises(CircuitError, match="scales differ"):
        machine.add(
            [machine.drop(a, 1), machine.set_exact_scale(b, 1, b.scale * 1.0000001)], [1, 1]
        )
    with pytest.raises(CircuitError, match="different levels"):
        machine.add_plain(a, machine.encode(1.0, 1, a.scale))
    with pytest.raises(CircuitError, match="scales differ"):
        machine.add_plain(a, machine.encode(1.0, 2, a.scale * 1.01))


def test_rescale_ends_at_level_zero(machine, rng):
    _, (a,) = fresh(machine, rng, 0)
    with pytest.raises(CircuitError, match="no level is left"):
        machine.rescale(a)


def test_products_need_room(machine, rng):
    _, (a,) = fresh(machine, rng, 0)
    with pytest.raises(CircuitError, match="out of bounds at level 0"):
        machine.dot([a], [a], [1])


def test_three_components_do_not_rotate_or_multiply(machine, rng):
    _, (a,) = fresh(machine, rng, 2)
    square = machine.dot([a], [a], [1])
    with pytest.raises(CircuitError, match="relinearize first"):
        machine.rotate(square, 1)
    with pytest.raises(CircuitError, match="relinearize first"):
        machine.dot([square], [a], [1])


def test_settle_refuses_more_than_dust(machine, rng):
    _, (a,) = fresh(machine, rng, 2)
    assert machine.set_exact_scale(a, 2, a.scale * (1 + 2.0**-48)).scale == a.scale * (1 + 2.0**-48)
    with pytest.raises(CircuitError, match="scales differ"):
        machine.set_exact_scale(a, 2, a.scale * (1 + 2.0**-30))
    with pytest.raises(CircuitError, match="level"):
        machine.set_exact_scale(a, 1, a.scale)


def test_bytes_come_back(machine, rng):
    (x, y), (a, b) = fresh(machine, rng, 2, 2)
    for cipher, value in ((a, x), (machine.dot([a], [b], [1]), x * y)):
        blob = machine.to_bytes(cipher)
        assert len(blob) == machine.cipher_size(cipher.components, cipher.level)
        back = machine.from_bytes(blob, cipher.level, cipher.scale, cipher.components)
        machine.check_bytes(blob, cipher.level, cipher.scale, cipher.components)
        near(machine, back, value)


def test_blobs_are_refused(machine, rng):
    _, (a,) = fresh(machine, rng, 2)
    blob = machine.to_bytes(a)
    scale = a.scale
    for wrong in (blob[:-1], blob + b"\0", b"", bytes(len(blob)), b"\xff" * len(blob)):
        for reads in (machine.from_bytes, machine.check_bytes):
            with pytest.raises(BlobError):
                reads(wrong, 2, scale)
    for level, announced, components in ((1, scale, 2), (2, scale * 1.5, 2), (2, scale, 3)):
        for reads in (machine.from_bytes, machine.check_bytes):
            with pytest.raises(BlobError):
                reads(blob, level, announced, components)


def test_slots_machine_sees_the_overflow_that_seal_does_not(params):
    machine = SlotsMachine(params, 32)
    a = machine.encrypt(400.0, 0, params.scale(0))
    with pytest.raises(ValueRangeError, match="too large for level 0"):
        machine.add([a, a], [1, 1])


def test_decrypt_needs_the_secret_key(params):
    public = PyfhelMachine(params, 32)
    with pytest.raises(BackendError, match="no secret key"):
        public.decrypt(None)  # type: ignore[arg-type]
