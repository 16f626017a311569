"""The folder of a run: what is finished stays finished, whatever kills the process.

    <run>/settings.json   what the folder belongs to
    <run>/<name>.json     a finished stage's figures       <run>/<name>.npz   its arrays
    <run>/training-<seed> checkpoints                      <run>/encrypted  batches in progress,
                                                           with the client's state beside it
    <run>/report.html     the result

A file appears complete or not at all: it is written beside its place and then renamed. It carries a
digest over content, name and settings, so that figures that were altered since are not shown.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.validation.identity import Job, code_digest
from hesim.files import bound_digest, write_whole

__all__ = ["RunFolder"]

_IDENTITY = "settings.json"
_DIGEST = "digest"
_ARRAYS = "digest of the arrays"
_OF_OTHERS = "choose another --run-dir, or remove the folder"


@dataclass(frozen=True)
class RunFolder:
    """A run folder that exists; `RunFolder.claim` makes one, `RunFolder.find` reads one.

    Attributes:
      path: the folder.
      settings: of the run that it belongs to, as their `plain` gives them.

    Examples:
      >>> import tempfile
      >>> from experiments import RunFolder, Settings
      >>> folder = RunFolder.claim(tempfile.mkdtemp(), Settings(sentences=8))
      >>> RunFolder.find(folder.path).settings["sentences"]
      8
    """

    path: Path
    settings: dict[str, Any]

    @classmethod
    def claim(
        cls, path: str | Path, settings: Job, *, fresh: bool = False, option: str = "--run-dir"
    ) -> RunFolder:
        """The folder of a run of these settings, made if absent, emptied if `fresh`. option: of the
        command line, by which another folder is chosen.

        Raises ExperimentError if it holds something else: a run of other settings or of other code,
        or files that are none of ours.
        """
        path = Path(path)
        known = path / _IDENTITY
        if path.exists() and not known.exists() and any(path.iterdir()):
            raise ExperimentError(f"{path} is not empty and holds no run; choose another {option}")
        if fresh and known.exists():
            with cls(path, {}).held():
                shutil.rmtree(path)
        identity = {"settings": settings.plain(), "code": code_digest()}
        if known.exists():
            found = _read(known, "", _OF_OTHERS)
            if found != identity:
                what = "settings" if found.get("settings") != identity["settings"] else "code"
                raise ExperimentError(
                    f"{path} holds a run of other {what}; add --fresh to start again there, or "
                    f"choose another {option}"
                )
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write(known, "", identity)
        return cls(path, identity["settings"])

    @classmethod
    def find(cls, path: str | Path) -> RunFolder:
        """The folder of a run that was made before. Raises ExperimentError if it is none."""
        path = Path(path)
        if not (path / _IDENTITY).exists():
            raise ExperimentError(
                f"{path} holds no run; `hesim demo --run-dir DIR`, or `hesim validate MODEL --out "
                "DIR`, makes one"
            )
        return cls(path, _read(path / _IDENTITY, "", _OF_OTHERS)["settings"])

    def held(self, option: str = "--run-dir") -> contextlib.AbstractContextManager[None]:
        """Keep other processes from working in this folder; ExperimentError if one does. option: of
        the command line, by which another folder is chosen.
        """
        return alone_in(self.path, option)

    def done(self, name: str) -> bool:
        """Whether a stage has been finished."""
        return (self.path / f"{name}.json").exists()

    def save(
        self, name: str, figures: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Note a finished stage; its arrays are there before its figures are."""
        noted = dict(figures)
        if arrays is not None:
            packed = io.BytesIO()
            named: dict[str, Any] = dict(arrays)
            np.savez_compressed(packed, **named)
            content = packed.getvalue()
            write_whole(self.path / f"{name}.npz", content)
            noted[_ARRAYS] = self._digest(f"{name}.npz", content)
        _write(self.path / f"{name}.json", self._owner, noted)

    def figures(self, name: str) -> dict[str, Any]:
        """The figures of a finished stage. Raises ExperimentError if they are gone or altered."""
        if not self.done(name):
            raise ExperimentError(
                f"{self.path} holds no finished {name}; run the command that made it to its end"
            )
        found = self._read(name)
        found.pop(_ARRAYS, None)
        return found

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a finished stage. Raises ExperimentError if they are gone or altered."""
        path = self.path / f"{name}.npz"
        remedy = (
            f"remove {name}.json beside it and run the same command again, which makes both anew"
        )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ExperimentError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
        if self._read(name).get(_ARRAYS) != self._digest(path.name, content):
            raise ExperimentError(f"{path} is damaged, or not of this run: {remedy}")
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            return {key: data[key] for key in data.files}

    def _read(self, name: str) -> dict[str, Any]:
        remedy = "remove it and run the same command again, which makes it anew"
        return _read(self.path / f"{name}.json", self._owner, remedy)

    def _digest(self, name: str, content: bytes) -> str:
        return bound_digest(self._owner, name, content).hex()

    @property
    def _owner(self) -> str:
        return json.dumps(self.settings, sort_keys=True)

    def checkpoints(self, seed: int) -> Path:
        """Where the training of a seed keeps its checkpoints."""
        return self.path / f"training-{seed}"

    @property
    def encrypted(self) -> Path:
        """The run folder of the encrypted batches, as `he_backend.session` wants it."""
        return self.path / "encrypted"

    def forget(self) -> None:
        """Remove what finished batches needed: ciphertexts, and the client's secret key."""
        shutil.rmtree(self.encrypted.with_name("encrypted.client"), ignore_errors=True)
        shutil.rmtree(self.encrypted, ignore_errors=True)


def _write(path: Path, owner: str, content: Mapping[str, Any]) -> None:
    """An object as JSON, with a digest that binds it to its name and its owner."""
    plain = json.loads(json.dumps(content))  # keys as JSON has them, hence their order
    whole = {**plain, _DIGEST: _own_digest(path, owner, plain)}
    write_whole(path, json.dumps(whole, indent=1).encode())


def _read(path: Path, owner: str, remedy: str) -> dict[str, Any]:
    """What `_write` wrote. Raises ExperimentError, with the remedy, if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ExperimentError(f"{path} cannot be read ({error}): {remedy}") from None
    told = found.pop(_DIGEST, None) if isinstance(found, dict) else None
    if told is None or told != _own_digest(path, owner, found):
        raise ExperimentError(
            f"{path} was altered, is of another run, or of an earlier version: {remedy}"
        )
    return found


def _own_digest(path: Path, owner: str, content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True).encode()
    return bound_digest(owner, path.name, text).hex()
