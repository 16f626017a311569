"""Malformed messages at every place where an evaluator listens: no crash, no hang, no leak.

Few at each place by default; ten thousand in all among the slow tests.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from he_backend.errors import BackendError, PeerGoneError
from he_backend.owners import door, keysets, wire
from he_backend.owners.addresses import Address, dial
from he_backend.owners.door import Visitor
from he_backend.owners.keysets import KeySet
from he_backend.owners.service import Service, Settings
from he_backend.processes.memory import resident_bytes
from he_backend.processes.messages import packed, receive, send
from hesim.errors import HesimError
from tests.he_backend.owners.conftest import MASK, X, exact

FEW, MANY = 25, 2500

counts = pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def altered(draw: Callable[..., Any], message: bytes) -> bytes:
    """A message cut, flipped, doubled, or with other bytes before it."""
    data = bytearray(message)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "double"]))
        if how == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            data += data[: 1 << 12]
    return bytes(data)


@st.composite
def changed(draw: Callable[..., Any], header: dict[str, Any], blobs: list[bytes]) -> bytes:
    """A message of the right form with other entries, or other blobs."""
    found = dict(header)
    for name in draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=2)):
        if draw(st.booleans()):
            found.pop(name, None)
        else:
            found[name] = draw(plain_json)
    own = draw(st.sampled_from([blobs, [], [*blobs, b"x"], [b[:-1] for b in blobs]]))
    text = json.dumps(found)
    return packed(json.loads(text) if "NaN" not in text else {}, list(map(len, own))) + b"".join(
        own
    )


def messages(header: dict[str, Any], blobs: list[bytes]) -> st.SearchStrategy[bytes]:
    """Whatever is not this message."""
    right = packed(header, list(map(len, blobs))) + b"".join(blobs)
    wrong = st.one_of(st.binary(max_size=64), altered(right), changed(header, blobs))
    return wrong.filter(lambda data: not data.startswith(right))


def try_all(
    count: int, strategy: st.SearchStrategy[bytes], attempt: Callable[[bytes], None]
) -> None:
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(strategy)
    def each(data: bytes) -> None:
        attempt(data)

    each()


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    monkeypatch.setattr(door, "_REFUSAL_SECONDS", 0.001)
    logging.getLogger("he_backend.owners").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Descriptors, threads and memory are what they were."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    time.sleep(0.2)  # what was begun before opens what it needs
    before, resident = held(), resident_bytes()
    yield
    end = time.monotonic() + 15
    while held() > before and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    assert held() <= before
    assert resident_bytes() < resident + (64 << 20)


@counts
def test_at_the_door(serving, connecting, bundle, count):
    hello = wire.hello(bundle.digest, "slots", "0" * 64)
    either = messages(hello, []) | messages(wire.link_hello("0" * 32), [])
    with serving() as evaluator:
        address = Address.parse(evaluator.address)

        def attempt(data: bytes) -> None:
            with dial(address) as link, contextlib.suppress(OSError):
                link.settimeout(20)
                link.sendall(data)
                link.shutdown(socket.SHUT_WR)
                said = b"".join(iter(lambda: link.recv(1 << 12), b""))
                # Another digest of keys is that of a key set which is not known yet.
                welcome = b'"welcome"' in said and said.endswith(packed({"type": "refused"}))
                assert welcome or said in (b"", packed({"type": "refused"}))

        with nothing_left():
            try_all(count, either, attempt)
        with connecting(evaluator) as session:
            np.testing.assert_allclose(session.run(X, MASK)["out"], exact(X, MASK), atol=1e-6)


class Stub:
    """A server's process that is none: what it is told is thrown away."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        send(self.theirs, {"type": "ready", "processes": {}, "jax": False, "peak": 0})
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while self.theirs.recv(1 << 16):
                continue
        self.theirs.close()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[socket.socket]:
        with self.ours:
            yield self.ours


