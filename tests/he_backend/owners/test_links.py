"""Addresses, certificates, and bytes that are carried between links."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from he_backend.errors import BackendError, EvaluatorGoneError, ProtocolError
from he_backend.owners.addresses import Address, dial, listen
from he_backend.owners.certificates import Certificates, make_certificate, make_pair
from he_backend.owners.pump import plain, pump


@pytest.mark.parametrize("text", ["unix:/run/x", "localhost:7700", "[::1]:80", "10.0.0.7:65535"])
def test_an_address_reads_as_it_is_written(text):
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "x", "host:", ":7", "h:65536", "h:-1", "unix:" + "x" * 200])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(BackendError, match="address|longer"):
        Address.parse(text)


def test_a_socket_is_its_users_own_and_one_that_is_left_over_is_replaced(tmp_path):
    address = Address.parse(f"unix:{tmp_path / 's'}")
    with listen(address):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        with pytest.raises(BackendError, match="somebody listens"):
            listen(address)
    with pytest.raises(EvaluatorGoneError, match="hesim serve"):
        dial(address)
    with listen(address), dial(address):
        pass
    (tmp_path / "file").write_text("kept")
    with pytest.raises(BackendError, match="no socket"):
        listen(Address.parse(f"unix:{tmp_path / 'file'}"))
    assert (tmp_path / "file").read_text() == "kept"


def test_both_sides_have_each_others_certificate_and_a_key_of_their_own(certificates):
    ours, theirs = certificates
    assert (ours / "own.crt").read_bytes() == (theirs / "peer.crt").read_bytes()
    assert (ours / "own.key").read_bytes() != (theirs / "own.key").read_bytes()
    assert all(stat.S_IMODE((side / "own.key").stat().st_mode) == 0o600 for side in certificates)
    with pytest.raises(BackendError, match="has a certificate already"):
        make_certificate(ours, "again")


def test_certificates_that_cannot_be_used_are_named(certificates, tmp_path, monkeypatch):
    side = Path(shutil.copytree(certificates[0], tmp_path / "side"))
    os.chmod(side / "own.key", 0o640)
    with pytest.raises(BackendError, match="others may read .*own.key"):
        Certificates(side)
    os.chmod(side / "own.key", 0o600)
    (side / "peer.crt").write_text("no certificate")
    with pytest.raises(BackendError, match="cannot be used"):
        Certificates(side)
    (side / "peer.crt").unlink()
    with pytest.raises(BackendError, match="peer.crt is missing"):
        Certificates(side)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendError, match="apt-get install openssl"):
        make_certificate(tmp_path / "new", "x")


def shake(server: Certificates, client: Certificates) -> tuple[list, list]:
    """What either side says of a handshake, and of a first byte: its error, or the peer's name."""
    one, other = socket.socketpair()
    said: tuple[list, list] = ([], [])

    def side(place: int, certificates: Certificates, link: socket.socket) -> None:
        link.settimeout(10)
        with contextlib.closing(certificates.wrap(link, server=place == 0)) as wrapped:
            try:
                said[place].append(certificates.shake_hands(wrapped))
                wrapped.send(b"x")
                said[place].append(wrapped.recv(1))
            except (ProtocolError, OSError) as error:
                said[place].append(error)

    thread = threading.Thread(target=side, args=(1, client, other))
    thread.start()
    side(0, server, one)
    thread.join()
    return said


def test_only_the_one_certificate_that_is_known_is_accepted(certificates, tmp_path):
    ours, theirs = map(Certificates, certificates)
    assert [said[1] for said in shake(ours, theirs)] == [b"x", b"x"]
    strangers = [Certificates(side) for side in make_pair(tmp_path / "other")]
    for server, client in ((ours, strangers[1]), (strangers[0], theirs), (ours, ours)):
        said = shake(server, client)
        assert isinstance(said[0][0], ProtocolError)
        assert not any(entry == b"x" for entries in said for entry in entries)


