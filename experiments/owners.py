"""Two owners from the command line: arrays in .npz files, and what is said meanwhile."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import he_backend
import hesim
from experiments.console import Display
from experiments.errors import ExperimentError
from hesim.bundles import structure
from hesim.bundles.bundle import Bundle
from hesim.files import replacing

__all__ = ["encrypt", "read_call", "serve", "share", "write_result"]


def share(bundle: Path, out: Path, display: Display) -> None:
    """Write the key holder's part of a bundle.

    Raises:
      BundleError: there is none, or `out` is not empty.
    """
    whole = hesim.load(bundle)
    part = whole.for_key_holder()
    hesim.save(part, out)
    display.say(f"{part}\n\nfor the key holder: {out}")


def serve(
    bundle: Path,
    address: str,
    folder: Path,
    display: Display,
    **settings: Any,
) -> None:
    """Serve a bundle until a signal ends it.

    Args:
      settings: further arguments of `he_backend.Evaluator`.

    Raises:
      BackendError, BundleError: as that.
    """
    whole = hesim.load(bundle)
    with he_backend.Evaluator(whole, address, folder, **settings) as evaluator:
        signal.signal(signal.SIGTERM, lambda *_: evaluator.close())
        display.say(f"{whole!r}")
        display.say(f"serving at {evaluator.address}; who comes and goes is in {folder}")
        evaluator.serve()


def encrypt(
    bundle: Path,
    address: str,
    data: Sequence[Path],
    out: Path,
    folder: Path,
    display: Display,
    **settings: Any,
) -> None:
    """Have files of arguments evaluated, and write the results.

    Args:
      data: .npz files, a batch each. out: a file for one of them, a folder for several.
      settings: further arguments of `he_backend.connect`.

    Raises:
      ExperimentError: files of one name, or arrays of other names than the arguments.
      BackendError, BundleError: as `connect` and `Connection.run`.
    """
    part = hesim.load(bundle)
    names = [path.stem for path in data]
    if len(set(names)) < len(names):
        raise ExperimentError("two files have one name, by which their batches are known")
    calls = [read_call(part, path) for path in data]
    with he_backend.connect(part, address, folder, progress=True, **settings) as session:
        for name, call in zip(names, calls, strict=True):
            path = out if len(data) == 1 and out.suffix == ".npz" else out / f"{name}.npz"
            known = " (read back)" if session.done(name) else ""
            write_result(part, session.run(*call, batch=name), path)
            display.say(f"{name}: {path}{known}")


def read_call(bundle: Bundle, path: Path) -> list[Any]:
    """The arguments of a call out of an .npz file: arrays named as the bundle's leaves, or by their
    numbers; with one leaf the name does not matter.

    Raises:
      ExperimentError: it is no such file, or has arrays of other names.
    """
    if not zipfile.is_zipfile(path):
        what = "does not exist" if not path.exists() else "is no .npz file of plain arrays"
        raise ExperimentError(f"{path} {what}: numpy.savez({path.stem + '.npz'!r}, ...) makes one")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExperimentError(f"{path} is no .npz file of plain arrays: {error}") from error
    labels = [leaf.label for leaf in bundle.leaves]
    if len(labels) == 1 and len(found) == 1:
        leaves: dict[Any, Any] = dict(enumerate(found.values()))
    else:
        numbered = {str(k): k for k in range(len(labels))}
        numbered |= {label: k for k, label in enumerate(labels)}
        leaves = {numbered.get(name, name): array for name, array in found.items()}
    if set(leaves) != set(range(len(labels))):
        raise ExperimentError(
            f"{path} has arrays named {', '.join(found) or 'nothing'}; the arguments are "
            f"{', '.join(labels)}, or 0 to {len(labels) - 1} in this order"
        )
    return list(structure.filled(bundle.call, leaves))


def write_result(bundle: Bundle, result: Any, path: Path) -> None:
    """Write the arrays of a result to an .npz file, for its owner only, by their places in it.

    Raises:
      OSError: it cannot be written.
    """
    names = structure.names(bundle.result, "result")
    arrays = structure.leaves_of(bundle.result, result, "the result")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=0o600) as file:
        named: dict[str, Any] = {names[k]: np.asarray(array) for k, array in arrays.items()}
        np.savez(file, **named)


def default_folder(command: str, bundle: Path) -> Path:
    """Where a command keeps its state if it is not told."""
    return Path("runs", f"{command}-{Path(os.path.abspath(bundle)).name}")
