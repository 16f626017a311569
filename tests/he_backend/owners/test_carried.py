"""A training at another owner's: steps go on from what stays encrypted at the evaluator's."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import numpy as np
import pytest

import he_backend
import hesim
from he_backend.errors import EvaluatorGoneError, ProtocolError, RunFolderError
from he_backend.owners import wire
from hesim.bundles.bundle import Bundle

STEPS = 3
RNG = np.random.default_rng(11)
STATE = RNG.uniform(-1, 1, 4), RNG.uniform(-1, 1, 4)
BATCHES = [
    (RNG.uniform(-1, 1, (4, 4)), RNG.uniform(-1, 1, 4), np.float32(0.1 / (k + 1)))
    for k in range(STEPS)
]


def step(state, x, labels, rate):
    w, m = state
    error = x @ w - labels
    m = 0.5 * m + x.T @ error * 0.25
    return (w - rate * m, m), error


def exact() -> list[Any]:
    state, found = STATE, []
    for batch in BATCHES:
        found.append(step(state, *batch))
        state = found[-1][0]
    return found


@pytest.fixture(scope="module")
def training() -> Bundle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = hesim.CKKSParams(11, 3, 40, 50, 60, security=None)
    program = hesim.trace(step, STATE, *BATCHES[0], encrypted=(True, True, True, False))
    circuit = hesim.compile(program, params, carried={0: 0})
    examples = [(STATE, *batch) for batch in BATCHES]
    return hesim.bundle(circuit, *examples[0], open=3, examples=examples[1:], margin=2.0)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=2.0**-16)


@pytest.mark.parametrize("backend", ["slots", "pyfhel"])
def test_steps_go_on_at_the_evaluators_and_the_key_holder_reads_the_state(
    training, serving, connecting, backend
):
    """Each step in a visit of its own, in which the one before is read back."""

    def run(session: he_backend.Connection, k: int) -> Any:
        if k == 0:
            return session.run(STATE, *BATCHES[0], batch=0)
        return session.run(None, *BATCHES[k], batch=k, after=k - 1)

    at: dict[str, Any] = {"bundle": training, "backend": backend}
    expected = exact()
    with serving(**at) as evaluator:
        for last in range(STEPS):
            with connecting(evaluator, **at) as session:
                for k in range(max(last - 1, 0), last + 1):
                    state, error = run(session, k)
                    assert state == (None, None)
                    close(error, expected[k][1])
        with connecting(evaluator, **at) as session:
            for k in (0, STEPS - 1):
                (w, m), error = session.read(k)
                close(w, expected[k][0][0])
                close(m, expected[k][0][1])
                close(error, expected[k][1])


def test_what_is_not_kept_any_more_is_not_gone_on_from(
    training, serving, connecting, tmp_path, log
):
    at: dict[str, Any] = {"bundle": training}
    with serving(**at) as evaluator, connecting(evaluator, **at) as session:
        with pytest.raises(RunFolderError, match="no batch '7'"):
            session.run(None, *BATCHES[1], batch=1, after=7)
        session.run(STATE, *BATCHES[0], batch=0)
        for work in (tmp_path / "evaluator").glob("*/batches/*"):
            shutil.rmtree(work)
        with pytest.raises(EvaluatorGoneError):
            session.run(None, *BATCHES[1], batch=1, after=0)
        with pytest.raises(EvaluatorGoneError):
            session.read(0)
    assert "is not kept any more" in log()


def test_only_what_is_carried_may_be_left_out(training):
    with pytest.raises(hesim.BundleError, match=r"arguments\[0\] must be a tuple of 2"):
        training.arguments(None, *BATCHES[0])
    with pytest.raises(hesim.BundleError, match=r"args\[1\] must be"):
        training.arguments(None, None, *BATCHES[0][1:], follows=True)
    leaves = training.arguments(None, *BATCHES[0], follows=True)
    assert not leaves[0].any() and leaves[2].shape == (4, 4)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"name": "../0", "ciphers": [5]}, "which"),
        ({"name": "a" * 32, "ciphers": 5}, "which"),
        ({"name": "a" * 32, "ciphers": []}, "number"),
        ({"name": "a" * 32, "ciphers": [5, 5]}, "number"),
        ({"name": "a" * 32, "ciphers": [6]}, "no batch leaves"),
        ({"name": "a" * 32, "ciphers": ["5"]}, "no batch leaves"),
    ],
)
def test_nothing_else_is_brought(header, what):
    assert wire.check_read({"name": "a" * 32, "ciphers": [5]}, {5}) == [5]
    with pytest.raises(ProtocolError, match=what):
        wire.check_read(header, {5})