def test_a_certificate_signed_by_the_known_one_is_another(certificates, tmp_path):
    ours, theirs = certificates
    forged = tmp_path / "forged"
    forged.mkdir()
    run = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    run += ["-nodes", "-subj", "/CN=another", "-keyout", forged / "own.key", "-out", "r"]
    subprocess.run(run, check=True, capture_output=True, cwd=tmp_path)
    sign = ["openssl", "x509", "-req", "-in", "r", "-CA", theirs / "own.crt", "-CAkey"]
    sign += [theirs / "own.key", "-CAcreateserial", "-out", forged / "own.crt", "-days", "9"]
    subprocess.run(sign, check=True, capture_output=True, cwd=tmp_path)
    (forged / "peer.crt").write_bytes((ours / "own.crt").read_bytes())
    os.chmod(forged / "own.key", 0o600)
    server, _ = shake(Certificates(ours), Certificates(forged))
    assert isinstance(server[0], ProtocolError) and "another than" in str(server[0])


def test_several_key_holders_are_known_by_one_file(certificates, tmp_path):
    ours, theirs = certificates
    other, second = make_pair(tmp_path / "second")
    both = Path(shutil.copytree(ours, tmp_path / "both"))
    known = [(side / "own.crt").read_text() for side in (theirs, second)]
    (both / "peer.crt").write_text("".join(known))
    (second / "peer.crt").write_bytes((ours / "own.crt").read_bytes())
    names = []
    for holder in (theirs, second):
        said = shake(Certificates(both), Certificates(holder))
        assert [entries[1] for entries in said] == [b"x", b"x"]
        names.append(said[0][0])
    assert names[0] != names[1]
    assert isinstance(shake(Certificates(both), Certificates(other))[0][0], ProtocolError)


def tls_pair(certificates: tuple[Path, Path]) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    one, other = socket.socketpair()
    ours, theirs = (Certificates(side) for side in certificates)
    server, client = ours.wrap(one, server=True), theirs.wrap(other, server=False)
    thread = threading.Thread(target=theirs.shake_hands, args=(client,))
    thread.start()
    ours.shake_hands(server)
    thread.join()
    return server, client


def test_bytes_are_carried_both_ways_whole_and_the_end_is_passed_on(certificates):
    server, client = tls_pair(certificates)
    near, inner = socket.socketpair()
    threading.Thread(target=pump, args=(inner, server), daemon=True).start()
    far = plain(client)
    rng = np.random.default_rng(0)
    there, back = rng.bytes(3_000_017), rng.bytes(5_000_011)

    got: dict[int, bytes] = {}

    def drain(number: int, link: socket.socket, size: int) -> None:
        parts = []
        while size and (part := link.recv(min(size, 1 << 16))):
            parts.append(part)
            size -= len(part)
        got[number] = b"".join(parts)

    threads = [
        threading.Thread(target=near.sendall, args=(there,)),
        threading.Thread(target=far.sendall, args=(back,)),
        threading.Thread(target=drain, args=(0, near, len(back))),
        threading.Thread(target=drain, args=(1, far, len(there))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == {0: back, 1: there}
    far.sendall(b"the last word")
    far.close()
    near.settimeout(10)
    assert near.recv(64) == b"the last word" and near.recv(1) == b""
    near.close()
    inner.close()


def test_a_far_end_that_falls_silent_is_given_up():
    near, inner = socket.socketpair()
    outer, far = socket.socketpair()
    thread = threading.Thread(target=pump, args=(inner, outer, 0.4), daemon=True)
    thread.start()
    for _ in range(3):
        time.sleep(0.2)
        far.sendall(b"x")
        assert near.recv(1) == b"x"
    near.sendall(b"more than once")  # what this end says does not count
    near.settimeout(10)
    assert near.recv(1) == b""
    thread.join(10)
    assert not thread.is_alive()
    near.close()
    far.close()
