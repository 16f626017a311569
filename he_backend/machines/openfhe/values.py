"""Arguments and results of a machine's methods as JSON and bytes. Imports no OpenFHE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import ProtocolError
from hesim.circuit.refresher import Refresher
from hesim.params import CKKSParams

__all__ = ["Remote", "packed", "unpacked"]


@dataclass(frozen=True, eq=False)
class Remote:
    """A ciphertext or plaintext that another process holds under a number."""

    number: int
    level: int
    scale: float
    components: int = 2
    zero: bool = False
    nbytes: int = 0


def packed(value: Any, blobs: list[bytes]) -> Any:
    """`value` as JSON; bytes and arrays are put behind `blobs`.

    Raises:
      ProtocolError: it is of no kind that crosses.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [packed(each, blobs) for each in value]
    if isinstance(value, Remote):
        return {
            "remote": [value.number, value.level, value.components, value.zero, value.nbytes]
        } | {"scale": value.scale.hex()}
    if isinstance(value, (float, np.floating)):
        return {"float": float(value).hex()}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, CKKSParams):
        return {"params": value.fields}
    if isinstance(value, Refresher):
        return {"refresher": dataclasses.asdict(value)}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, bytes):
        blobs.append(value)
        return {"bytes": len(blobs) - 1}
    if isinstance(value, np.ndarray):
        blobs.append(np.ascontiguousarray(value, "<f8").tobytes())
        return {"array": list(value.shape), "blob": len(blobs) - 1}
    raise ProtocolError(f"{type(value).__name__} does not cross to another process")


def unpacked(value: Any, blobs: Sequence[bytes], found: Callable[[Remote], Any]) -> Any:
    """What `packed` was given; a `Remote` becomes what `found` makes of it.

    Raises:
      ProtocolError: `packed` makes no such thing.
    """
    if isinstance(value, list):
        return [unpacked(each, blobs, found) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"remote": [number, level, components, zero, nbytes], "scale": scale}:
            scale = float.fromhex(scale)
            return found(Remote(number, level, scale, components, zero, nbytes))
        case {"float": text}:
            return float.fromhex(text)
        case {"params": fields}:
            from he_backend.processes.keys import params_of

            return params_of(fields)
        case {"refresher": fields}:
            return Refresher(**fields)
        case {"path": text}:
            return Path(text)
        case {"bytes": blob}:
            return blobs[blob]
        case {"array": shape, "blob": blob}:
            return np.frombuffer(blobs[blob], "<f8").reshape(shape).copy()
    raise ProtocolError(f"{sorted(value)} is nothing that crosses between processes")
