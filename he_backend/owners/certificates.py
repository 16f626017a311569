"""Who is at the other end of a TLS link: each side knows the other's certificate, and no other.

A side's folder has three files: own.crt, own.key (0600), and peer.crt, which is the other side's
own.crt; of several key holders, their certificates one after another. Certificates sign themselves;
there is no authority, and nobody else's is accepted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
from pathlib import Path

from he_backend.errors import BackendError, ProtocolError
from hesim.files import write_whole

__all__ = ["Certificates", "make_certificate", "make_pair"]

_DAYS = 365
_BEGIN = "-----BEGIN CERTIFICATE-----"
_FILES = ("own.crt", "own.key", "peer.crt")


class Certificates:
    """A side's certificate and key, and the certificate of its peer.

    Args:
      folder: of the three files.

    Raises:
      BackendError: a file is missing or damaged, or others may read the key.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self._own, self._key, self._peer = (self.folder / name for name in _FILES)
        for path in (self._own, self._key, self._peer):
            if not path.is_file():
                raise BackendError(
                    f"{path} is missing: `hesim certificates` makes a pair for a try-out; peer.crt "
                    f"is the other side's own.crt"
                )
        if stat.S_IMODE(self._key.stat().st_mode) & 0o077:
            raise BackendError(f"others may read {self._key}: chmod 600 it, or make another pair")
        try:
            self._expected = _certificates_in(self._peer.read_text("ascii"))
            self._server = self._context(ssl.PROTOCOL_TLS_SERVER)
            self._client = self._context(ssl.PROTOCOL_TLS_CLIENT)
        except (ValueError, OSError) as error:
            raise BackendError(
                f"the certificates in {self.folder} cannot be used ({error}): make another pair"
            ) from error

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the one certificate is known, whatever the host is called
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._own, self._key)
        context.load_verify_locations(self._peer)
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # every link proves who it is anew
        return context

    def wrap(self, link: socket.socket, *, server: bool) -> ssl.SSLSocket:
        """A TLS link over a connected one; `shake_hands` comes next."""
        context = self._server if server else self._client
        return context.wrap_socket(link, server_side=server, do_handshake_on_connect=False)

    def shake_hands(self, link: ssl.SSLSocket) -> str:
        """Agree on keys, and see that the peer is the one that is expected.

        Returns:
          SHA-256 of its certificate, in hex.

        Raises:
          ProtocolError: it is another, or does not get there in the link's time-out.
        """
        try:
            link.do_handshake()
        except (OSError, ValueError) as error:
            raise ProtocolError(f"no TLS link with the peer came about ({error})") from error
        found = link.getpeercert(binary_form=True)
        if found is None or found not in self._expected:
            raise ProtocolError(f"the peer's certificate is another than {self._peer}")
        return hashlib.sha256(found).hexdigest()


def _certificates_in(text: str) -> frozenset[bytes]:
    """The certificates of a PEM file, as they are sent. ValueError if there is none."""
    parts = text.split(_BEGIN)[1:]
    found = frozenset(ssl.PEM_cert_to_DER_cert(f"{_BEGIN}\n{part.strip()}\n") for part in parts)
    if not found:
        raise ssl.SSLError("there is no certificate in peer.crt")
    return found


def make_certificate(folder: str | os.PathLike[str], name: str, days: int = _DAYS) -> None:
    """Make own.crt and own.key of one side, whose peer.crt is still to come.

    Args:
      folder: where to; made for its owner only if absent. name: that the certificate carries.
      days: that it is valid.

    Raises:
      BackendError: the files are there, or the program `openssl` is missing or fails.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any((place / file).exists() for file in _FILES[:2]):
        raise BackendError(f"{place} has a certificate already: take another folder")
    program = shutil.which("openssl")
    if program is None:
        raise BackendError(
            "the program `openssl` makes certificates, and is not installed: install it (Debian: "
            "apt-get install openssl), or put own.crt, own.key and peer.crt there yourself"
        )
    with tempfile.TemporaryDirectory(prefix="he-certificate-") as held:
        own, key = Path(held, "own.crt"), Path(held, "own.key")
        command = [program, "req", "-x509", "-newkey", "ec", "-nodes", "-days", str(days)]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"]
        command += ["-addext", "basicConstraints=critical,CA:TRUE", "-out", own, "-keyout", key]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise BackendError(f"openssl makes no certificate ({last[0]})")
        write_whole(place / "own.key", key.read_bytes(), mode=0o600)
        write_whole(place / "own.crt", own.read_bytes())


def make_pair(folder: str | os.PathLike[str], days: int = _DAYS) -> tuple[Path, Path]:
    """Make the folders of both sides, for a try-out: `evaluator` and `key-holder` inside `folder`.

    Whoever makes both has both keys; otherwise each side makes its own and they exchange own.crt.

    Raises:
      BackendError: as `make_certificate`.
    """
    sides = Path(folder, "evaluator"), Path(folder, "key-holder")
    for side in sides:
        make_certificate(side, side.name, days)
    for side, other in (sides, sides[::-1]):
        write_whole(side / "peer.crt", (other / "own.crt").read_bytes())
    return sides
