"""Packages whose public names load on first use (PEP 562), so that importing one is cheap.

A process without JAX can then import the parameters, the Circuits and the machines.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

__all__ = ["attach"]


def attach(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    A public name outranks a module of the same name (`hesim.trace`), which the import system
    would otherwise bind to the package whenever that module is first imported.

    Args:
      package: its `__name__`.
      homes: module of each public name.
    """
    module = sys.modules[package]

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in homes and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

    module.__class__ = Package

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return load, lambda: sorted(homes)
