"""A machine is one module and one row of the table: nothing else names one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import he_backend
from he_backend.errors import BackendError
from he_backend.machines.protocol import Machine, ServerMachine
from he_backend.machines.table import MACHINES, find, find_for_two_owners

PACKAGE = Path(he_backend.__file__).parent

TOY = '''
"""Values in the clear, which only who has read the secret file gets out again."""

from he_backend.errors import BackendError
from he_backend.machines.slots import SlotsMachine


class ToyMachine(SlotsMachine):
    name = "toy"
    encrypts = True
    opens = False

    @classmethod
    def make_keys(cls, params, rotation_steps, server, client):
        (server / "toy.steps").write_text(repr(sorted(rotation_steps)))
        (client / "toy.secret").write_text("open")

    @classmethod
    def key_holder(cls, params, slots, client):
        machine = cls(params, slots)
        machine.opens = (client / "toy.secret").read_text() == "open"
        return machine

    @classmethod
    def evaluator(cls, params, slots, levels=()):
        return cls(params, slots, ())

    def load_keys(self, server, rotation_steps):
        assert (server / "toy.steps").exists()
        super().load_keys(server, rotation_steps)

    def decrypt(self, cipher):
        if not self.opens:
            raise BackendError("this machine holds no secret")
        return super().decrypt(cipher)
'''

PROGRAM = """
import json, os, sys, warnings
import jax.numpy as jnp, numpy as np
import he_backend, hesim

warnings.simplefilter("ignore")
folder = sys.argv[1]
params = hesim.CKKSParams(11, 2, 40, 50, 60, security=None)
x, w = np.linspace(-1, 1, 8), np.linspace(0, 2, 8)
program = hesim.trace(lambda x, w: jnp.roll(x * x, 3) * w - x.sum(), x, w)
report = he_backend.run(
    program, x, w, params=params, backend="toy", run_dir=folder + "/run", workers=1, clients=1
)
print(json.dumps({
    "package": he_backend.__file__,
    "error": float(np.abs(report.outputs - (np.roll(x * x, 3) * w - x.sum())).max()),
    "encrypted": report.encrypted,
    "backend": report.backend,
    "caller": "he_backend.machines.toy" in sys.modules,
    "server": sorted(os.listdir(folder + "/run/keys")),
    "client": sorted(n for n in os.listdir(folder + "/run.client") if n.startswith("toy")),
}))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[dict, list[str], Path]:
    """What a program on the toy machine reports, and the modules that its own Python ran."""
    place = tmp_path_factory.mktemp("toy")
    shutil.copytree(
        PACKAGE, place / "he_backend", ignore=lambda _, names: {"__pycache__"} & set(names)
    )
    machines = place / "he_backend" / "machines"
    (machines / "toy.py").write_text(TOY)
    python, log = place / "toy-python", place / "ran.log"
    python.write_text(f'#!/bin/sh\necho "$3" >> {log}\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    row = (
        '        "toy": MachineRow("he_backend.machines.toy", "ToyMachine", True, '
        f'("toy.steps",), ("toy.secret",), interpreter={str(python)!r}),\n'
    )
    table = (machines / "table.py").read_text()
    (machines / "table.py").write_text(re.sub(r"(MappingProxyType\(\n    {\n)", r"\1" + row, table))
    run = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(PROGRAM), str(place)],
        env={**os.environ, "PYTHONPATH": f"{place}:{PACKAGE.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), log.read_text().split(), place


def test_one_module_and_one_row_make_a_machine_that_runs_programs(ran):
    found, _, place = ran
    assert found["package"].startswith(str(place))
    assert (found["backend"], found["encrypted"]) == ("toy", True)
    assert found["error"] < 1e-6
    assert not found["caller"], "the caller needs no machine that encrypts"


def test_its_processes_run_under_its_interpreter_and_its_keys_lie_apart(ran):
    found, modules, _ = ran
    assert sorted(modules) == [
        "he_backend.processes.client",
        "he_backend.processes.keys",
        "he_backend.processes.server",
    ]
    assert found["server"] == ["keys.json", "toy.steps"]
    assert found["client"] == ["toy.secret"]


@pytest.mark.parametrize("name", MACHINES)
def test_rows_lead_to_machines_that_keep_the_protocols(name, request, params, tmp_path):
    if name == "openfhe":
        request.getfixturevalue("needs_openfhe")
        params = request.getfixturevalue("digit_params")
    row = find(name)
    kind = row.load()
    server, client = tmp_path / "server", tmp_path / "client"
    server.mkdir()
    client.mkdir()
    kind.make_keys(params, [1, 3], server, client)
    assert {p.name for p in server.iterdir()} == {*row.server_keys, *row.rotation_keys}
    assert {p.name for p in client.iterdir()} == set(row.client_keys)
    holder = kind.key_holder(params, 16, client)
    evaluator = kind.evaluator(params, 16, [1])
    assert isinstance(evaluator, ServerMachine)
    encoded = evaluator.encode(np.arange(16.0), 1, params.scale(1))
    evaluator.load_keys(server, [1, 3])
    assert isinstance(holder, Machine)
    assert (holder.name, holder.encrypts) == (name, row.encrypts)
    a = holder.encrypt(np.arange(16.0), 1, params.scale(1))
    moved = evaluator.rotate(evaluator.from_bytes(holder.to_bytes(a), 1, a.scale), 3)
    back = holder.decrypt(holder.from_bytes(evaluator.to_bytes(moved), 1, a.scale))
    np.testing.assert_allclose(back, np.roll(np.arange(16.0), -3), atol=1e-6)
    twice = evaluator.add_plain(evaluator.from_bytes(holder.to_bytes(a), 1, a.scale), encoded)
    back = holder.decrypt(holder.from_bytes(evaluator.to_bytes(twice), 1, a.scale))
    np.testing.assert_allclose(back, 2 * np.arange(16.0), atol=1e-6)


def test_unknown_machines_are_refused_with_those_that_there_are():
    with pytest.raises(
        BackendError, match="'abacus' is unknown; use 'slots' or 'pyfhel' or 'openfhe'"
    ):
        find("abacus")


def test_a_machine_whose_library_trusts_keys_is_for_one_owner():
    assert find_for_two_owners("pyfhel") is find("pyfhel")
    with pytest.raises(BackendError, match=r"one owner of data .* owners take 'pyfhel'$"):
        find_for_two_owners("openfhe")
    bundle = SimpleNamespace(operands=[], versions={}, for_key_holder=lambda: bundle)
    with pytest.raises(BackendError, match="for one owner"):
        he_backend.Evaluator(cast(Any, bundle), "unix:/nowhere", "/nowhere", backend="openfhe")
    with pytest.raises(BackendError, match="for one owner"):
        he_backend.connect(cast(Any, bundle), "unix:/nowhere", backend="openfhe")


def test_no_other_module_names_an_encrypted_machine():
    inside = PACKAGE / "machines"
    for path in sorted(PACKAGE.rglob("*.py")):
        if inside not in path.parents:
            assert "PyfhelMachine" not in path.read_text(), path


def test_a_machine_whose_operations_share_the_cores_has_them_by_worker(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    own = find("openfhe")
    assert dict(own.variables())["OMP_NUM_THREADS"] == "8"
    assert dict(own.variables(3))["OMP_NUM_THREADS"] == "2"
    assert dict(own.variables(9))["OMP_NUM_THREADS"] == "1"
    assert find("pyfhel").variables(1) == find("pyfhel").environment
