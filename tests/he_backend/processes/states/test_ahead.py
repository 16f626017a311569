"""Inputs that a client encrypts ahead: served once, to the batch that they are of, and no other."""

from __future__ import annotations

import numpy as np
import pytest

from he_backend.keyholder import KeyHolder
from he_backend.processes.states.ahead import Ahead, request, take


@pytest.fixture
def work(draft, rng):
    """A Circuit of two inputs, and their values."""
    x, y = rng.uniform(-1, 1, (2, draft.slots))
    a, b = draft.input(x), draft.input(y)
    return draft.circuit(draft.rescale(draft.relinearize(draft.dot((1, a, b))))), [x, y]


@pytest.fixture
def client(work, machine, tmp_path):
    return Ahead(work[0], machine, tmp_path / "ahead")


def encrypt(client: Ahead, header: dict) -> None:
    client.begin(header)
    while client.waiting:
        client.advance()


def test_what_was_encrypted_ahead_is_served_once(work, client, machine, tmp_path):
    circuit, inputs = work
    header = request(tmp_path / "ahead", circuit, "b1", inputs)
    encrypt(client, header)
    assert not list((tmp_path / "ahead").glob("*.npy")), "inputs are gone from there"
    store = client.opened("b1", header["inputs"])
    for i, values in enumerate(inputs):
        blob = take(store, i)
        assert blob is not None and take(store, i) is None
        cipher = machine.from_bytes(blob, int(circuit.level[i]), float(circuit.scale[i]))
        np.testing.assert_allclose(machine.decrypt(cipher), values, atol=2.0**-20)
        direct = KeyHolder(circuit, machine, inputs).answer("input", [i], [])[0]
        assert len(direct) == len(blob) and (direct != blob) is machine.encrypts


def test_another_batch_or_other_inputs_are_encrypted_when_they_are_asked_for(
    work, client, tmp_path
):
    circuit, inputs = work
    header = request(tmp_path / "ahead", circuit, "b1", inputs)
    encrypt(client, header)
    others = request(tmp_path / "elsewhere", circuit, "b1", inputs[::-1])
    assert take(client.opened("b2", header["inputs"]), 0) is None
    assert take(client.opened("b1", others["inputs"]), 0) is None
    path = tmp_path / "ahead" / "c1.ct"
    path.write_bytes(path.read_bytes()[:-1])
    assert take(client.opened("b1", header["inputs"]), 1) is None
    assert take(None, 0) is None
    assert take(client.opened("b1", header["inputs"]), 0) is not None


def test_a_batch_that_begins_ends_its_encryption_and_the_next_one_clears_the_folder(
    work, client, tmp_path
):
    circuit, inputs = work
    header = request(tmp_path / "ahead", circuit, "b1", inputs)
    client.begin(header)
    client.advance()
    store = client.opened("b1", header["inputs"])
    assert store is not None and store.ciphers() == {0} and not client.waiting
    client.begin(request(tmp_path / "ahead", circuit, "b2", inputs))
    assert client.waiting and not store.ciphers()
    client.opened("b1", header["inputs"])
    assert client.waiting, "it is the next one's"


@pytest.mark.parametrize("wrong", ["altered", "gone", "no number"])
def test_inputs_that_cannot_be_encrypted_are_left_to_their_batch(work, client, tmp_path, wrong):
    circuit, inputs = work
    if wrong == "no number":
        inputs = [inputs[0], inputs[1] * np.nan]
    header = request(tmp_path / "ahead", circuit, "b1", inputs)
    path = tmp_path / "ahead" / "1.npy"
    if wrong == "altered":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif wrong == "gone":
        path.unlink()
    encrypt(client, header)
    store = client.opened("b1", header["inputs"])
    assert take(store, 1) is None and not client.waiting
