"""Bundles in folders: written whole or not at all, every file with its SHA-256, no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hesim.bundles import content, structure, versions
from hesim.bundles.bundle import Bundle, Leaf
from hesim.bundles.opened import DTYPES, OpenOperand
from hesim.circuit.circuit import Circuit
from hesim.errors import BundleError, HesimError
from hesim.files import write_whole

__all__ = ["load", "save"]

MANIFEST = "bundle.json"
_MOST_OPERANDS = 1 << 20


def save(bundle: Bundle, folder: str | os.PathLike[str]) -> None:
    """Write a Bundle to a folder, which appears whole or not at all.

    Args:
      bundle: from `hesim.bundle`, or a part of one.
      folder: new, or empty.

    Raises:
      BundleError: there is something in the folder, or it is no Bundle.
      OSError: it cannot be written.

    Examples:
      >>> import hesim, numpy as np, tempfile
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x + x, np.ones(2)), params)
      >>> bundle, folder = hesim.bundle(circuit, np.ones(2)), tempfile.mkdtemp()
      >>> hesim.save(bundle, folder)
      >>> hesim.load(folder).digest == bundle.digest
      True
    """
    if not isinstance(bundle, Bundle):
        raise BundleError(
            f"save takes a Bundle first, not a {type(bundle).__name__}: bundle = "
            f"hesim.bundle(circuit, *args), or circuit.save(path) for a Circuit alone"
        )
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"{target} is there and not empty: choose another folder, or remove it")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        files = {}
        for name, data in content.files(bundle):
            (beside / name).parent.mkdir(exist_ok=True)
            write_whole(beside / name, data)
            files[name] = content.entry(data)
        write_whole(beside / MANIFEST, content.sealed(content.manifest(bundle, files)))
        os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def load(folder: str | os.PathLike[str]) -> Bundle:
    """Read a Bundle, or a key holder's part of one. Needs no JAX.

    Args:
      folder: that `hesim.save` wrote.

    Returns:
      It, with the digest that it was saved with.

    Raises:
      BundleError: it holds none, a file is missing, altered or damaged, or it was made with other
        versions; names which.
      OSError: a file cannot be read.

    Examples:
      >>> import hesim, tempfile
      >>> hesim.load(tempfile.mkdtemp())
      Traceback (most recent call last):
          ...
      hesim.errors.BundleError: ... holds no bundle: ...
    """
    place = Path(folder)
    if not (place / MANIFEST).is_file():
        raise BundleError(f"{place} holds no bundle: {MANIFEST} is not there; hesim.save makes one")
    with _named(place / MANIFEST):
        manifest = _opened((place / MANIFEST).read_bytes())
    versions.check(manifest["versions"])
    with _named(place):
        return _read(place, manifest)


# Reading


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """BundleError that names the path, for whatever is wrong with what is in it."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except (
        HesimError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise BundleError(f"{path} holds no bundle, or is damaged ({error!r})") from error
    except (EOFError, zipfile.BadZipFile, OverflowError, MemoryError) as error:
        raise BundleError(f"{path} is damaged ({error!r})") from error


def _opened(text: bytes) -> dict[str, Any]:
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise BundleError("it is no manifest of a bundle")
    if manifest["format"] != versions.FORMAT:
        raise BundleError(
            f"the bundle is of format {manifest['format']}, and this version reads format "
            f"{versions.FORMAT}: make it again, or use the version that wrote it"
        )
    if manifest.pop("digest", None) != hashlib.sha256(content.text(manifest)).hexdigest():
        raise BundleError("it was altered since it was saved, since it does not fit its digest")
    return manifest


