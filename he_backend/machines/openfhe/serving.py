"""The process that `RemoteMachine` talks to: one machine, one call at a time."""

from __future__ import annotations

import os
import socket
from typing import Any

import numpy as np

from he_backend.errors import PeerGoneError, to_message
from he_backend.machines.openfhe.machine import NativeMachine
from he_backend.machines.openfhe.values import Remote, packed, unpacked
from he_backend.processes.messages import receive, send
from he_backend.processes.privacy import keep_private

__all__ = ["main"]


class _Serving:
    """A machine, and the ciphertexts and plaintexts that the caller has numbers of."""

    def __init__(self) -> None:
        self.machine: NativeMachine | None = None
        self._held: dict[int, Any] = {}
        self._next = 0

    def answer(
        self, header: dict[str, Any], blobs: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """What a call gives, or its error."""
        for number in header["gone"]:
            self._held.pop(number, None)
        found: list[bytes] = []
        try:
            arguments = unpacked(header["args"], blobs, lambda r: self._held[r.number])
            result = self._called(header["call"], arguments)
            return {"result": packed(self._told(result), found)}, found
        except Exception as error:
            return {"error": to_message(error)}, []

    def _called(self, name: str, arguments: list[Any]) -> Any:
        kind, _, method = name.rpartition(" ")
        if method == "resize":
            assert self.machine is not None
            self.machine.slots = arguments[0]
            return None
        if not kind:
            return getattr(self.machine, method)(*arguments)
        made = getattr(NativeMachine, method)(*arguments)
        self.machine = made
        return None

    def _told(self, result: Any) -> Any:
        """The result as it crosses: numbers instead of ciphertexts."""
        if isinstance(result, list):
            return [self._told(each) for each in result]
        if result is None or isinstance(result, (bool, int, float, str, bytes, np.ndarray)):
            return result
        self._next += 1
        self._held[self._next] = result
        rest = (getattr(result, "components", 2), getattr(result, "zero", False))
        nbytes = int(getattr(result, "nbytes", 0))
        return Remote(self._next, result.level, float(result.scale), *rest, nbytes)


def main() -> None:
    """Entry of the process; it ends when the caller closes the link, or is gone."""
    keep_private()
    link = socket.socket(fileno=os.dup(0))
    serving = _Serving()
    try:
        while True:
            send(link, *serving.answer(*receive(link)))
    except PeerGoneError:
        return


if __name__ == "__main__":
    main()
