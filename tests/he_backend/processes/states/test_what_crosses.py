"""What crosses from the client's side to the server's in a training: ciphertexts, public values and
evaluation keys; of sentences, labels, adapters and moments nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.errors import PeerGoneError
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.processes.children import Processes
from he_backend.processes.messages import receive
from hesim.circuit.circuit import Kind
from tests.he_backend.processes.states.test_nothing_decrypts import numbers

STEPS = 3
FILES = {
    *("circuit.npz", "lock", "run.json", "server.log"),
    *(f"keys/{name}" for name in ("keys.json", "public.key", "relin.key", "rotation.key")),
    *(f"batches/STEP/{name}" for name in ("run.json", "journal.jsonl")),
}
"""Beside public values and what steps have left."""


def step(state, x, labels, rate):
    adapter, moment = state
    error = x @ adapter - labels
    moment = 0.5 * moment + x.T @ error * 0.25
    return (adapter - rate * moment, moment), error


class Relay:
    """Stands between the clients and the server's socket, and keeps what goes either way."""

    def __init__(self) -> None:
        self.links: list[tuple[bytearray, bytearray]] = []
        """Of each client what it said, and what it was asked."""

    def at(self, server: str) -> str:
        """Where clients are to connect instead."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(server + "-relay")
        listener.listen()
        threading.Thread(target=self._accept, args=(listener, server), daemon=True).start()
        return server + "-relay"

    def _accept(self, listener: socket.socket, server: str) -> None:
        while True:
            client, _ = listener.accept()
            beyond = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            beyond.connect(server)
            said, asked = bytearray(), bytearray()
            self.links.append((said, asked))
            for ends in ((client, beyond, said), (beyond, client, asked)):
                threading.Thread(target=_carry, args=ends, daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            kept += data
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def messages(data: bytes) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """The messages that were said on a link."""
    ours, theirs = socket.socketpair()

    def feed() -> None:
        with theirs:
            theirs.sendall(data)

    threading.Thread(target=feed, daemon=True).start()
    with ours, contextlib.suppress(PeerGoneError):
        while True:
            yield receive(ours)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each)
    else:
        yield value


@pytest.fixture(scope="module")
def crossed(params, tmp_path_factory):
    """A training in a folder, with all that was said to its server."""
    rng = np.random.default_rng(7)
    state = rng.uniform(-1, 1, 4), rng.uniform(-1, 1, 4)
    batches = [
        (rng.uniform(-1, 1, (4, 4)), rng.uniform(-1, 1, 4), np.float64(0.1 / (k + 1)))
        for k in range(STEPS)
    ]
    program = hesim.trace(step, state, *batches[0], encrypted=(True, True, True, False))
    circuit = hesim.compile(program, params, carried={0: 0})
    relay, told = Relay(), []
    for_client, tell = Processes._for_client, Processes._tell

    def relayed(self: Processes, address: str) -> dict[str, Any]:
        return for_client(self, relay.at(address) if address else address)

    def kept(self: Processes, link: socket.socket, header: dict[str, Any]) -> None:
        if self.children[0].name == "server" and link is self.children[0].link:
            told.append(json.loads(json.dumps(header)))
        tell(self, link, header)

    folder = tmp_path_factory.mktemp("crossed") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Processes, "_for_client", relayed)
        patched.setattr(Processes, "_tell", kept)
        with he_backend.session(program, circuit=circuit, run_dir=folder) as session:
            found = [s.report for s in session.steps((state,), batches, keep=STEPS)]
            results = [session.read(f"step-{k}") for k in range(STEPS)]
    assert len(found) == STEPS and len(relay.links) == 2
    secrets: list[bytes] = []
    for x in (*state, *(part for batch in batches for part in batch[:2])):
        secrets += numbers(x)
    for (adapter, moment), error in results:
        secrets += [*numbers(adapter), *numbers(moment), *numbers(error)]
    publics = [circuit.publics.evaluate(program.flatten((state, *batch))) for batch in batches]
    return circuit, relay, told, folder, secrets, publics


def test_of_messages_from_clients_only_ciphertexts_are_more_than_a_word(crossed, params):
    circuit, relay, _, _, secrets, _ = crossed
    stranger = PyfhelMachine.generate(params, [], circuit.slots)
    given: dict[str, list[int]] = {"input": [], "refresh": [], "decrypt": []}
    for said, asked in relay.links:
        assert not any(secret in said for secret in secrets)
        (hello, nothing), *answers = messages(bytes(said))
        assert hello.keys() == {"type", "role", "token"} and not nothing
        for (request, _), (header, blobs) in zip(messages(bytes(asked)), answers, strict=True):
            assert header.keys() == {"type", "seconds"} and header["type"] == "done"
            kind, instructions = request["type"], request["instructions"]
            given[kind] += instructions
            assert len(blobs) == (0 if kind == "decrypt" else len(instructions))
            for i, blob in zip(instructions, blobs, strict=False):
                cipher = stranger.from_bytes(blob, int(circuit.level[i]), float(circuit.scale[i]))
                assert np.abs(stranger.decrypt(cipher)).max() > 1e3, "it hides what is in it"
    inputs = np.flatnonzero(circuit.kind == Kind.INPUT).tolist()
    carried = [i for _, i in circuit.carried]
    assert len(carried) > 0
    for i in inputs:  # adapters and moments cross once, whatever the number of steps
        assert given["input"].count(i) == (1 if i in carried else STEPS)
    assert not set(given["decrypt"]) & {c for c, _ in circuit.carried}


def test_what_the_caller_tells_the_server_are_names_digests_and_numbers_of_instructions(crossed):
    circuit, _, told, _, _, _ = crossed
    assert sum(header["type"] == "batch" for header in told) == STEPS
    for header in told:
        seconds = {k: v for k, v in header.items() if k.endswith("_seconds")}
        rest = {k: v for k, v in header.items() if k not in seconds}
        assert "ranges" not in rest and "inputs" not in rest
        for value in leaves(rest):
            assert value is None or isinstance(value, str | int), (value, header)
            if isinstance(value, int):
                assert 0 <= value < max(len(circuit), 1 << 16)


def test_files_on_the_servers_side_are_ciphertexts_public_values_and_evaluation_keys(
    crossed, params
):
    circuit, _, _, folder, secrets, publics = crossed
    public = [np.asarray(x, np.float64).tobytes() for batch in publics for x in batch]
    stranger = PyfhelMachine.generate(params, [], circuit.slots)
    carried = {f"c{c}.ct": c for c, _ in circuit.carried}
    found: set[str] = set()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        assert not any(secret in data for secret in secrets), path
        name = str(path.relative_to(folder))
        if path.parent.name == "operands":
            assert np.load(io.BytesIO(data)).tobytes() in public, "a public value of some step"
        elif path.parent.name == "carried":
            c = carried[path.name]
            level, scale = int(circuit.level[c]), float(circuit.scale[c])
            blob = data[: stranger.cipher_size(2, level)]  # a digest follows
            cipher = stranger.from_bytes(blob, level, scale)
            assert np.abs(stranger.decrypt(cipher)).max() > 1e3, "it hides what is in it"
            found.add(path.parent.name)
        else:
            found.add(re.sub(r"step-\d+", "STEP", name))
    assert found == FILES | {"carried"}
