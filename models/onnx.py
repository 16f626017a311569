"""Weights out of an ONNX file: its initialisers, under the names that they had in PyTorch.

An exporter keeps the names of biases and norms but stores the matrix of a linear layer transposed
under a made-up name; the node that multiplies by it is named after the layer's place
(`/encoder/layer.0/attention/self/query/MatMul`), from which the name comes back. Only the part of
the protobuf encoding that this takes is read; nothing is executed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from models.safetensors import TensorFileError

_DTYPES: Mapping[int, Any] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    16: jnp.bfloat16,
}
_TYPED_FIELDS: Mapping[int, Any] = {4: np.dtype("<f4"), 10: np.dtype("<f8")}
"""Fields of a tensor that hold packed numbers instead of raw bytes."""


class _Node(NamedTuple):
    inputs: list[str]
    name: str
    kind: str
    transposed: bool


def read_onnx(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors by PyTorch name; matrices of linear layers as (outputs, inputs), as PyTorch has them.

    Raises TensorFileError for a missing or broken file, or for numbers kept in other files.
    """
    try:
        content = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error}") from error
    try:
        graphs = [value for field, value in _fields(content) if field == 7]
        if len(graphs) != 1 or not isinstance(graphs[0], memoryview):
            raise TensorFileError("no graph in it")
        parts = list(_fields(graphs[0]))
        tensors = dict(_tensor(_bytes(value)) for field, value in parts if field == 5)
        nodes = [_node(_bytes(value)) for field, value in parts if field == 1]
    except (TensorFileError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise TensorFileError(f"{path} is no ONNX model that can be read: {error}") from error
    return _renamed(tensors, nodes)


def _renamed(tensors: dict[str, np.ndarray], nodes: list[_Node]) -> dict[str, np.ndarray]:
    """The tensors, those that only a product uses named after its place."""
    out = dict(tensors)
    for node in nodes:
        if node.kind not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            continue
        stored, parts = node.inputs[1], node.name.strip("/").split("/")
        if stored not in tensors or "::" not in stored or len(parts) < 2:
            continue
        matrix = out.pop(stored, tensors[stored])
        out[".".join(parts[:-1]) + ".weight"] = matrix if node.transposed else matrix.T
    return out


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a protobuf message: whole numbers, or bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield field, value
            continue
        if wire == 2:
            size, place = _varint(message, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise TensorFileError(f"unknown wire type {wire} at byte {place}")
        if place + size > len(message):
            raise TensorFileError(f"cut off at byte {place}")
        yield field, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise TensorFileError(f"a number without end at byte {place}")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TensorFileError("a number where a message should be")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode()


def _numbers(value: int | memoryview) -> list[int]:
    """A repeated whole number, one by one or packed."""
    if isinstance(value, int):
        return [value]
    out, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        out.append(number)
    return out


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    name, dims, kind, raw = "", [], 0, memoryview(b"")
    numbers: np.ndarray | None = None
    for field, value in _fields(message):
        if field == 1:
            dims += _numbers(value)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8:
            name = _text(value)
        elif field == 9:
            raw = _bytes(value)
        elif field in _TYPED_FIELDS:
            numbers = np.frombuffer(_bytes(value), _TYPED_FIELDS[field])
        elif field == 7:
            numbers = np.asarray(_numbers(value), np.uint64).astype(np.int64)
        elif field == 14 and value == 1:
            raise TensorFileError(f"{name or 'a tensor'} lies in another file")
    if kind not in _DTYPES:
        raise TensorFileError(f"{name} is of the unknown type {kind}")
    array = np.frombuffer(raw, _DTYPES[kind]) if numbers is None else numbers
    if array.size != math.prod(dims):
        raise TensorFileError(f"{name} has {array.size} numbers for the shape {dims}")
    return name, array.reshape(dims)


def _node(message: memoryview) -> _Node:
    inputs: list[str] = []
    name, kind, transposed = "", "", False
    for field, value in _fields(message):
        if field == 1:
            inputs.append(_text(value))
        elif field == 3:
            name = _text(value)
        elif field == 4:
            kind = _text(value)
        elif field == 5:
            attribute = dict(_fields(_bytes(value)))
            if bytes(_bytes(attribute.get(1, memoryview(b"")))) == b"transB":
                transposed = attribute.get(3, 0) == 1
    return _Node(inputs, name, kind, transposed)
