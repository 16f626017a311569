"""Tensor files in the safetensors format, by the library of that name, with errors that name the
file. Reading executes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hesim.files import write_whole
from models.errors import TensorFileError

__all__ = ["TensorFileError", "read_folder", "read_safetensors", "write_safetensors"]

_WHOLE, _TAIL = "model.safetensors", "safetensors.index.json"
_INDEX = f"model.{_TAIL}"


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


def read_folder(folder: str | os.PathLike[str]) -> dict[str, np.ndarray] | None:
    """All tensors of a folder's model by name, in one file or in shards; None if it has neither.

    Read are `model.safetensors`, or the files that `model.safetensors.index.json` lists, or, where
    there is none of both, those of the one variant that there is (`model.fp16.safetensors`,
    `model.safetensors.index.fp16.json`).

    Raises:
      TensorFileError: a file is missing or broken, shards and index disagree, or there are several
        variants.
    """
    source = Path(folder)
    if (source / _WHOLE).exists():
        return read_safetensors(source / _WHOLE)
    if (source / _INDEX).exists():
        return _read_shards(source / _INDEX)
    wholes = [p for p in source.glob("model.*.safetensors") if p.name.count(".") == 2]
    indices = [*source.glob("model.safetensors.index.*.json"), *source.glob(f"model.*.{_TAIL}")]
    variants = sorted({*wholes, *indices})
    if len(variants) > 1:
        raise TensorFileError(
            f"{source} holds several variants of the weights "
            f"({', '.join(p.name for p in variants)}): remove all but one, or rename one to "
            f"{_WHOLE}"
        )
    if not variants:
        return None
    return _read_shards(variants[0]) if variants[0] in indices else read_safetensors(variants[0])


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The tensors of the files that an index lists; TensorFileError where they disagree."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({os.fspath(name) for name in places.values()})
    except OSError as error:
        raise TensorFileError(f"cannot read {index}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorFileError(f"{index} is no index of shards ({error!r})") from error
    strange = [name for name in shards if Path(name).name != name]
    if strange:
        raise TensorFileError(f"{index} names {strange[0]!r}, which is no file beside it")
    missing = [name for name in shards if not (index.parent / name).exists()]
    if missing:
        raise TensorFileError(
            f"{index.parent} lacks {', '.join(missing)}, of the {len(shards)} files that "
            f"{index.name} lists: fetch what is missing"
        )
    out: dict[str, np.ndarray] = {}
    for shard in shards:
        found = read_safetensors(index.parent / shard)
        listed = {tensor for tensor, place in places.items() if place == shard}
        if listed != found.keys():
            wrong = sorted(listed ^ found.keys())
            raise TensorFileError(
                f"{index.name} and {shard} disagree on {len(wrong)} tensors, {wrong[0]} among "
                "them: fetch both again, from one version"
            )
        out |= found
    return out


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Write tensors by name, wholly or not at all; TensorFileError for a type without a name."""
    try:
        # The library writes what memory holds, whatever the strides.
        content = save({name: np.asarray(t, order="C") for name, t in tensors.items()})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TensorFileError(f"cannot write {path}: {error}") from error
    write_whole(path, content)
