"""Errors raised on purpose: of one family, and of Python's own kinds besides."""

from __future__ import annotations

import ast
import builtins
import importlib
from collections.abc import Iterator
from types import ModuleType

from hesim.errors import HesimError
from tests.test_structure import modules, tree

SIGNALS = {"Mixed", "NoPlan", "Overspent", "Abandoned", "Closed", "Stopped", "_Stopped"}
"""No errors: they tell the caller that what it asked for has come, or to go another way."""

BARE = {"ValueError", "TypeError", "RuntimeError", "LookupError", "IndexError", "Exception"}


OPTIONAL = {"dask", "distributed"}
"""Libraries that some modules need, and that need not be installed."""


def imported(name: str) -> ModuleType | None:
    """A module of ours; None if it needs a library that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            return None
        raise


def exceptions() -> Iterator[type[Exception]]:
    """The exception classes that our modules define."""
    for name, path in modules().items():
        classes = [n.name for n in tree(path).body if isinstance(n, ast.ClassDef) and n.bases]
        module = imported(name) if classes else None
        for found in (getattr(module, c) for c in classes if module is not None):
            if isinstance(found, type) and issubclass(found, Exception):
                yield found


def test_errors_are_of_one_family_and_of_a_builtin_kind():
    errors = [c for c in exceptions() if not issubclass(c, Warning) and c.__name__ not in SIGNALS]
    assert len(errors) > 30
    strangers = [c for c in errors if not issubclass(c, HesimError)]
    assert strangers == []
    kinds = {c: [b for b in c.__mro__ if b.__module__ == builtins.__name__] for c in errors}
    assert [c for c in errors if kinds[c][0] is Exception] == [HesimError]


def test_no_error_of_ours_is_a_bare_builtin():
    bare = [
        f"{name}:{node.lineno} raises {ast.unparse(node.exc.func)}"
        for name, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and ast.unparse(node.exc.func) in BARE
    ]
    assert bare == []
