"""`certify`: errors beside the message, against closed forms, simulation and encrypted runs."""

import math
import subprocess
import sys
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

import approx
import hesim
from hesim.certificates import Record
from hesim.circuit.circuit import Circuit
from hesim.noise import formulas
from hesim.noise.placement import of_circuit
from hesim.noise.profiles import profile
from hesim.refresh import refresh

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")
SEAL = profile("seal")
PARAMS = hesim.CKKSParams(13, 3, 40, 50, 60, security=None)
GELU = approx.fit("gelu", (-4.0, 4.0), degree=7)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8)).astype(np.float32)
W = (RNG.normal(size=(8, 8)) / 4).astype(np.float32)


def block(x, w):
    q = x @ w
    return (GELU(q) * x).sum(-1) + q.sum(-1)


def compiled(fn, *args, params=PARAMS, encrypted=(0,), **options):
    program = hesim.trace(fn, *args, encrypted=encrypted)
    return hesim.compile(program, params, **options)


def rounding(level):
    return formulas.value_std(formulas.rescale(SEAL), PARAMS, level, SEAL)


def fresh(level):
    return formulas.value_std(formulas.fresh(PARAMS.n, SEAL), PARAMS, level, SEAL)


def test_a_product_has_the_closed_form():
    x = RNG.uniform(-1, 1, 4096).astype(np.float32)
    w = RNG.uniform(-1, 1, 4096).astype(np.float32)
    circuit = compiled(lambda x, w: x * w, x, w)
    found = hesim.certify(circuit, (x, w), keys=16)
    level = found.ops[0].level
    expected = math.hypot(fresh(level + 1) * float(np.sqrt(np.mean(w**2))), rounding(level))
    assert found.ops[0].std == pytest.approx(expected, rel=0.03)
    assert 3.8 < found.ops[0].q999 / found.ops[0].std < 6.0  # a normal one has 3.3
    assert found.outputs[0] is not None
    assert found.outputs[0].std == pytest.approx(found.ops[0].std)


def test_a_key_given_decides_which_slots_are_bad():
    x = RNG.uniform(-1, 1, 4096).astype(np.float32)
    circuit = compiled(lambda x, w: x * w, x, x)
    secrets = np.full((4, PARAMS.slots), 1.0 + 0.0j)
    secrets[:, 100] = 3000.0
    found = hesim.certify(circuit, (x, x), secrets=secrets)
    assert found.keys == 4
    assert found.ops[0].worst[0][0] == 100
    assert len(found.ops[0].by_key) == 4
    assert np.mean(np.square(found.ops[0].by_key)) == pytest.approx(found.ops[0].std ** 2)
    with pytest.raises(ValueError, match="secrets"):
        hesim.certify(circuit, (x, x), secrets=secrets[:, :7])
    with pytest.raises(ValueError, match="switches"):
        hesim.certify(circuit, (x, x), secrets=secrets, switches={1: secrets[0]})


def test_the_sum_of_the_components_is_all_that_operations_see():
    """Parts e0, e1, e2 that meet 1, S and S², carried one by one, end as their sum does."""
    slots = 256
    secret = RNG.normal(size=slots) * 70 + 70j * RNG.normal(size=slots)

    def parts(count):
        return RNG.normal(size=(count, slots)) + 1j * RNG.normal(size=(count, slots))

    def total(e, s=secret):
        return sum(part * s**k for k, part in enumerate(e))

    (ma, mb), a, b, switch = RNG.normal(size=(2, slots)) * 1e6, parts(2), parts(2), parts(2)
    product = [(ma + a[0]) * (mb + b[0]) - ma * mb, (ma + a[0]) * b[1] + (mb + b[0]) * a[1]]
    product.append(a[1] * b[1])
    relinearized = [product[0] + product[2] * secret**2 + switch[0], product[1] + switch[1]]
    # A rotation switches from the rotated secret: all of the old e1 ends in e0.
    moved = np.roll(relinearized, -3, axis=1)
    rotated = [moved[0] + moved[1] * np.roll(secret, -3) + switch[0], switch[1]]
    ea, eb = total(a), total(b)
    expected = np.roll(ma * eb + mb * ea + ea * eb + total(switch), -3) + total(switch)
    np.testing.assert_allclose(total(rotated), expected, rtol=1e-9)


def test_quantiles_of_samples_give_every_slot_its_share():
    """One bad slot of 4096 in sixteen ciphertexts is less than one element in a thousand."""
    x = RNG.uniform(-1, 1, (4096, 16))
    circuit = compiled(lambda x: x + x, x)
    (tap,) = circuit.taps
    assert len(tap.ciphers) == 16 and tap.width == 4096
    record = Record(circuit, tap, 8)
    errors = np.full((8, 4096), 1.0)
    errors[:, 0] = 100.0
    for cipher in tap.ciphers:
        record.add(int(cipher), errors)
    assert record.certificate("add", "").q999 == abs(tap.gain)


