"""A saved Circuit knows its Program again in another trace of the same function, and no other."""

from __future__ import annotations

import dataclasses
import errno

import jax.numpy as jnp
import numpy as np
import pytest

import approx
import he_backend
import hesim
from hesim.circuit.circuit import Circuit
from hesim.circuit.publics import bound

SQUARE = approx.Polynomial((0.5, 0.0, 0.5))
ARGS = np.linspace(-1, 1, 8).reshape(2, 4), np.full((4, 4), 0.25), np.array([0, 2])


def traced(scale=2.0, table=(1.0, -1.0), poly=SQUARE, args=ARGS):
    """Public operands of every kind: a value, a reciprocal, a selected part, places, a constant."""
    closed = np.repeat(np.array(table), 2)

    def f(x, w, places):
        y = poly(x @ w) * scale + closed / jnp.sum(w)
        y = jnp.where(w[0] > 0, y, 0.5)
        return jnp.take(y, places, axis=1) * w[0, 0]

    return hesim.trace(f, *args, encrypted=(0,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    params = hesim.CKKSParams(11, 4, 40, 50, 60, security=None)
    circuit = hesim.compile(traced(), params)
    path = tmp_path_factory.mktemp("circuit") / "saved.npz"
    circuit.save(path)
    return circuit, path


def test_a_loaded_circuit_runs_with_another_trace(saved):
    circuit, path = saved
    own = he_backend.run(circuit.program, *ARGS, circuit=circuit, backend="slots")
    loaded, program = Circuit.load(path), traced()
    assert loaded.program is None
    report = he_backend.run(program, *ARGS, circuit=loaded, backend="slots")
    np.testing.assert_array_equal(report.outputs, own.outputs)
    with he_backend.session(program, circuit=loaded, backend="slots") as session:
        np.testing.assert_array_equal(session.run(*ARGS).outputs, own.outputs)
    (found,) = hesim.certify(loaded, ARGS, program=program, keys=2).outputs
    (known,) = hesim.certify(circuit, ARGS, keys=2).outputs
    assert found and known and found.std == known.std > 0


def test_saved_again_it_is_the_same_file(saved, tmp_path):
    _, path = saved
    loaded = Circuit.load(path)
    for k, circuit in enumerate((loaded, bound(loaded, traced()))):
        circuit.save(tmp_path / f"{k}.npz")
        assert (tmp_path / f"{k}.npz").read_bytes() == path.read_bytes()


def test_the_operand_that_is_not_finite_is_named_by_its_operation(saved):
    program = traced()
    circuit = bound(Circuit.load(saved[1]), program)
    bad = np.array(ARGS[1])
    bad[0, 0] = np.nan
    with pytest.raises(hesim.HesimError, match=r"`\w+` at .*test_origin\.py"):
        circuit.publics.evaluate(program.flatten((ARGS[0], bad, ARGS[2])))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"scale": 3.0}, "operations"),
        ({"poly": approx.Polynomial((0.5, 0.0, 0.25))}, "operations"),
        ({"table": (1.0, -2.0)}, "values that the function closes over"),
        ({"args": (ARGS[0], ARGS[1], np.array([0, 2, 1]))}, "other shapes"),
    ],
)
def test_another_program_is_refused_by_what_differs(saved, changes, what):
    with pytest.raises(hesim.ParameterError, match=f"not compiled from this program.*{what}"):
        bound(Circuit.load(saved[1]), traced(**changes))
    with pytest.raises(he_backend.BackendError, match="not compiled from this program"):
        he_backend.run(traced(**changes), *ARGS, circuit=Circuit.load(saved[1]), backend="slots")


def test_a_circuit_that_does_not_say_its_program_is_refused(saved):
    nameless = dataclasses.replace(Circuit.load(saved[1]), origin=None)
    with pytest.raises(hesim.ParameterError, match="does not say which program"):
        bound(nameless, traced())


def test_a_circuit_is_saved_whole_or_the_old_file_stays(saved, tmp_path, monkeypatch):
    path = tmp_path / "circuit.npz"
    saved[0].save(path)
    before = path.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hesim.files.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*circuit\.npz"):
        saved[0].save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
