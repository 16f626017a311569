"""Cost tables: which one is in use, what it says, and memory."""

from collections import Counter

import numpy as np
import pytest

import hesim
from hesim.circuit.circuit import Kind
from hesim.circuit.cost import instruction_seconds
from hesim.circuit.costs.memory import cipher_bytes, run_bytes, staying_bytes
from hesim.circuit.costs.table import VARIABLE, CostTable, OperationCost, current, using
from hesim.errors import ParameterError


@pytest.fixture
def doubled() -> CostTable:
    table = CostTable.shipped()
    costs = {
        name: OperationCost(2 * c.fixed, (2 * c.each[0], 2 * c.each[1], 2 * c.each[2]))
        for name, c in table.operations.items()
    }
    return CostTable("twice", costs, table.base_bytes, table.table_bytes, table.key_factor)


@pytest.fixture(scope="module")
def program():
    w = np.linspace(-1, 1, 64).reshape(8, 8)
    return hesim.trace(lambda x: (x @ w) * x, np.ones(8))


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_a_file_of_costs_changes_predictions_and_is_named(
    program, doubled, tmp_path, monkeypatch, small_params
):
    monkeypatch.delenv(VARIABLE, raising=False)
    params = small_params(levels=2)
    before = hesim.compile(program, params).ledger
    path = tmp_path / "own" / "costs.json"
    doubled.save(path)
    monkeypatch.setenv(VARIABLE, str(path))
    after = hesim.compile(program, params).ledger
    assert after.seconds == pytest.approx(2 * before.seconds)
    assert (before.costs, after.costs) == (CostTable.shipped().name, "twice")
    assert "twice" in str(after)


def test_a_table_that_is_given_comes_before_the_environment(doubled, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent.json"))
    with using(doubled):
        assert current() is doubled
    with pytest.raises(FileNotFoundError, match="absent"):
        current()


@pytest.mark.parametrize("held", ["{}", "no JSON", '{"format": 99}'])
def test_files_that_are_no_table_are_refused(held, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(held)
    with pytest.raises(ParameterError, match=r"costs\.json"):
        CostTable.load(path)


def test_costs_grow_with_level_ring_and_terms():
    kinds = [k for k in vars(Kind).values() if isinstance(k, int) and k != Kind.REFRESH]
    for kind in kinds:
        for level in range(20):
            here = instruction_seconds(kind, level, 3, 14)
            assert 0 < here < instruction_seconds(kind, level + 1, 3, 14)
            assert here < instruction_seconds(kind, level, 3, 15)
            assert here <= instruction_seconds(kind, level, 4, 14)


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_ciphertexts_alive_are_those_with_uses_to_come(program, small_params):
    circuit = hesim.compile(program, small_params(levels=2))
    arrays = ("kind", "level", "arg_ptr", "arg", "arg2")
    data = {name: getattr(circuit, name) for name in arrays}
    last, most = circuit.last_uses, Counter()
    for i in range(len(circuit)):
        alive = [c for c in range(i + 1) if max(last[c], c) >= i]
        sizes = Counter(
            circuit.params.ciphertext_bytes(int(circuit.level[c]), int(circuit.components[c]))
            for c in alive
        )
        most |= sizes
    expected = sum(size * count for size, count in most.items())
    assert len(most) > 2
    assert circuit.ledger.cipher_bytes == cipher_bytes(circuit.params, data) == expected


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_a_run_takes_more_memory_with_more_processes(program, small_params):
    circuit = hesim.compile(program, small_params(levels=2))
    processes = ((1, 1), (2, 1), (2, 2))
    one, two, three = (run_bytes(circuit.params, circuit.ledger, *n) for n in processes)
    assert circuit.ledger.peak_bytes < one < two < three
    assert circuit.ledger.key_bytes < circuit.ledger.peak_bytes


@pytest.mark.filterwarnings("ignore:INSECURE")
def test_what_stays_encoded_for_batch_after_batch_is_bounded_and_predicted(program, small_params):
    """A fifth of what is free; with a limit on memory, most of what that leaves."""
    free = 16 << 30
    assert staying_bytes(None, free) == 3 << 30
    assert staying_bytes(1 << 30, free) == 3 << 28
    assert staying_bytes(1 << 40, free) == 9 << 30
    circuit = hesim.compile(program, small_params(levels=2))
    alone = run_bytes(circuit.params, circuit.ledger, 1, 1)
    held = [
        run_bytes(circuit.params, circuit.ledger, 1, 1, None, n) - alone for n in (0, 100, free)
    ]
    assert held == [0, 100, circuit.ledger.plaintext_bytes] and held[2] > 100


def test_rings_with_digits_are_planned_by_the_costs_of_their_library(tmp_path, monkeypatch):
    with pytest.warns(hesim.params.InsecureParametersWarning):
        params = hesim.CKKSParams(11, 3, 40, 50, 60, security=None, digits=2)
    program = hesim.trace(lambda x: x * x, np.ones(8))
    assert "OpenFHE" in hesim.compile(program, params).ledger.costs
    with using(CostTable.shipped()):
        assert "OpenFHE" not in hesim.compile(program, params).ledger.costs
    CostTable.shipped().save(tmp_path / "own.json")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own.json"))
    assert "OpenFHE" not in hesim.compile(program, params).ledger.costs
