"""The public names of every package are what they promise, whatever was imported before."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

PACKAGES = ("approx", "hesim", "models", "he_backend", "experiments")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_in_all_exists_and_is_no_module(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType), name
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("hesim.trace", "trace"),
        ("hesim.simulate", "trace"),
        ("hesim.simulate", "refresh"),
        ("he_backend.run", "run"),
    ],
)
def test_a_function_outranks_the_module_of_its_name(module: str, name: str) -> None:
    package = module.partition(".")[0]
    code = f"import {module}, {package}; assert callable({package}.{name})"
    subprocess.run([sys.executable, "-c", code], check=True)
