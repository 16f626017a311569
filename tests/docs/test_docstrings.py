"""Docstrings of public names: complete, with units, shapes and errors, and an example that runs."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("approx", "hesim", "models", "he_backend", "experiments")
NAMES = [
    f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__
]

#: What a parameter or attribute of such a name is counted in.
UNITS = {
    r"seconds$|^elapsed$|^eta$": "second",
    r"bytes$|^memory$": "byte",
    r"bits$": "bit",
    r"^levels?$|^depth$|_depth$": "level",
    r"^slots$": "slot",
}


def _found(name: str) -> Any:
    package, _, own = name.partition(".")
    return getattr(importlib.import_module(package), own)


def _home(name: str) -> str:
    """The module that a name is defined in, by the package's own table."""
    package, _, own = name.partition(".")
    module = importlib.import_module(package)
    table = getattr(module, "_HOMES", None) or getattr(module, "_HOME", {})
    home = table[own]
    return home if home.startswith(f"{package}.") else f"{package}.{home}"


def _docstring(name: str) -> str:
    thing = _found(name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        text = thing.__doc__ or ""
        made = text.startswith(f"{thing.__name__}(")  # by dataclass or NamedTuple, of the fields
        return "" if made else inspect.cleandoc(text)
    return _of_constant(name)


def _of_constant(name: str) -> str:
    """The string after the assignment of a constant, as documentation tools read it."""
    source = inspect.getsource(importlib.import_module(_home(name)))
    body = ast.parse(source).body
    for node, after in zip(body, body[1:], strict=False):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name.partition(".")[2] for t in targets):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
    return ""


def _is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, BaseException)


def _words(thing: Any) -> dict[str, str]:
    """Parameters of a function, fields or parameters of a class, with their annotations."""
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        return {
            f.name: str(f.type) for f in dataclasses.fields(thing) if not f.name.startswith("_")
        }
    if inspect.isclass(thing) and hasattr(thing, "_fields"):
        return {name: str(thing.__annotations__[name]) for name in thing._fields}  # type: ignore[attr-defined]
    if _is_error(thing):
        return {}
    if not inspect.isclass(thing) and not inspect.isroutine(thing):
        return {}
    made = thing.__init__ if inspect.isclass(thing) else thing
    parameters = inspect.signature(made).parameters.values()
    return {p.name: str(p.annotation) for p in parameters if p.name not in ("self", "args")}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_everything_is(name: str) -> None:
    text = _docstring(name)
    assert text, "no docstring"
    missing = [w for w in _words(_found(name)) if not re.search(rf"(?<!\w){w}(?!\w)", text)]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_it_names_units_and_shapes(name: str) -> None:
    text, words = _docstring(name), _words(_found(name))
    for pattern, unit in UNITS.items():
        if any(re.search(pattern, word) for word in words):
            assert re.search(rf"\b{unit}s?\b", text), unit
    if any("Array" in kind or "ndarray" in kind for kind in words.values()):
        assert re.search(r"\bshape|\([a-z0-9]+(, ?[a-z0-9]+)*,?\)", text), "no shapes"


@pytest.mark.parametrize("name", [n for n in NAMES if inspect.isroutine(_found(n))])
def test_a_function_names_its_errors(name: str) -> None:
    assert re.search(r"^Raises(:$| nothing of its own\.$)", _docstring(name), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_its_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_examples(_docstring(name))
    assert examples, "no example"
    test = doctest.DocTest(examples, {}, name, None, None, None)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert not said, "".join(said)
