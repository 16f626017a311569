"""What the server may still ask of the key holder: what the Circuit has, once, in its order.

The clients of a run share one record of what was asked, so that neither serves what another has
served, and none answers after one has refused. The record outlives an attempt: a resumed run may
ask again, once, for what it was answered before, and goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from he_backend.errors import ProtocolError
from he_backend.processes.store import bound_line, read_line, storing
from he_backend.processes.tasks import CLIENT_BATCH
from hesim.circuit.circuit import Circuit, Kind

__all__ = ["Exchange", "begin_attempt", "requested"]

_KINDS = {"input": Kind.INPUT, "refresh": Kind.REFRESH}


def requested(circuit: Circuit, decrypt: frozenset[int], header: dict[str, Any]) -> list[int]:
    """The instructions that a request names: distinct, and such as the Circuit has.

    decrypt: ciphertexts that may be decrypted for the caller.

    Raises:
      ProtocolError: it is no request that the Circuit can make.
    """
    kind, numbers = header.get("type"), header.get("instructions")
    if kind not in (*_KINDS, "decrypt"):
        raise ProtocolError(f"the server asks for {kind!r}, which a client does not do")
    if not isinstance(numbers, list) or any(type(i) is not int for i in numbers):
        raise ProtocolError("the server names its instructions by something else than numbers")
    if not 0 < len(numbers) <= CLIENT_BATCH or len(set(numbers)) < len(numbers):
        raise ProtocolError(
            f"the server asks for {len(numbers)} ciphertexts at a time; 1 to {CLIENT_BATCH} "
            f"different ones are served"
        )
    for i in numbers:
        if kind == "decrypt":
            known = i in decrypt
        else:
            known = 0 <= i < len(circuit) and circuit.kind[i] == _KINDS[kind]
            known = known and bool(circuit.of_key_holder[i])
        if not known:
            raise ProtocolError(f"the server asks for {kind} {i}, which the Circuit does not have")
    return numbers


class Exchange:
    """The record of one run, shared by its clients.

    Args:
      path: a file of lines, in the client's folder; made if absent.
      run: name of the run.
      circuit: says what depends on what.
      carried: input instructions that the server has from another batch: nobody encrypts them.
    """

    def __init__(self, path: Path, run: str, circuit: Circuit, carried: Collection[int] = ()):
        self.path = path
        self.run = run
        self.circuit = circuit
        self.carried = frozenset(carried)
        self.served: set[int] = set()
        self.ended = False
        self._now: set[tuple[str, int]] = set()
        self._reached = bytearray(len(circuit))
        self._at = 0
        with self.held():
            pass

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the other clients from claiming or answering; the record is up to date inside."""
        with storing(self.path), open(self.path, "ab+", 0, opener=_private) as self._file:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._file.seek(self._at)
            data = self._file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            if len(whole) < len(data):
                self._file.truncate(self._at)  # a client was killed while it wrote
            for line in whole.splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    self._take(read_line(self.run, self.path.name, line))
            yield

    def claim(self, kind: str, numbers: Sequence[int]) -> None:
        """Note a request, before it is served.

        Raises:
          ProtocolError: it was served in this attempt, or it needs what was never served, or is
            carried from another batch, or the exchange has ended.
        """
        with self.held():
            if self.ended:
                raise ProtocolError("a request came after the exchange had ended")
            for i in numbers:
                if kind == "input" and i in self.carried:
                    raise ProtocolError(
                        f"the server asks for input {i}, which it has from the batch before"
                    )
                if (kind, i) in self._now:
                    raise ProtocolError(f"the server asks for {kind} {i} a second time")
                if kind != "input" and not self._possible(kind, i):
                    raise ProtocolError(
                        f"the server asks for {kind} {i} before it was given what that depends on"
                    )
            self._append({"kind": kind, "numbers": list(numbers)})

    def end(self) -> None:
        """Let no client answer any more; the record must be held."""
        self._append({"refused": True})

    def _append(self, record: dict[str, Any]) -> None:
        line = bound_line(self.run, self.path.name, record).encode()
        self._file.write(line)
        self._at += len(line)
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        if "attempt" in record:
            self._now.clear()
            self.ended = False
        elif "refused" in record:
            self.ended = True
        else:
            kind, numbers = str(record["kind"]), [int(i) for i in record["numbers"]]
            self._now.update((kind, i) for i in numbers)
            if kind != "decrypt":
                self.served.update(numbers)

    def _possible(self, kind: str, i: int) -> bool:
        """Whether all inputs and refreshes that lead to i have been served."""
        first = i if kind == "decrypt" else self.circuit.operands(i)[0]
        stack, met = [first], {first}
        while stack:
            c = stack.pop()
            if self.circuit.of_key_holder[c]:
                if c not in self.served and c not in self.carried:
                    return False
                continue
            for a in self.circuit.operands(c):
                if a not in met and not self._reached[a]:
                    met.add(a)
                    stack.append(a)
        for c in met:
            self._reached[c] = 1
        return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def begin_attempt(path: Path, run: str, circuit: Circuit) -> list[int]:
    """Note a new attempt; the inputs and refreshes that were served in earlier ones, ascending."""
    exchange = Exchange(path, run, circuit)
    with exchange.held():
        exchange._append({"attempt": True})
    return sorted(exchange.served)