def test_a_message_that_wraps_around_is_an_error():
    """The coefficients decide: 600 everywhere is one of 600, mixed signs have none of that size."""
    x = np.full(4096, 300.0)
    circuit = compiled(lambda x: x + x, x)
    with pytest.raises(hesim.ValueOverflowError, match=r"add.*600.*level 0.*first_bits"):
        hesim.certify(circuit, (x,), keys=2)
    signs = RNG.choice([-1.0, 1.0], 4096)
    found = hesim.certify(circuit, (x * signs,), keys=2)
    assert found.spare_bits[0] == pytest.approx(math.log2(512 / 300), abs=0.01)  # of the input


def test_sums_by_numbers_give_what_their_terms_do():
    """A matrix product over many ciphertexts is computed at once, with the same errors."""
    x = RNG.uniform(-1, 1, (4096, 8))
    w = RNG.uniform(-1, 1, (8, 8))
    circuit = compiled(lambda x, w: x @ w, x, w)
    level = int(circuit.level[0])
    found = hesim.certify(circuit, (x, w), keys=4).ops[0].std
    signal = fresh(level) * math.sqrt(np.mean(np.sum(w**2, axis=0)))
    assert found == pytest.approx(math.hypot(signal, rounding(level - 1)), rel=0.03)


def test_it_agrees_with_the_simulation_of_the_same_circuit():
    circuit = compiled(block, X, W)
    certified = hesim.certify(circuit, (X, W), keys=16)
    program = circuit.program
    simulated = hesim.predict(
        program, PARAMS, (X, W), keys=16, schedule=of_circuit(program, circuit)
    )
    for op, other in zip(certified.ops, simulated.ops, strict=True):
        if op.level >= 0:
            assert abs(math.log2(op.std / other.std)) < 0.5, op
    assert min(certified.spare_bits.values()) > 0


