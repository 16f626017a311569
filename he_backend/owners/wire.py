"""What the two owners say to each other before and around the messages of a run.

A key holder opens a control link, on which it says hello, uploads its keys if they are not known,
and then speaks as a caller does to a server's process; and a link for each of its clients, on which
these and the server speak. All of it is the messages of `he_backend.processes.messages`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from he_backend.errors import ProtocolError
from he_backend.processes.folders import Folders
from he_backend.processes.tasks import CLIENT_BATCH

__all__ = [
    "KEY_PART",
    "PROTOCOL",
    "check_batch",
    "check_read",
    "digest_of_keys",
    "hello",
    "is_batch",
    "is_digest",
    "key_files",
    "link_hello",
    "lists_keys",
    "parts",
    "said",
]

PROTOCOL = 2
"""Raised when what the owners say to each other changes; others are refused."""

KEY_PART = 1 << 22
"""Bytes of a key file in one message, at most."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_BATCH = re.compile(r"[0-9a-f]{32}")


def hello(bundle: str, machine: str, keys: str) -> dict[str, Any]:
    """The first message on a control link: of which bundle (its digest), on which machine, and with
    which keys (their digest).
    """
    about = {"bundle": bundle, "machine": machine, "keys": keys}
    return {"type": "hello", "role": "control", "protocol": PROTOCOL, **about}


def link_hello(token: str) -> dict[str, Any]:
    """The first message on a client's link; the evaluator told the token on the control link."""
    return {"type": "hello", "role": "link", "protocol": PROTOCOL, "token": token}


def said(header: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of what a hello says otherwise than it should, or that belongs there or does not."""
    names = sorted(set(header) | set(expected))
    return [name for name in names if header.get(name) != expected.get(name)]


def is_digest(text: object) -> bool:
    """Whether it is a SHA-256 in hex."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def key_files(folders: Folders, names: Sequence[str], manifest: Mapping[str, Any]) -> dict:
    """Of the files that are uploaded, size and SHA-256 by name."""
    return {name: list(manifest["files"][name]) for name in names}


def lists_keys(files: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether a list of key files has these files, of these sizes in bytes, each with a digest."""
    return set(files) == set(sizes) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and type(entry[0]) is int
        and entry[0] == sizes[name]
        and is_digest(entry[1])
        for name, entry in files.items()
    )


def digest_of_keys(files: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the list of a key set's files: what it is known by."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def parts(size: int) -> list[tuple[int, int]]:
    """(offset, bytes) of the messages that bring a file of so many bytes."""
    return [(at, min(KEY_PART, size - at)) for at in range(0, size, KEY_PART)]


def is_batch(name: object) -> bool:
    """Whether it is the name of a batch, as the owners know it."""
    return isinstance(name, str) and _BATCH.fullmatch(name) is not None


def check_read(header: Mapping[str, Any], carried: Collection[int]) -> list[int]:
    """The ciphertexts that a message asks for, of those that a batch leaves.

    Raises:
      ProtocolError: it asks for others, or for none.
    """
    ciphers = header.get("ciphers")
    if not is_batch(header.get("name")) or not isinstance(ciphers, list):
        raise ProtocolError("what a batch left is asked for without saying which")
    if not 0 < len(ciphers) <= CLIENT_BATCH or len(set(map(str, ciphers))) < len(ciphers):
        raise ProtocolError("what a batch left is asked for in another number")
    if any(type(c) is not int or c not in carried for c in ciphers):
        raise ProtocolError("something is asked for that no batch leaves")
    return ciphers


def check_batch(header: Mapping[str, Any], instructions: int) -> None:
    """Raise ProtocolError unless a message announces a batch.

    Args:
      instructions: of the Circuit, by whose numbers it says what the key holder has of it.
    """
    if not is_batch(header.get("name")):
        raise ProtocolError("a batch is announced without a name")
    if header.get("after") is not None and not is_batch(header["after"]):
        raise ProtocolError("a batch is announced that goes on from none")
    for field in ("missing", "served"):
        numbers = header.get(field)
        if not isinstance(numbers, list) or len(numbers) > instructions:
            raise ProtocolError(f"a batch is announced with {field} that is no list")
        if any(type(i) is not int or not 0 <= i < instructions for i in numbers):
            raise ProtocolError(f"a batch is announced with {field} that the Circuit has not")
