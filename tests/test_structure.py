"""How the sources lie: imports without circles, small files and folders, arguments with types,
arrays with shapes.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import hesim
from hesim.circuit.circuit import TensorLocation
from hesim.circuit.plain.machine import Evaluator
from hesim.circuit.plain_rows import PlaintextFamily

TOP = Path(__file__).resolve().parent.parent
PACKAGES = ("approx", "hesim", "models", "he_backend", "experiments")
LARGEST_FILE = 600
LARGEST_FOLDER = 22


@cache
def modules() -> dict[str, Path]:
    """Every module of the five packages, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (TOP / package).rglob("*.py"):
            parts = path.relative_to(TOP).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run, so not what stands under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, at its top or inside a function."""
    found = set()
    for node in statements(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {n if n in modules() else str(node.module) for n in names}
    return found & modules().keys()


def test_no_file_imports_itself_through_others():
    graph = {name: imports(path) - {name} for name, path in modules().items()}
    assert sum(map(len, graph.values())) > 500
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files of a circle


def test_packages_import_downwards_only():
    order = {
        "approx": {"approx"},
        "hesim": {"approx", "hesim"},
        "models": {"approx", "hesim", "models"},
        "he_backend": {"approx", "hesim", "he_backend"},
        "experiments": set(PACKAGES),
    }
    for name, path in modules().items():
        above = {n for n in imports(path) if n.split(".")[0] not in order[name.split(".")[0]]}
        assert not above, f"{name} imports {sorted(above)}"


def test_files_and_folders_are_small_enough_to_read():
    long = {n: len(p.read_text().splitlines()) for n, p in modules().items()}
    assert {n: lines for n, lines in long.items() if lines > LARGEST_FILE} == {}
    folders = {p.parent for p in modules().values()}
    sizes = {f.relative_to(TOP).as_posix(): len(list(f.glob("*.py"))) for f in folders}
    assert {f: size for f, size in sizes.items() if size > LARGEST_FOLDER} == {}


def test_every_argument_of_hesim_has_a_type():
    bare = []
    for path in (p for n, p in modules().items() if n.split(".")[0] == "hesim"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            a = node.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            bare += [
                f"{path.relative_to(TOP)}:{x.lineno} {node.name}({x.arg})"
                for x in given
                if x.annotation is None and x.arg not in ("self", "cls")
            ]
    assert bare == []


SHAPED = re.compile(r"\b\w+\[(?:np\.ndarray|jax\.Array|Array|ArrayLike), '[^']*'\]")


def annotated(owner: Any) -> Iterator[tuple[str, str]]:
    """What a public function or class says of its arguments, results and fields, as written."""
    said = [(owner.__name__, inspect.get_annotations(owner))]
    for name, member in vars(owner).items() if inspect.isclass(owner) else ():
        function = getattr(member, "fget", getattr(member, "func", member))
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__"):
            said.append((f"{owner.__name__}.{name}", function.__annotations__))
    for where, found in said:
        yield from ((where, annotation) for annotation in found.values())


def test_arrays_of_public_signatures_of_hesim_have_shapes():
    public = [value for name in hesim.__all__ if callable(value := getattr(hesim, name))]
    seen, bare = 0, []
    for owner in (*public, Evaluator, PlaintextFamily, TensorLocation):
        for where, annotation in annotated(owner):
            rest, count = SHAPED.subn("", annotation)
            seen += count
            bare += [f"{where}: {annotation}"] if re.search(r"ndarray|Array", rest) else []
    assert seen > 30 and bare == []
