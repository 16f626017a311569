"""How the sources lie: imports without circles, small files and folders, arguments with types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

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
