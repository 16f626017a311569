"""The modules of approx import downwards: no circle, those inside functions included."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import approx


def imported(path, names):
    """The modules of the package that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "approx":
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("approx."):
            yield str(node.module).removeprefix("approx.")


def test_no_module_of_approx_needs_itself():
    assert approx.__file__ is not None
    files = [p for p in Path(approx.__file__).parent.glob("*.py") if p.stem != "__init__"]
    names = {p.stem for p in files}
    order = list(TopologicalSorter({p.stem: set(imported(p, names)) for p in files}).static_order())
    assert order.index("plan") < order.index("polynomial") < order.index("fitting")
