"""What a server may ask of the key holder, and what it learns when it asks for more."""

from __future__ import annotations

import numpy as np
import pytest

from he_backend.errors import BackendError, BlobError, ProtocolError, ValueRangeError
from he_backend.keyholder import KeyHolder
from he_backend.machines.slots import SlotsMachine
from he_backend.processes.exchange import Exchange, begin_attempt, requested
from hesim.circuit.circuit import Circuit
from hesim.circuit.plain.execute import Executor


@pytest.fixture
def circuit(draft, rng) -> Circuit:
    """Inputs 0 and 1; refreshes 3 (of input 0), 5 (of input 1) and 8 (of both); output 9."""
    a, b = draft.input(rng.uniform(-1, 1, 32)), draft.input(rng.uniform(-1, 1, 32))
    c = draft.refresh(draft.rotate(a, 1), 2)
    d = draft.refresh(draft.rotate(b, 1), 2)
    e = draft.refresh(draft.rescale(draft.dot((1, c, d))), 2)
    return draft.circuit(draft.rotate(e, 1))


@pytest.fixture
def exchange(tmp_path, circuit) -> Exchange:
    begin_attempt(tmp_path / "exchange.jsonl", "run", circuit)
    return Exchange(tmp_path / "exchange.jsonl", "run", circuit)


def another(exchange: Exchange, run: str = "run") -> Exchange:
    """What a second client of the run, or a later attempt, reads."""
    return Exchange(exchange.path, run, exchange.circuit)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("refresh", [6]),
        ("refresh", [0]),
        ("refresh", [10]),
        ("refresh", [-1]),
        ("input", [3]),
        ("decrypt", [8]),
        ("decrypt", [-1]),
        ("decrypt", [3]),
        (None, [3]),
        ("refresh", []),
        ("refresh", [3, 3]),
        ("refresh", [3.0]),
        ("refresh", [True]),
        ("refresh", "3"),
        ("refresh", None),
        ("refresh", list(range(17))),
        (["refresh"], [3]),
    ],
)
def test_only_what_the_circuit_has_is_served(circuit, kind, numbers):
    with pytest.raises(ProtocolError, match="the server"):
        requested(circuit, frozenset([9]), {"type": kind, "instructions": numbers})


def test_what_the_circuit_has_is_served(circuit):
    for kind, numbers in (("input", [1, 0]), ("refresh", [3, 8, 5]), ("decrypt", [9])):
        header = {"type": kind, "instructions": numbers}
        assert requested(circuit, frozenset([9]), header) == numbers


def test_nothing_is_served_before_what_it_depends_on(exchange):
    with pytest.raises(ProtocolError, match="before"):
        exchange.claim("refresh", [3])
    exchange.claim("input", [1])
    with pytest.raises(ProtocolError, match="before"):
        exchange.claim("refresh", [5, 3])
    exchange.claim("refresh", [5])
    exchange.claim("input", [0])
    for kind, i in (("refresh", 8), ("decrypt", 9)):
        with pytest.raises(ProtocolError, match=f"{kind} {i} before"):
            exchange.claim(kind, [i])
    exchange.claim("refresh", [3])
    exchange.claim("refresh", [8])
    exchange.claim("decrypt", [9])


def test_each_is_served_once_in_an_attempt_whichever_client_is_asked(exchange, circuit):
    other = another(exchange)
    exchange.claim("input", [0])
    other.claim("refresh", [3])
    for client in (exchange, other, another(exchange)):
        for kind, i in (("input", 0), ("refresh", 3)):
            with pytest.raises(ProtocolError, match="a second time"):
                client.claim(kind, [i])
    assert begin_attempt(exchange.path, "run", circuit) == [0, 3]
    other.claim("refresh", [3])
    with pytest.raises(ProtocolError, match="before"):
        other.claim("refresh", [5])


def test_after_a_refusal_no_client_serves_until_the_next_attempt(exchange, circuit):
    other = another(exchange)
    with exchange.held():
        exchange.end()
    for client in (exchange, other, another(exchange)):
        with pytest.raises(ProtocolError, match="had ended"):
            client.claim("input", [0])
    begin_attempt(exchange.path, "run", circuit)
    other.claim("input", [0])


