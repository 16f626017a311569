"""Stages that multiply twice before they rescale: masks, and products of what they leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jax import numpy as jnp

from he_backend.errors import ValueRangeError
from he_backend.local import run_local
from he_backend.machines.pyfhel.machine import PyfhelMachine
from hesim import ValueOverflowError, certify, predict, trace
from hesim.circuit.builder import Builder
from hesim.circuit.circuit import Circuit, Kind, PlaintextFamily, TensorLocation
from hesim.circuit.emission import arrays, emit
from hesim.circuit.ledger import ledger
from hesim.circuit.levels import LevelPlanner
from hesim.circuit.publics import Publics
from hesim.noise.placement import of_circuit

M = 8
"""Tokens, and features: both lie in slots, features above."""

Q, K = np.random.default_rng(3).normal(size=(2, M, M))
ROW, COLUMN = np.divmod(np.arange(M * M), M)


def vectors(b: Builder, tables: list[np.ndarray], values: list[float], operand: int = -1):
    """A family of plaintexts out of numbers, by int[rows, columns] of places in them."""
    index = np.asarray(tables, np.int32)
    literal = None if operand >= 0 else np.asarray(values)
    return PlaintextFamily(operand, index, 0, 1, 1, b.columns, 1.0, literal)


def scores(b: Builder, q: int, k: int, stages: int = 1) -> list[int]:
    """sum_f q[t, f] k[j, f] in slot (j - t, t), from q in slot (f, t) and k in slot (f, j - f).

    What a shift by tokens carries into the next row is masked off, and summed by itself.
    """
    masks = [np.where(COLUMN >= r, 0, -1) for r in range(M)]
    masks += [np.where(COLUMN < r, 0, -1) for r in range(1, M)]
    pack = b.pack(vectors(b, masks, [1.0]))
    left = [b.rotate(q, r * M) for r in range(M)]
    other = [b.rotate(k, r * M - r) for r in range(M)]
    kept = [b.dot_plain([(left[r], (pack, r))]) for r in range(M)]
    carried = [b.dot_plain([(left[r - 1], (pack, M + r - 1))]) for r in range(1, M)]
    if stages == 2:
        made = b.end([b.rescale(n) for n in (*kept, *carried)])
        b.begin(0)
        kept, carried = made[:M], made[M:]
        other = [b.rotate(k, r * M - r) for r in range(M)]
    one = b.rescale(b.dot([(1, a, c) for a, c in zip(kept, other, strict=True)]))
    two = b.rescale(b.dot([(1, a, c) for a, c in zip(carried, other[1:], strict=True)]))
    return [b.add([(1, one), (1, b.rotate(two, M))])]


def distances(b: Builder, q: int, k: int) -> list[int]:
    """(q - k)^2 + 1 in odd rows; k (k - q) + k q + 1 in even ones, each masked by itself."""
    pack = b.pack(vectors(b, [np.where(ROW % 2, 0, -1), np.where(ROW % 2, -1, 0)], [1.0]))
    ones = b.pack(vectors(b, [np.zeros(1)], [1.0]))
    apart = b.add([(1, q), (-1, k)])
    kept = b.add([(1, b.dot_plain([(apart, (pack, 0))])), (-1, b.dot_plain([(k, (pack, 1))]))])
    product = b.add_plain(b.dot([(1, kept, apart)]), (ones, 0))
    even = b.dot_plain([(b.relinearize(b.dot([(1, k, q)])), (pack, 1))])
    return [b.rescale(b.add([(1, product), (1, even)]))]


Kernel = Callable[[Builder, int, int], list[int]]


def masked(params, kernel: Kernel, after: int = 0) -> tuple[Builder, Circuit]:
    """A Circuit of a kernel on Q and K, and of `after` products of its result with 1."""
    program = trace(lambda q, k: jnp.einsum("tf,jf->tj", q, k), Q, K, encrypted=(0, 1))
    b = Builder(M * M, 1, 1, log_n=params.log_n)
    places = [COLUMN * M + ROW, (COLUMN + ROW) % M * M + ROW]
    inputs = tuple(vectors(b, [table], [], number) for number, table in enumerate(places))
    unit = b.pack(vectors(b, [np.zeros(1)], [1.0]))
    nodes = []
    for row in range(2):
        b.begin(-1)
        nodes += b.end([b.input(row, np.ones(M * M, bool))])
    b.begin(0)
    (result,) = b.end(kernel(b, *nodes))
    for _ in range(after):
        b.begin(0)
        (result,) = b.end([b.rescale(b.dot_plain([(result, (unit, 0))]))])
    planner = LevelPlanner(b, params, [result], str, 1.0)
    schedule = planner.improved(planner.greedy())
    emitted = emit(b, params, schedule, planner.live, unit)
    token, other = np.indices((M, M)).reshape(2, -1)
    tap = TensorLocation(
        op=len(program.ops) - 1,
        shape=(M, M),
        batch_axis=-1,
        cipher=np.full(M * M, emitted.made[result], np.int32),
        column=((other - token) % M * M + token).astype(np.int32),
        gain=1.0,
        batch=1,
        width=1,
    )
    names = tuple(op.name for op in program.ops)
    data: dict[str, Any] = {**arrays(emitted)}
    packs = tuple(b.packs)
    circuit = Circuit(
        params=params,
        slots=M * M,
        packs=packs,
        inputs=inputs,
        operand_count=0,
        op_names=names,
        op_sources=names,
        outputs=(tap,),
        taps=(tap,),
        input_labels=program.labels,
        ledger=ledger(params, data, packs, 1, None, names, names),
        program=program,
        publics=Publics(program),
        **data,
    )
    return b, circuit


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_masked_contraction_is_rescaled_at_the_end(small_params, run_slots, after):
    params = small_params(levels=4)
    b, circuit = masked(params, scores, after)
    ((found,), _) = run_slots(circuit, (Q, K))
    np.testing.assert_allclose(found, Q @ K.T, atol=1e-12)
    assert b.stages[2].drop == 2 and len(b.stages[2].unscaled) == 2 * M - 1
    spent = circuit.ledger
    assert (spent.plain_products - after, spent.products) == (2 * M - 1, 2 * M - 1)
    assert (spent.rescales - after, spent.relinearizations) == (4, 2)
    assert spent.rotations == 2 * (M - 1) + 1 and spent.refreshes == (after > 2)
    kind, level, scale = circuit.kind, circuit.level, circuit.scale
    (at,) = set(level[kind == Kind.DOT].tolist())
    assert at >= 2
    assert np.all(scale[kind == Kind.DOT] == params.scale(at) ** 2 * params.scale(at - 1))
    # Before the last rescale and after the first.
    assert np.all(level[kind == Kind.RELINEARIZE] == at - 1)
    assert np.all(scale[kind == Kind.RELINEARIZE] == params.scale(at - 1) ** 2)


def test_masks_of_differences_of_products_and_their_sums(small_params, run_slots):
    for after in (0, 1):
        _, circuit = masked(small_params(levels=3), distances, after)
        ((found,), _) = run_slots(circuit, (Q, K))
        q, k = Q[COLUMN, ROW], K[(COLUMN + ROW) % M, ROW]
        (tap,) = circuit.outputs
        assert tap is not None
        wanted = np.where(ROW % 2, (q - k) ** 2 + 1, k * k - k * q + k * q + 1)
        np.testing.assert_allclose(found.reshape(-1), wanted[tap.column], atol=1e-9)
        assert circuit.ledger.products == 2 and circuit.ledger.rescales == 2 + after


def test_masks_rescaled_by_themselves_take_a_rescale_each(small_params, run_slots):
    params = small_params(levels=2)
    found = [masked(params, lambda *a, n=n: scores(*a, stages=n)) for n in (1, 2)]
    for b, circuit in found:
        ((scored,), _) = run_slots(circuit, (Q, K))
        np.testing.assert_allclose(scored, Q @ K.T, atol=1e-12)
        # What is planned is what the instructions cost, at every level below the stage's start.
        planner = LevelPlanner(b, params, b.stages[-1].outputs, str, None)
        spent = sum(op.seconds for op in circuit.ledger.operations)
        assert planner.greedy().seconds == pytest.approx(spent)
    (_, one), (_, two) = found
    assert [b.stages[2].drop for b, _ in found] == [2, 1]
    assert (one.ledger.rescales, two.ledger.rescales) == (4, 2 * M - 1 + 2)


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_a_circuit_with_triple_scales_is_saved_and_loaded(small_params, run_slots, tmp_path):
    _, circuit = masked(small_params(levels=2), scores)
    circuit.save(tmp_path / "c.npz")
    loaded = Circuit.load(tmp_path / "c.npz")
    np.testing.assert_array_equal(loaded.scale, circuit.scale)
    np.testing.assert_array_equal(loaded.plain_scale, circuit.plain_scale)
    again = dataclasses.replace(loaded, program=circuit.program, publics=circuit.publics)
    ((found,), _) = run_slots(again, (Q, K))
    np.testing.assert_allclose(found, Q @ K.T, atol=1e-12)


def encrypted(circuit: Circuit) -> np.ndarray:
    """The result under a new key."""
    (tap,) = circuit.outputs
    assert tap is not None
    machine = PyfhelMachine.generate(circuit.params, circuit.rotation_steps, circuit.slots)
    vectors, spent = run_local(circuit, machine, [Q, K], [], tap.ciphers.tolist())
    assert {k: spent.counts[k] for k in circuit.ledger.counts()} == circuit.ledger.counts()
    return tap.read(vectors)


def test_encrypted_masked_products_err_as_predicted(small_params, run_slots):
    params = small_params(log_n=12, levels=2)
    _, circuit = masked(params, scores)
    errors = [encrypted(circuit) - Q @ K.T for _ in range(8)]
    certified = certify(circuit, (Q, K), keys=16).outputs[0]
    assert certified is not None
    # Either figure is off by 3 % among so few keys.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(certified.std, rel=0.2)
    schedule = of_circuit(circuit.program, circuit)
    (place,) = schedule.values()
    assert (place.level, place.operand_level) == (0, 2)
    tensors = predict(circuit.program, params, (Q, K), 16, schedule=dict(schedule)).ops[-1]
    assert tensors.std == pytest.approx(certified.std, rel=0.2)
    _, circuit = masked(params, distances)
    ((found,), _) = run_slots(circuit, (Q, K))
    np.testing.assert_allclose(encrypted(circuit), found, atol=1e-6)


def test_sums_at_triple_scale_have_a_range_of_their_own(small_params, run_slots):
    params = small_params(levels=2)
    _, circuit = masked(params, scores)
    x = np.full((M, M), 7.0)
    assert certify(circuit, (x, x), keys=2).spare_bits[2] > 0  # 8 * 49 = 392 in every slot
    advice = r"level 2 (and|at) scale 2\^120.*take .*scale_bits=3\d, or scale the values down"
    with pytest.raises(ValueOverflowError, match="dot_general.*" + advice):
        certify(circuit, (x, 3.0 * x), keys=2)
    with pytest.raises(ValueRangeError, match=advice) as caught:
        run_slots(circuit, (x, 3.0 * x))
    assert caught.value.operation == "dot_general"


def test_scales_that_cannot_meet_are_refused():
    def stage():
        b = Builder(M, 1, 1)
        b.begin(-1)
        x, y = b.end([b.input(k, np.ones(M, bool)) for k in range(2)])
        one = b.pack(vectors(b, [np.zeros(1)], [1.0])), 0
        b.begin(0)
        return b, x, y, one

    b, x, y, one = stage()
    kept = b.dot_plain([(x, one)])
    with pytest.raises(AssertionError, match="different scales"):
        b.add([(1, kept), (1, y)])
    with pytest.raises(AssertionError, match="triple scale at most"):
        b.dot([(1, kept, kept)])
    with pytest.raises(AssertionError, match="are rescaled"):
        b.end([kept])
    b, x, y, one = stage()
    kept = b.dot_plain([(x, one)])
    product = b.rescale(b.dot([(1, kept, y)]))
    with pytest.raises(AssertionError, match="share a level"):
        b.end([product, b.rescale(kept)])
    b, x, y, one = stage()
    kept = b.dot_plain([(x, one)])
    b.rescale(kept)
    product = b.rescale(b.dot([(1, kept, y)]))
    with pytest.raises(AssertionError, match="not both"):
        b.end([product])
    b, x, y, one = stage()
    product = b.relinearize(b.dot([(1, x, y)]))
    total = b.rescale(b.dot([(1, product, y)]))
    with pytest.raises(AssertionError, match="only masked nodes"):
        b.end([total])