def _read(place: Path, manifest: dict[str, Any]) -> Bundle:
    count = manifest["operands"]
    if count is not None and not 0 <= count <= _MOST_OPERANDS:
        raise BundleError(f"it has {count} operands")
    opened = {int(entry[0]) for entry in manifest["opened"]}
    known = [k for k in range(count or 0) if k not in opened]
    names = {
        content.CIRCUIT,
        content.OPENED,
        content.PUBLICS,
        *(f"operands/{k}.npy" for k in known),
    }
    if set(manifest["files"]) != names:
        raise BundleError("its list of files is not that of a bundle")

    def read(name: str) -> io.BytesIO:
        size, wanted = manifest["files"][name]
        path = place / name
        data = path.read_bytes() if path.is_file() else None
        if data is None or len(data) != size or hashlib.sha256(data).hexdigest() != wanted:
            how = "is gone" if data is None else "was altered or exchanged"
            raise BundleError(f"{name} {how}: take a whole copy of the bundle")
        return io.BytesIO(data)

    circuit = Circuit.load(read(content.CIRCUIT))
    operands = None
    if count is not None:
        found = {k: _float64(np.load(read(f"operands/{k}.npy"), allow_pickle=False)) for k in known}
        operands = tuple(found.get(k) for k in range(count))
    with np.load(read(content.OPENED), allow_pickle=False) as arrays:
        steps = {name: arrays[name] for name in arrays}
    with np.load(read(content.PUBLICS), allow_pickle=False) as arrays:
        publics = {int(k): arrays[str(k)] for k in manifest["publics"]}
    leaves = tuple(_read_leaf(entry) for entry in manifest["leaves"])
    bundle = Bundle(
        name=str(manifest["name"]),
        circuit=circuit,
        call=structure.checked(manifest["call"], len(leaves)),
        leaves=leaves,
        operands=operands,
        opened=tuple(_read_open(k, e, steps) for k, e in enumerate(manifest["opened"])),
        result=structure.checked(manifest["result"], len(circuit.outputs)),
        publics=publics,
        ranges={int(c): (float(low), float(high)) for c, low, high in manifest["ranges"]},
        versions={str(k): str(v) for k, v in manifest["versions"].items()},
        whole=str(manifest["whole"]),
    )
    _check_whole(bundle)
    bundle.__dict__["digest"] = hashlib.sha256(content.text(manifest)).hexdigest()
    return bundle


def _check_whole(bundle: Bundle) -> None:
    """Raise BundleError unless its parts belong together."""
    circuit = bundle.circuit
    secret = sum(leaf.encrypted for leaf in bundle.leaves)
    fits = (
        isinstance(bundle.call, dict)
        and "tuple" in bundle.call
        and sorted(structure.numbers(bundle.call)) == list(range(len(bundle.leaves)))
        and sorted(structure.numbers(bundle.result)) == list(range(len(circuit.outputs)))
        and (bundle.operands is None or len(bundle.operands) == circuit.operand_count)
        and all(family.operand < secret for family in circuit.inputs)
        and {k for k, tap in enumerate(circuit.outputs) if tap is None} == set(bundle.publics)
    )
    if not fits:
        raise BundleError("its parts do not belong together")


def _read_leaf(entry: list) -> Leaf:
    label, shape, dtype, encrypted, low, high = entry
    if not encrypted and dtype not in DTYPES:
        raise BundleError(f"the argument {label} is of the unknown dtype {dtype}")
    return Leaf(
        str(label),
        tuple(int(d) for d in shape),
        str(dtype),
        bool(encrypted),
        -np.inf if low is None else float(low),
        np.inf if high is None else float(high),
    )


def _read_open(number: int, entry: list, arrays: dict[str, np.ndarray]) -> OpenOperand:
    operand, leaf, inverse, names = entry
    steps: list[str | np.ndarray] = []
    for j, name in enumerate(names):
        if name is not None and name not in DTYPES:
            raise BundleError(f"an open argument is converted to the unknown dtype {name}")
        steps.append(arrays[f"{number}_{j}"] if name is None else str(name))
    return OpenOperand(int(operand), int(leaf), tuple(steps), bool(inverse))


def _float64(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float64:
        raise BundleError(f"an operand is of dtype {array.dtype} instead of float64")
    return array