def test_a_record_of_another_run_or_a_damaged_one_says_nothing(exchange):
    exchange.claim("input", [0, 1])
    assert another(exchange).served == {0, 1} and not another(exchange, "other run").served
    data = bytearray(exchange.path.read_bytes())
    data[-50] ^= 1
    exchange.path.write_bytes(data[:-1])
    torn = another(exchange)
    assert not torn.served
    torn.claim("input", [1])
    assert another(exchange).served == {1}


@pytest.fixture
def holder(circuit, draft, params, tmp_path, monkeypatch) -> KeyHolder:
    """It counts its decryptions in `opened`."""
    machine = SlotsMachine(params, 32, [1])
    ranges = {2: (-2.0, 2.0), 4: (-2.0, 2.0)}
    holder = KeyHolder(circuit, machine, draft.input_values, ranges, tmp_path, "run")
    whole = machine.decrypt
    holder.opened = 0  # type: ignore[attr-defined]

    def decrypt(cipher):
        holder.opened += 1  # type: ignore[attr-defined]
        return whole(cipher)

    monkeypatch.setattr(machine, "decrypt", decrypt)
    return holder


def blob(holder: KeyHolder, c: int, value: float) -> bytes:
    level, scale = int(holder.circuit.level[c]), float(holder.circuit.scale[c])
    return holder.machine.to_bytes(holder.machine.encrypt(value, level, scale))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("bad", "error"), [(3.0, ValueRangeError), (None, BlobError)])
def test_the_work_before_a_refusal_does_not_tell_the_place(holder, place, bad, error):
    """All that came is opened, and nothing is encrypted, wherever the fault lies."""
    blobs = [blob(holder, 2, 1.0), blob(holder, 4, 1.0)]
    blobs[place] = b"x" * len(blobs[place]) if bad is None else blob(holder, 2, bad)
    holder.machine.encrypt = None  # type: ignore[assignment,method-assign]
    with pytest.raises(error, match=r"`first` at model\.py:10"):
        holder.answer("refresh", [3, 5], blobs)
    assert holder.opened == (1 if bad is None else 2)  # type: ignore[attr-defined]


def test_nothing_is_decrypted_if_anything_is_refused(holder, tmp_path):
    holder.ranges = {9: (-2.0, 2.0), 8: (-2.0, 2.0)}
    with pytest.raises(ValueRangeError):
        holder.answer("decrypt", [8, 9], [blob(holder, 8, 1.0), blob(holder, 9, 3.0)])
    assert not list(tmp_path.glob("v*"))
    holder.answer("decrypt", [8, 9], [blob(holder, 8, 1.0), blob(holder, 9, 1.0)])
    assert len(list(tmp_path.glob("v*"))) == 2


def test_without_a_range_the_level_bounds_what_is_accepted(holder, params):
    level, scale = int(holder.circuit.level[9]), float(holder.circuit.scale[9])
    limit = 2.0 ** (params.log_q(level) - 1) / scale
    cipher = holder.machine.encrypt(0.9 * limit, level, scale)
    holder.decrypt(9, cipher)
    too_large = type(cipher)(np.full(32, 1.1 * limit), level, scale, 2)
    with pytest.raises(BackendError, match="too large"):
        holder.decrypt(9, too_large)


def test_requests_of_a_run_are_all_served(circuit, draft, exchange, holder):
    """The order in which an honest server asks is one that the record takes."""
    executor = Executor(circuit, holder.machine, [])
    ciphers = {}
    for i in range(len(circuit)):
        kind = {0: "input", 1: "input", 3: "refresh", 5: "refresh", 8: "refresh"}.get(i)
        if kind is None:
            executor.run([i], ciphers)
            continue
        exchange.claim(kind, [i])
        sent = [] if kind == "input" else [holder.machine.to_bytes(ciphers[i - 1])]
        (answer,) = holder.answer(kind, [i], sent)
        level, scale = int(circuit.level[i]), float(circuit.scale[i])
        ciphers[i] = holder.machine.from_bytes(answer, level, scale)
    exchange.claim("decrypt", [9])
    assert holder.answer("decrypt", [9], [holder.machine.to_bytes(ciphers[9])]) == []
