"""Places in the caller's code: cells of notebooks by number and line."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from IPython.core.interactiveshell import InteractiveShell

kernel = sys.argv[1] == "kernel"
if kernel:
    from ipykernel.compiler import XCachingCompiler

    InteractiveShell.compiler_class = XCachingCompiler
shell = InteractiveShell.instance()


def run(code):
    result = shell.run_cell(code, store_history=True)
    result.raise_error()
    return result.result


run("import hesim, jax.numpy as jnp, numpy as np")
run("def f(x):\\n    y = x * x\\n    return y + x")
program = run("hesim.trace(f, np.ones(3))")
assert [e.source.cell for e in program.ops] == [2, 2], program
assert str(program.ops[0].source) == "cell 2, line 2 (f)", program.ops[0].source
assert program.ops[1].source.brief == "cell 2, line 3"
assert "ipykernel" not in str(program) and "ipython-input" not in str(program), program
code = "try:\\n    hesim.trace(jnp.exp, np.ones(3))\\nexcept Exception as e:\\n    E = str(e)"
run(code.replace("jnp.exp", "lambda x: jnp.exp(x)"))
assert "cell 4, line 2" in shell.user_ns["E"], shell.user_ns["E"]
"""


@pytest.mark.parametrize("compiler", ["kernel", "terminal"])
def test_operations_of_a_notebook_are_named_by_cell_and_line(compiler: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, compiler], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
