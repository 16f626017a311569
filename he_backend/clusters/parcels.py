"""Ciphertexts on their way between the tasks of a cluster. No JAX.

On one host a parcel is names of files in its memory; to another one, to the coordinator and to a
worker's disk go bytes, which nobody copies on the way.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distributed.comm.addressing import get_address_host
from distributed.protocol.serialize import dask_deserialize, dask_serialize

from he_backend.clusters.hostfiles import HostFile, HostFolder, written

__all__ = ["Parcel"]

Held = HostFile | bytes | memoryview


class Parcel:
    """Ciphertexts that travel together.

    Args:
      held: their bytes by number, or where these are.
      shared: whether all workers of a host see these files.
    """

    def __init__(self, held: Mapping[int, Held], *, shared: bool = False):
        self.held, self.shared = dict(held), shared

    @classmethod
    def of_buffers(cls, numbers: Sequence[int], buffers: Sequence[Any]) -> Parcel:
        """What came from another host: bytes of each, in whatever holds them."""
        return cls({c: memoryview(buffer) for c, buffer in zip(numbers, buffers, strict=True)})

    def of(self, wanted: Iterable[int], folder: HostFolder) -> dict[int, HostFile | bytes]:
        """Those of them that are wanted, in files of the folder from now on if there is room."""
        found: dict[int, HostFile | bytes] = {}
        for c in self.held.keys() & wanted:
            held = self.held[c]
            if not isinstance(held, HostFile):
                file = folder.new(len(held))
                held = self.held[c] = file if written(file.path, held) else bytes(held)
            found[c] = held
        return found

    def blobs(self) -> dict[int, bytes]:
        """The bytes of each ciphertext, by number."""
        return {c: bytes(_bytes(held)) for c, held in self.held.items()}

    def for_others(self) -> Parcel:
        """The same, to be sent as bytes wherever it goes."""
        return Parcel(self.held)

    def __sizeof__(self) -> int:
        return sum(h.size if isinstance(h, HostFile) else len(h) for h in self.held.values())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        found = [_bytes(held) for held in self.held.values()]
        buffers = [pickle.PickleBuffer(b) if int(protocol) >= 5 else bytes(b) for b in found]
        return Parcel.of_buffers, (list(self.held), buffers)


def _bytes(held: Held) -> bytes | memoryview:
    return held.read() if isinstance(held, HostFile) else held


@dask_serialize.register(Parcel)
def _sent(parcel: Parcel, context: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list]:
    files = [held for held in parcel.held.values() if isinstance(held, HostFile)]
    header: dict[str, Any] = {"numbers": list(parcel.held)}
    if parcel.shared and len(files) == len(parcel.held) and _stays_on_the_host(context):
        header["files"] = [(file.path, file.size) for file in files]
        return header, []
    return header, [_bytes(held) for held in parcel.held.values()]


@dask_deserialize.register(Parcel)
def _received(header: Mapping[str, Any], frames: Sequence[Any]) -> Parcel:
    if "files" in header:
        files = [HostFile.linked(str(path), int(size)) for path, size in header["files"]]
        return Parcel(dict(zip(header["numbers"], files, strict=True)), shared=True)
    return Parcel.of_buffers(header["numbers"], frames)


def _stays_on_the_host(context: Mapping[str, Any] | None) -> bool:
    """Whether what is sent comes from the same address that it goes to; without a context it goes
    to the disk.
    """
    if not context or "recipient" not in context:
        return False
    ends = (context[end].get("address", "") for end in ("sender", "recipient"))
    ours, theirs = map(get_address_host, ends)
    return ours == theirs
