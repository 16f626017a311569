"""Tensor files in the safetensors format: names, shapes and raw little-endian numbers, no code.

A file is the length of a JSON header in 8 bytes, the header (per tensor its type, shape and place),
and the numbers. Everything is checked before a number is read: lengths, places, overlaps, types.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

MAX_HEADER = 100_000_000
"""Bytes; a longer header is refused, since it is read whole."""

_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class TensorFileError(ValueError):
    """A tensor file that cannot be read, is broken, or holds what it should not."""


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a file by name; raises TensorFileError for a missing or broken file."""
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise TensorFileError(f"cannot read {path}: {error}") from error
    length = struct.unpack("<Q", content[:8].tobytes())[0] if len(content) >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER, len(content) - 8):
        raise TensorFileError(f"{path} is no safetensors file: its header has {length} bytes")
    try:
        header: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        rows = [
            (name, row["dtype"], tuple(map(int, row["shape"])), *map(int, row["data_offsets"]))
            for name, row in header.items()
        ]
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorFileError(f"{path} has a broken header: {error!r}") from error
    numbers = content[8 + length :]
    out: dict[str, np.ndarray] = {}
    end_before = 0
    for name, kind, shape, start, end in sorted(rows, key=lambda row: row[3:]):
        if kind not in _DTYPES:
            raise TensorFileError(f"{path}: {name} is of type {kind}, which is not supported")
        dtype = np.dtype(_DTYPES[kind])
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or end - start != size:
            raise TensorFileError(f"{path}: {name} is {kind}{list(shape)} in {end - start} bytes")
        if start < end_before or end > len(numbers):
            raise TensorFileError(
                f"{path}: {name} lies outside the file or over another tensor; "
                "the file is cut off or damaged: fetch it again"
            )
        end_before = end
        out[name] = numbers[start:end].view(dtype).reshape(shape)
    return out


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Write tensors by name, wholly or not at all; TensorFileError for a type without a name."""
    header: dict[str, Any] = {}
    place = 0
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise TensorFileError(f"{name} is of type {array.dtype}, which is not supported")
        shape = list(np.shape(tensors[name]))
        end = place + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    with open(part, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array.tobytes())
    os.replace(part, target)
