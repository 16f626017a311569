"""Strangers at an evaluator's door: heard beside each other, shown out in time, and no burden."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from he_backend.owners import door
from he_backend.owners.addresses import Address, dial
from he_backend.owners.certificates import Certificates
from he_backend.owners.door import Door, Visitor, refuse
from he_backend.processes.messages import packed, receive, send


class Open:
    """A door whose visitors are sent home with a greeting."""

    def __init__(self, address: Address, certificates: Certificates | None = None):
        self.taken: list[tuple[Visitor, dict[str, Any]]] = []
        self.door = Door(address, certificates, self._take, logging.getLogger("test"))
        self.thread = threading.Thread(target=self.door.serve)
        self.thread.start()

    def _take(self, visitor: Visitor, header: dict[str, Any]) -> None:
        self.taken.append((visitor, header))
        if header.get("type") == "refuse me":
            refuse(visitor, "as it wishes", self.door.log)
            return
        send(visitor.link, {"type": "hello"})
        visitor.link.close()

    def close(self) -> None:
        self.door.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def local(tmp_path) -> Iterator[Open]:
    with contextlib.closing(Open(Address(path=str(tmp_path / "s")))) as found:
        yield found


@pytest.fixture
def remote(certificates) -> Iterator[Open]:
    found = Open(Address(host="127.0.0.1", port=0), Certificates(certificates[0]))
    with contextlib.closing(found):
        yield found


def greeted(link: socket.socket) -> bool:
    link.settimeout(10)
    send(link, {"type": "hello"})
    return receive(link) == ({"type": "hello"}, [])


def shown_out(link: socket.socket) -> bool:
    link.settimeout(10)
    with contextlib.suppress(ConnectionError):
        return link.recv(1) == b""
    return True


def test_the_silent_and_the_slow_are_shown_out_and_hold_nobody_up(local, monkeypatch):
    monkeypatch.setattr(door, "_PATIENCE_SECONDS", 0.5)
    silent, slow = dial(local.door.address), dial(local.door.address)
    words = packed({"type": "hello"})
    began = time.monotonic()
    with dial(local.door.address) as link:
        assert greeted(link)
    for k in range(len(words) - 1):  # each byte in time, all of them not
        with contextlib.suppress(OSError):
            slow.sendall(words[k : k + 1])
        time.sleep(0.04)
    assert shown_out(silent) and shown_out(slow)
    assert time.monotonic() - began < 5
    assert [header for _, header in local.taken] == [{"type": "hello"}]


@pytest.mark.parametrize(
    "words", [b"x" * 64, packed({"type": "hello"}, [9]), packed({"t": "x" * (1 << 15)}), b"heM1"]
)
def test_other_words_are_not_listened_to(local, words):
    with dial(local.door.address) as link:
        with contextlib.suppress(OSError):
            link.sendall(words)
            link.shutdown(socket.SHUT_WR)
        assert shown_out(link)
    assert local.taken == []


def test_a_crowd_takes_no_place_of_one_who_speaks(local):
    crowd = [dial(local.door.address) for _ in range(3 * door._STRANGERS)]
    with dial(local.door.address) as link:
        assert greeted(link)
    assert sum(shown_out(link) for link in crowd[: door._STRANGERS]) == door._STRANGERS
    assert len(local.door._strangers) <= door._STRANGERS
    for link in crowd:
        link.close()


def test_another_user_is_shown_out(local, monkeypatch):
    monkeypatch.setattr("he_backend.owners.door.os.geteuid", lambda: 12345)
    with dial(local.door.address) as link:
        assert shown_out(link)
    assert local.taken == []


def test_half_open_tls_links_hold_nobody_up(remote, certificates, monkeypatch):
    monkeypatch.setattr(door, "_PATIENCE_SECONDS", 1.0)
    address, mine = remote.door.address, Certificates(certificates[1])
    half = [dial(address) for _ in range(5)]
    half[0].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
    half[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    wrapped = mine.wrap(dial(address), server=False)
    mine.shake_hands(wrapped)  # says nothing after it
    link = mine.wrap(dial(address), server=False)
    mine.shake_hands(link)
    assert greeted(link)
    assert all(shown_out(each) for each in (half[0], *half[2:], wrapped))
    assert len(remote.taken) == 1
    for each in (*half, wrapped, link):
        each.close()


def test_refusals_come_at_times_that_tell_nothing(local, monkeypatch):
    monkeypatch.setattr(door, "_REFUSAL_SECONDS", 0.3)
    for wait in (0.0, 0.1, 0.35):
        began = time.monotonic()
        with dial(local.door.address) as link:
            time.sleep(wait)
            send(link, {"type": "refuse me"})
            assert receive(link) == ({"type": "refused"}, [])
        passed = time.monotonic() - began
        assert 0 <= passed % 0.3 < 0.15 and passed > 0.29


def test_a_closed_door_leaves_no_socket_and_no_stranger(tmp_path):
    place = tmp_path / "s"
    opened = Open(Address(path=str(place)))
    link = dial(opened.door.address)
    opened.close()
    assert shown_out(link) and not place.exists()
    link.close()
