"""What packages tell hesim about their stack frames, and about operations inside library functions.

A package that wants to be read registers by a file `hesim_frames.toml`: whether its own frames are
machinery or a model, which libraries it is built on, and what to use instead of functions of those
libraries that do more than additions and products.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sysconfig
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

__all__ = ["Frame", "Registered", "Remedy", "layer_of", "registered", "remedy_of"]

_FILE = "hesim_frames.toml"
_BESIDE = Path(__file__).resolve().parents[2]


class Frame(NamedTuple):
    """One frame of a stack."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Remedy:
    """What to use instead of a library function.

    Attributes:
      name: of the function or layer, for messages; {function} in texts stands for its own name.
      frames: "path of a file within its library's folder:function", the function as it begins.
      reason, instead: sentences.
      operations: primitives that it is about; empty for all.
    """

    name: str
    frames: tuple[str, ...]
    reason: str
    instead: str
    operations: tuple[str, ...] = ()

    def named(self, function: str) -> Remedy:
        """The same with the function's name where its texts leave room for it."""
        texts = {key: getattr(self, key) for key in ("name", "reason", "instead")}
        return replace(self, **{k: t.replace("{function}", function) for k, t in texts.items()})

    def about(self, frame: Frame) -> bool:
        """Whether it is about a function that this frame belongs to."""
        function = frame.function.split(".")[0]
        path = frame.file.replace(os.sep, "/")
        for known in self.frames:
            file, name = known.rsplit(":", 1)
            if path.endswith("/" + file) and function in (name, f"{name}_deprecated"):
                return True
        return False


@dataclass(frozen=True)
class Registered:
    """What all packages have registered.

    Attributes:
      machinery: beginnings of paths of frames that are skipped, those of libraries included.
      packages: of these and of frames that belong to models of packages.
      libraries: names of the libraries. remedies: of library functions.
      errors: (what it says, what to do instead) by qualified name of an exception's class.
    """

    machinery: tuple[str, ...]
    packages: tuple[str, ...]
    libraries: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    errors: dict[str, tuple[str, str]]


@functools.lru_cache(maxsize=1)
def registered() -> Registered:
    """The files of all packages beside hesim, its own included."""
    machinery: list[str] = []
    models: list[str] = []
    libraries: list[str] = []
    remedies: list[Remedy] = []
    errors: dict[str, tuple[str, str]] = {}
    for path in sorted(_BESIDE.glob(f"*/{_FILE}")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        (machinery if data["role"] == "machinery" else models).append(str(path.parent) + os.sep)
        libraries += data.get("libraries", ())
        for row in data.get("remedy", ()):
            frames, operations = tuple(row["frames"]), tuple(row.get("operations", ()))
            remedies.append(Remedy(row["name"], frames, row["reason"], row["instead"], operations))
        errors.update({row["name"]: (row["says"], row["instead"]) for row in data.get("error", ())})
    outside = (*_homes(libraries), *_of_python())
    return Registered(
        (*machinery, *outside), (*machinery, *models), tuple(libraries), tuple(remedies), errors
    )


def _homes(libraries: Sequence[str]) -> list[str]:
    """Folders of libraries, found without importing them."""
    roots = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    for name in libraries:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            roots.add(str(Path(spec.origin).resolve().parent.parent))
    return sorted(os.path.join(root, name) + os.sep for root in roots for name in libraries)


def _of_python() -> tuple[str, ...]:
    home = sysconfig.get_path("stdlib")
    return (os.path.join(home, "functools.py"), os.path.join(home, "contextlib.py"), "<frozen")


def _inside(trail: Sequence[Frame]) -> list[Frame]:
    """Frames of libraries between an operation and the code that called them, innermost first."""
    found = []
    for frame in trail:
        if not frame.file.startswith(registered().machinery):
            if frame.file.startswith("<"):  # generated methods of dataclasses
                continue
            break
        found.append(frame)
    return found


def remedy_of(operation: str, trail: Sequence[Frame]) -> Remedy | None:
    """What was registered of the library function around an operation: of several, the one that the
    caller called.
    """
    for frame in reversed(_inside(trail)):
        for remedy in registered().remedies:
            fits = not remedy.operations or operation in remedy.operations
            if fits and remedy.about(frame):
                return remedy.named(frame.function.split(".")[0])
    return None


def layer_of(trail: Sequence[Frame]) -> str:
    """A name for the function of a library on top of JAX that an operation lies in; empty if it
    lies in none.
    """
    for frame in _inside(trail):
        for library in registered().libraries:
            at = f"{os.sep}{library}{os.sep}"
            function = frame.function.split(".")[0]
            if library.startswith("jax") or at not in frame.file or function.startswith("_"):
                continue
            return f"{library}'s {function}"
    return ""
