"""Tensor files in the safetensors format, by the library of that name, with errors that name the
file. Reading executes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hesim.files import write_whole

__all__ = ["TensorFileError", "read_safetensors", "write_safetensors"]


class TensorFileError(ValueError):
    """A tensor file that cannot be read, is broken, or holds what it should not."""


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a file by name; raises TensorFileError for a missing or broken file."""
    try:
        return load_file(path)
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TensorFileError(
            f"{path} is no safetensors file that can be read ({error}): it is cut off, damaged or "
            "of another format; fetch it again"
        ) from error


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Write tensors by name, wholly or not at all; TensorFileError for a type without a name."""
    try:
        # The library writes what memory holds, whatever the strides.
        content = save({name: np.asarray(t, order="C") for name, t in tensors.items()})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TensorFileError(f"cannot write {path}: {error}") from error
    write_whole(path, content)
