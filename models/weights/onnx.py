"""Weights out of an ONNX file: its initialisers, under the names that they had in PyTorch.

An exporter keeps the names of biases and norms but stores the matrix of a linear layer transposed
under a made-up name; the node that multiplies by it is named after the layer's place
(`/encoder/layer.0/attention/self/query/MatMul`), from which the name comes back. The file is read
by the `onnx` package, an extra of this one; nothing in it is executed.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from models.errors import TensorFileError

__all__ = ["read_onnx"]


def read_onnx(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors by PyTorch name; matrices of linear layers as (outputs, inputs), as PyTorch has them.

    Raises TensorFileError for a missing or broken file, for numbers kept in other files, or where
    the `onnx` package is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise TensorFileError(
            f"{path} is read with the onnx package: pip install 'hesim[onnx]'"
        ) from error
    try:
        graph = onnx.load(os.fspath(path), load_external_data=False).graph
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error}") from error
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise TensorFileError(f"{path} is no ONNX model that can be read: {error}") from error
    if not tensors:
        raise TensorFileError(f"{path} is no ONNX model that can be read: no tensors in it")
    return _renamed(tensors, graph.node)


def _renamed(tensors: dict[str, np.ndarray], nodes: Any) -> dict[str, np.ndarray]:
    """The tensors, those that only a product uses named after its place."""
    out = dict(tensors)
    for node in nodes:
        if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2:
            continue
        stored, parts = node.input[1], node.name.strip("/").split("/")
        if stored not in tensors or "::" not in stored or len(parts) < 2:
            continue
        matrix = out.pop(stored, tensors[stored])
        transposed = any(a.name == "transB" and a.i == 1 for a in node.attribute)
        out[".".join(parts[:-1]) + ".weight"] = matrix if transposed else matrix.T
    return out