def test_a_loaded_circuit_gives_the_same_without_jax(tmp_path):
    circuit = compiled(block, X, W)
    circuit.save(tmp_path / "c.npz")
    operands = circuit.publics.evaluate(circuit.program.flatten((X, W)))
    np.savez(tmp_path / "o.npz", *operands, x=X)
    code = (
        "import sys, numpy as np, hesim\n"
        "d = np.load('o.npz'); c = hesim.Circuit.load('c.npz')\n"
        "o = [d[k] for k in d if k != 'x']\n"
        "f = hesim.certify(c, inputs=[d['x']], operands=o, keys=2)\n"
        "assert 'jax' not in sys.modules\n"
        "print(repr(f.ops[-1].std))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    again = hesim.certify(circuit, (X, W), keys=2).ops[-1].std
    assert float(out.stdout.removeprefix("np.float64(").split(")")[0]) == pytest.approx(again)
    loaded = Circuit.load(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="operands"):
        hesim.certify(loaded, (X, W))


def test_rotations_with_one_key_add_up_where_digits_have_a_mean():
    """Sums of rotations by one step: in amplitude near ζ = 1, in variance elsewhere."""
    loud = hesim.CKKSParams(13, 1, 40, 60, 60, security=None)
    x = RNG.uniform(-1, 1, 4096).astype(np.float32)
    circuit = compiled(lambda x: x.reshape(2, -1).sum(0), x, params=loud, layouts=[(0,)])
    assert circuit.ledger.rotations >= 1
    found = hesim.certify(circuit, (x,), keys=16)
    # The slot of ζ itself, number 0, has 1 / |1 - ζ|² = (N / π)² against a mean of N / 4.
    assert found.ops[-1].worst[0][1] > 10 * found.ops[-1].std


@pytest.mark.slow
@pytest.mark.parametrize("levels", [3, 8])
def test_certified_errors_are_those_of_an_encrypted_run(levels):
    pytest.importorskip("Pyfhel")
    run = pytest.importorskip("he_backend.run").run
    params = hesim.CKKSParams(13, levels, 40, 50, 60, security=None)
    circuit = compiled(block, X, W, params=params)
    certified = hesim.certify(circuit, (X, W), keys=16)
    report = run(circuit.program, X, W, circuit=circuit, compare=True)
    shapes = [eqn.outputs[0].shape for eqn in circuit.program.ops]
    for op, record, shape in zip(certified.ops, report.ops, shapes, strict=True):
        if op.level >= 0 and record.measured_std > 0:
            count = math.prod(shape)  # a measured std of few heavy-tailed numbers is uncertain
            assert abs(math.log2(op.std / record.measured_std)) < 0.25 + 4 / math.sqrt(count), op


def test_a_key_holder_refreshes_the_first_copy_of_the_slots():
    """The last of 32 values meets the first of the next copy, which was encrypted in this one."""
    x = RNG.uniform(-1, 1, 32).astype(np.float32)

    def fn(x, w):
        y = refresh(x * w)
        return y + jnp.roll(y, -1)

    circuit = compiled(fn, x, x, layouts=[(0,)], batch=False)
    assert circuit.slots == 32 and circuit.ledger.rotations == 1
    secrets = np.full((8, PARAMS.slots), 1.0 + 0.0j)
    secrets[:, 0] = 3000.0
    found = hesim.certify(circuit, (x, x), secrets=secrets)
    assert {slot for slot, _ in found.ops[-1].worst[:2]} == {0, 31}


def test_errors_of_what_is_carried_add_up_from_run_to_run():
    """A sum grows by what is encrypted anew at each run; a mean with it forgets."""

    def fn(total, mean, x):
        return total + x, 0.5 * mean + 0.5 * x

    x = RNG.uniform(-1, 1, PARAMS.slots)
    program = hesim.trace(fn, x, x, x, encrypted=(0, 1, 2))
    circuit = hesim.compile(program, PARAMS, carried={0: 0, 1: 1})
    found = [hesim.certify(circuit, (x, x, x), keys=4)]
    for _ in range(11):
        found.append(hesim.certify(circuit, (x, x, x), keys=4, after=found[-1]))
    outputs: Any = [f.outputs for f in found]
    totals, means = (np.array([pair[k].std for pair in outputs]) for k in (0, 1))
    steps = np.diff(totals**2)
    assert np.allclose(steps, steps.mean(), rtol=0.2)  # of 4 keys, drawn anew in each run
    assert totals[-1] > 3 * totals[0]
    assert means[-1] < 1.3 * means[0]
    # The message goes on, too: sums of x, whatever the arguments are.
    left = found[-1].left
    assert left is not None and left.ciphers.keys() == {i for _, i in circuit.carried}
    messages = [m for m, _ in left.ciphers.values()]
    assert any(np.allclose(m, 13 * x) for m in messages)


def test_a_run_goes_on_after_one_of_its_own_circuit_only():
    x = RNG.uniform(-1, 1, 32)
    program = hesim.trace(lambda s, x: s + x, x, x, encrypted=(0, 1))
    plain, going_on = hesim.compile(program, PARAMS), hesim.compile(program, PARAMS, carried={0: 0})
    with pytest.raises(ValueError, match="carries nothing"):
        hesim.certify(plain, (x, x), after=hesim.certify(plain, (x, x), keys=1))
    with pytest.raises(ValueError, match="another Circuit"):
        hesim.certify(plain, (x, x), after=hesim.certify(going_on, (x, x), keys=1))
    with pytest.raises(ValueError, match="takes the Certificate"):
        hesim.certify(going_on, (x, x), after=cast(Any, 7))


def test_what_was_decrypted_has_no_errors_but_beside_the_first_copy_of_the_slots():
    """Half of the slots, so two copies: a shift brings the second one's into half of the slots."""
    width = PARAMS.slots // 2
    x = RNG.uniform(-1, 1, width)

    def fn(state, x):
        moved = jnp.roll(state, width // 2)
        return state + x, moved, state * 0.5

    program = hesim.trace(fn, x, x, encrypted=(0, 1))
    circuit = hesim.compile(program, PARAMS, carried={0: 0})
    assert circuit.slots == width
    alone = hesim.certify(circuit, (x, x), keys=16, decrypted=True)
    first = hesim.certify(circuit, (x, x), keys=16)
    second = hesim.certify(circuit, (x, x), keys=16, after=first)
    again = hesim.certify(circuit, (x, x), keys=16, after=first, decrypted=True)
    totals: list[Any] = [f.outputs[0] for f in (alone, first, second, again)]
    sizes = np.array([total.std for total in totals]) ** 2 / totals[0].std ** 2
    assert sizes[1] > 1.2  # the state's own encryption
    np.testing.assert_allclose(sizes[2:], [sizes[1] + 1, 1], rtol=0.1)
    halves: list[Any] = [f.outputs[2] for f in (alone, first)]
    assert halves[0].std < 0.3 * halves[1].std  # of what its own product adds
    moved: list[Any] = [f.outputs[1] for f in (alone, again)]
    assert moved[1].std > 1.1 * moved[0].std
    # The arguments are the messages, whatever the run before has left.
    assert again.left is not None and alone.left is not None
    for found, wanted in zip(again.left.ciphers.values(), alone.left.ciphers.values(), strict=True):
        np.testing.assert_array_equal(found[0], wanted[0])


def test_only_what_is_carried_can_have_been_decrypted():
    x = RNG.uniform(-1, 1, 32)
    circuit = hesim.compile(hesim.trace(lambda s, x: s + x, x, x, encrypted=(0, 1)), PARAMS)
    with pytest.raises(ValueError, match="carries ciphertexts"):
        hesim.certify(circuit, (x, x), decrypted=True)
