"""Who may join a run, and what those cost who may not."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from he_backend.processes import admission
from he_backend.processes.admission import Admission
from he_backend.processes.messages import packed

_HELLO = packed({"type": "hello", "role": "client", "token": "right"})


class Door:
    """An Admission whose selector is asked as a server does."""

    def __init__(self, place: Path):
        self.place = place
        self.selector = selectors.DefaultSelector()
        self.admission = Admission(place, self.selector, {"token": "right"})
        self.selector.register(self.admission.listener, selectors.EVENT_READ)
        self.admitted: list[socket.socket] = []
        self.visitors: list[socket.socket] = []

    def visit(self, words: bytes = b"") -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(5)
        link.connect(str(self.place))
        link.sendall(words)
        self.visitors.append(link)
        self.look()
        return link

    def look(self) -> None:
        """Hear everybody who has something to say, without waiting."""
        while ready := self.selector.select(0):
            for key, _ in ready:
                link = self.admission.hear(key.fileobj)  # type: ignore[arg-type]
                if link is not None:
                    self.admitted.append(link)
        self.admission.show_out_the_silent()


@pytest.fixture
def door(tmp_path, monkeypatch) -> Iterator[Door]:
    monkeypatch.chdir(tmp_path)
    door = Door(Path("s"))
    yield door
    door.admission.close()
    for link in (*door.admitted, *door.visitors):
        link.close()


def shown_out(link: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return link.recv(1) == b""
    return True


def test_the_right_words_admit_however_they_arrive(door):
    assert door.place.stat().st_mode & 0o777 == 0o600
    door.visit(_HELLO)
    slow = door.visit(_HELLO[:5])
    assert len(door.admitted) == 1
    slow.sendall(_HELLO[5:])
    door.look()
    assert len(door.admitted) == 2 and not door.admission.strangers


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        packed({"type": "hello", "role": "client"}),
        packed({"type": "hello", "role": "client", "token": "wrong"}),
        b"heM1" + b"\xff" * 8,
    ],
)
def test_other_words_do_not(door, words):
    link = door.visit(words)
    assert shown_out(link) and not door.admitted and not door.admission.strangers


def test_the_silent_are_heard_without_waiting_and_shown_out_in_time(door, monkeypatch):
    monkeypatch.setattr(admission, "_PATIENCE_SECONDS", 0.0)
    assert door.admission.seconds_left() is None
    silent = door.visit()
    assert shown_out(silent) and not door.admission.strangers
    monkeypatch.setattr(admission, "_PATIENCE_SECONDS", 10.0)
    door.visit(_HELLO[:-1])
    assert 0 < door.admission.seconds_left() <= 10 and not door.admitted


def test_a_crowd_takes_no_place_of_a_client(door):
    crowd = [door.visit() for _ in range(20)]
    assert len(door.admission.strangers) <= 16 and shown_out(crowd[0])
    door.visit(_HELLO)
    assert len(door.admitted) == 1


def test_another_user_is_shown_out(door, monkeypatch):
    monkeypatch.setattr(admission.os, "geteuid", lambda: 12345)
    assert shown_out(door.visit(_HELLO)) and not door.admitted
