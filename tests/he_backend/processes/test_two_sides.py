"""Client and server, each with the test in the place of the other: refusals, and bad blobs."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import numpy as np
import pytest

from he_backend.errors import (
    BackendError,
)
from he_backend.machines.pyfhel.machine import PyfhelMachine
from he_backend.processes.messages import receive, send


@pytest.fixture
def served(job, started, tmp_path, monkeypatch):
    """Two clients of a run, for a test that plays the server: [(link, control), ...]."""
    monkeypatch.chdir(tmp_path)
    start, begin = started
    found = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen()
        for _ in range(2):
            control = start("client")
            link, _ = listener.accept()
            link.settimeout(30)
            assert receive(link)[0] == {"type": "hello", "role": "client"}
            begin("client", control)
            found.append((link, control))
    yield found
    for link, _ in found:
        link.close()


def inputs_taken(link) -> None:
    send(link, {"type": "input", "instructions": [0, 1]})
    assert receive(link)[0]["type"] == "done"


def silent(link) -> bool:
    """Whether the peer has closed its side without another word."""
    return link.recv(1) == b""


@pytest.mark.parametrize("how", ["truncated", "altered", "foreign", "garbage", "nested", "huge"])
def test_a_refusal_is_one_word_and_the_last(job, served, how):
    """Whatever is wrong, the server hears the same, and no client answers it any more."""
    circuit, params = job.circuit, job.circuit.params
    first, second = (int(i) for i in np.flatnonzero(circuit.kind == 9)[:2])
    argument = int(circuit.arg[circuit.args(first)][0])
    machine = PyfhelMachine(params, circuit.slots)
    machine.load_public_key(job.folders.keys / "public.key")
    level, scale = int(circuit.level[argument]), float(circuit.scale[argument])
    good = machine.to_bytes(machine.encrypt(0.5, level, scale))
    (link, control), (other, others_control) = served
    inputs_taken(link)
    blob = {"truncated": good[:-8], "altered": good[:-8] + b"\xff" * 8}.get(how, good)
    if how == "foreign":
        foreign = PyfhelMachine.generate(params, (), circuit.slots)
        blob = foreign.to_bytes(foreign.encrypt(0.5, level, scale))
    if how == "garbage":
        link.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    elif how == "nested":
        link.sendall(struct.pack("<4sII", b"heM1", 8000, 0) + b"[" * 8000)
    elif how == "huge":
        link.sendall(struct.pack("<4sII", b"heM1", 50, 4096))
        link.sendall(f'{{"type":"refresh","instructions":[{first}]}}'.ljust(50).encode())
        link.sendall(struct.pack("<Q", 1 << 31) * 4096)
    else:
        send(link, {"type": "refresh", "instructions": [first]}, [blob])
    assert receive(link) == ({"type": "refused"}, [])
    told = receive(control)[0]["error"]
    assert told["kind"] == {"foreign": "ValueRangeError", "garbage": "ProtocolError"}.get(
        how, "ProtocolError" if how == "nested" else "BlobError"
    )
    if how not in ("garbage", "nested"):
        assert told["operation"] and "model.py" in told["source"]
    assert silent(link)
    send(other, {"type": "refresh", "instructions": [second]}, [good])
    assert silent(other), "the other client has ended too"
    assert "had ended" in receive(others_control)[0]["error"]["text"]
    for each in (control, others_control):
        send(each, {"type": "stop"})
        stopped = receive(each)[0]
        assert stopped["type"] == "stopped" and stopped["peak"] < 1 << 28, "no memory was taken"


@pytest.mark.parametrize("how", ["truncated", "altered", "foreign"])
def test_the_server_refuses_bad_blobs_of_a_client(job, started, tmp_path, monkeypatch, how):
    """The test plays the client."""
    monkeypatch.chdir(tmp_path)
    start, begin = started
    control = start("server")
    begin("server", control)
    assert Path("s").stat().st_mode & 0o777 == 0o600
    circuit, params = job.circuit, job.circuit.params
    machine = PyfhelMachine.generate(params, (), circuit.slots)
    if how == "foreign":
        other = type(params)(11, 3, 41, 50, 60, security=None)
        machine = PyfhelMachine.generate(other, (), circuit.slots)
    with socket.socket(socket.AF_UNIX) as link:
        link.connect("s")
        send(link, {"type": "hello", "role": "client"})
        request, _ = receive(link)
        assert request["type"] == "input"
        blob = machine.to_bytes(machine.encrypt(0.5, 3, machine.params.scale(3)))
        blobs = [blob for _ in request["instructions"]]
        blobs[-1] = {"truncated": blob[:-8], "altered": blob[:-8] + b"\xff" * 8, "foreign": blob}[
            how
        ]
        try:
            send(link, {"type": "done", "seconds": 0.0}, blobs)
        except BackendError:
            assert how == "truncated", "the server hangs up as soon as it sees the lengths"
        reported = receive(control)[0]
    assert reported["type"] == "error" and reported["error"]["kind"] == "BlobError"