@counts
def test_of_an_admitted_key_holder(bundle, tmp_path, count):
    opens = [np.zeros(4).tobytes()]
    batch = {"type": "batch", "name": "0" * 32, "missing": [], "served": [1]}
    keys = KeySet(tmp_path, "peer", wire.digest_of_keys({}), bundle, "slots")
    keys.folders.keys.mkdir(parents=True)
    keys.folders.key_manifest.write_text('{"files": {}}')

    def attempt(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        service = Service(Visitor(theirs, 0.0, "it"), keys, Settings("slots"), LOG)
        service._server = Stub()  # type: ignore[method-assign]
        thread = threading.Thread(target=service.run)
        thread.start()
        ours.settimeout(20)
        with ours, contextlib.suppress(OSError):
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            while ours.recv(1 << 12):
                continue
        thread.join(20)
        assert not thread.is_alive()

    mixed = messages(batch, opens) | messages({"type": "begin"}, []) | messages({"type": "x"}, [])
    with nothing_left():
        try_all(count, mixed, attempt)
    assert sorted(p.name for p in tmp_path.iterdir()) == [keys.folders.server.name]


LOG = logging.getLogger("he_backend.owners")


@counts
def test_in_the_place_of_keys(bundle, tmp_path, count):
    steps = [int(s) for s in bundle.circuit.rotation_steps if s]
    sizes = keysets.find("pyfhel").load().key_sizes(bundle.circuit.params, steps)
    files = {name: [size, "0" * 64] for name, size in sizes.items()}
    keys = KeySet(tmp_path, "peer", wire.digest_of_keys(files), bundle, "pyfhel")
    name = sorted(files)[0]
    listed = packed({"type": "keys", "files": files})

    def attempt(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(20)
        with ours, theirs:
            sender = threading.Thread(target=_send_all, args=(ours, data))
            sender.start()
            with pytest.raises((HesimError, BackendError)):
                keys.receive(theirs)
            theirs.close()
            sender.join(20)
        assert not keys.known and not (tmp_path / "receiving").exists()

    manifest = messages({"type": "keys", "files": files}, [])
    part = messages({"type": "part", "name": name, "at": 0}, [bytes(64)])
    whole = st.binary(min_size=1, max_size=64).map(
        lambda data: (
            packed({"type": "part", "name": name, "at": 0}, [sizes[name]])
            + (data * (sizes[name] // len(data) + 1))[: sizes[name]]
        )
    )
    with nothing_left():
        try_all(count, manifest | (part | whole).map(lambda data: listed + data), attempt)


def _send_all(link: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)


@counts
def test_instead_of_a_handshake(serving, connecting, certificates, count):
    ours, theirs = certificates
    begin = bytes.fromhex("16030100") + bytes(60)
    with serving(address="127.0.0.1:0", certificates=ours) as evaluator:
        address = Address.parse(evaluator.address)

        def attempt(data: bytes) -> None:
            with dial(address) as link, contextlib.suppress(OSError):
                link.settimeout(20)
                link.sendall(data)
                link.shutdown(socket.SHUT_WR)
                while link.recv(1 << 12):
                    continue

        with nothing_left():
            try_all(count, st.binary(max_size=200) | altered(begin), attempt)
        with connecting(evaluator, certificates=theirs) as session:
            np.testing.assert_allclose(session.run(X, MASK)["out"], exact(X, MASK), atol=1e-6)


def test_on_a_clients_link_it_ends_the_visit_and_nothing_more(serving, connecting, log, tmp_path):
    def strange(progress: Any) -> None:
        if progress.tasks_done == 1:
            for link in strangers[::-1]:
                with contextlib.suppress(OSError):
                    link.sendall(b"x" * 4096)

    strangers: list[socket.socket] = []
    with serving() as evaluator, connecting(evaluator, progress=strange) as session:
        session.run(X, MASK)
        token = evaluator._service.token
        for words in (b"x" * 100, packed({"type": "done", "seconds": 0.0}), b""):
            link = dial(Address.parse(evaluator.address))
            send(link, wire.link_hello(token))
            link.sendall(words)
            strangers.append(link)
        with contextlib.suppress(BackendError):
            session.run(X, 1 - MASK)
        for link in strangers:
            link.close()
        np.testing.assert_allclose(
            session.run(X, 1 - MASK, batch="1")["out"], exact(X, 1 - MASK), atol=1e-6
        )


def test_what_was_said_before_serves_nobody_again(serving, connecting, bundle, log):
    """A hello, a token or a whole conversation that somebody recorded."""
    with serving() as evaluator:
        with connecting(evaluator) as session:
            session.run(X, MASK)
            token = evaluator._service.token
        with dial(Address.parse(evaluator.address)) as link:
            send(link, wire.link_hello(token))
            assert receive(link) == ({"type": "refused"}, [])
        with dial(Address.parse(evaluator.address)) as link:
            link.settimeout(20)
            send(link, wire.hello(bundle.digest, "slots", wire.digest_of_keys({})))
            assert receive(link)[0]["keys"] == "known"
            assert receive(link)[0]["type"] == "ready"
            batch = {"type": "batch", "name": "0" * 32, "missing": [], "served": []}
            for _ in range(2):
                send(link, batch, [np.ones(4).tobytes()])
            said = []
            with pytest.raises(PeerGoneError):
                while True:
                    said.append(receive(link)[0]["type"])
            assert said in (["ended"], ["batch", "ended"])
    assert "for which it is not the time" in log()
