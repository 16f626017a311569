"""What the public functions say to arguments that cannot be."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import hesim
from hesim.errors import ParameterError, TraceError
from hesim.noise.bootstrap import law
from hesim.noise.profiles import profile

W = np.random.default_rng(0).normal(size=(4, 4))
X = np.full((2, 4), 0.5)
PARAMS = hesim.CKKSParams(13, 3, 30, 40, 50)


def fn(x):
    return jnp.square(x @ W)


@pytest.fixture(scope="module")
def program():
    return hesim.trace(fn, X)


@pytest.fixture(scope="module")
def circuit(program):
    return hesim.compile(program, PARAMS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bits": -1}, "bits=-1"),
        ({"bits": math.nan}, "bits=nan"),
        ({"slots": 0}, "slots=0"),
        ({"memory": 0}, "memory=0"),
        ({"memory": math.nan}, "memory=nan"),
        ({"rings": ()}, "rings"),
        ({"rings": (40,)}, "from 4 to 17"),
        ({"rings": "13"}, "binary logarithms"),
        ({"args": (X * np.nan,)}, "NaN or infinite"),
        ({"keys": 0, "rings": (12,)}, "keys=0"),
        ({"security": 100}, "128, 192 or 256"),
        ({"bits": "ten"}, "bits='ten' must be a number"),
        ({"slots": 1.5}, "slots=1.5 must be a whole number"),
        ({"memory": "1 GB"}, "memory='1 GB' must be a number"),
        ({"headroom": True}, "headroom=True"),
        ({"keys": 2.5}, "keys=2.5"),
    ],
)
def test_suggest_names_the_argument(program, changes, said):
    with pytest.raises(ParameterError, match=said):
        hesim.suggest(program, **{"bits": 10, **changes})


def test_a_secret_of_more_coefficients_than_the_ring_has_is_refused(circuit):
    heavy = dataclasses.replace(profile("seal"), secret_weight=2**13 + 1)
    with pytest.raises(ParameterError, match="secret_weight=8193"):
        hesim.certify(circuit, (X,), keys=1, profile=heavy)


def test_a_bare_array_is_no_tuple_of_arguments(program, circuit):
    bare: Any = X
    for call in (lambda: hesim.certify(circuit, bare), lambda: hesim.calibrate(program, [bare])):
        with pytest.raises(TraceError, match=r"as in \(x,\), not as ndarray"):
            call()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((np.ones(3),), "takes 2 arguments, as traced, not 1"),
        ((np.ones(3).tolist(), {"w": np.ones(3)}), r"args\[0\] of f must be one array, .* a list"),
        ((np.ones(3), {"v": np.ones(3)}), r"args\[1\] of f must be a .*'w'.* not a .*'v'"),
    ],
)
def test_the_argument_of_another_structure_is_named(args, words):
    def f(x, more):
        return x * more["w"]

    program = hesim.trace(f, np.ones(3), {"w": np.ones(3)})
    with pytest.raises(hesim.TraceError, match=words):
        program(*args)


def test_suggest_needs_something_encrypted():
    with pytest.raises(ParameterError, match="no encrypted input"):
        hesim.suggest(hesim.trace(fn, X, encrypted=()), bits=10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_said_of_values_that_no_ciphertext_holds(program, circuit, bad):
    args = (X * bad,)
    for predicted in (
        lambda: hesim.predict(program, PARAMS, args),
        lambda: hesim.certify(circuit, args),
        lambda: hesim.worst_input(program, PARAMS, (-1, 1), args),
    ):
        with pytest.raises(ParameterError, match=r"args\[0\] of fn holds NaN or infinite"):
            predicted()
    with pytest.raises(ParameterError, match=r"`args\[0\]` is NaN or infinite"):
        hesim.calibrate(program, [args])


def test_a_function_is_no_program_and_a_program_no_circuit(program):
    function: Any = fn
    number: Any = 3
    for wrong in (
        lambda: hesim.predict(function, PARAMS, (X,)),
        lambda: hesim.suggest(function, bits=10),
        lambda: hesim.calibrate(function, [(X,)]),
        lambda: hesim.certify(program, (X,)),
        lambda: hesim.trace(number, X),
    ):
        with pytest.raises(TraceError, match="takes a (Program|Circuit|function)"):
            wrong()


def test_certify_needs_a_key(circuit):
    with pytest.raises(ParameterError, match="keys=0"):
        hesim.certify(circuit, (X,), keys=0)


@pytest.mark.parametrize("price", [-1, math.nan, "dear"])
def test_a_refresh_has_a_price(program, price):
    with pytest.raises(ParameterError, match="refresh_price"):
        hesim.compile(program, PARAMS, refresh_price=price)


def test_python_control_flow_on_traced_values_is_named_with_its_line():
    def branching(x):
        total = x.sum()
        if total > 0:
            return x
        return -x

    line = branching.__code__.co_firstlineno + 2
    with pytest.raises(TraceError, match=rf"test_bad_input.py:{line} \(.*branching\)"):
        hesim.trace(branching, X)


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_files_are_named(program, circuit, tmp_path, damage):
    written = {hesim.Circuit: circuit, hesim.Calibration: hesim.calibrate(program, [(X,)])}
    for kind, thing in written.items():
        path = tmp_path / kind.__name__
        thing.save(path)
        kind.load(path)
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"{}"}[damage])
        with pytest.raises(ParameterError, match=f"{path} holds no {kind.__name__}, is damaged"):
            kind.load(path)


def test_a_calibration_of_another_program_is_refused(program, tmp_path):
    hesim.calibrate(program, [(X,)]).save(tmp_path / "c")
    with pytest.raises(ParameterError, match="other operations"):
        hesim.Calibration.load(tmp_path / "c", hesim.trace(lambda x: x @ W, X))


@pytest.mark.parametrize("name", ["error_variance", "rounding_variance", "decryption_variance"])
def test_profiles_have_no_negative_variance(name):
    with pytest.raises(ParameterError, match=name):
        dataclasses.replace(profile("seal"), **{name: -1.0})


def test_a_circuit_of_other_parameters_is_refused(program, circuit):
    other = hesim.CKKSParams(14, 3, 30, 60, 60)
    calibration = hesim.calibrate(program, [(X,)])
    calibration.check(PARAMS, circuit)
    for refused in (
        lambda: calibration.check(other, circuit),
        lambda: hesim.worst_input(program, other, (-1, 1), (X,), circuit=circuit),
    ):
        with pytest.raises(ParameterError, match="other parameters|compiled for"):
            refused()


@pytest.mark.parametrize(
    "change", [{"secret_weight": -5}, {"digit_primes": 1.5}, {"mantissa_bits": math.nan}]
)
def test_profiles_count_in_whole_numbers(change):
    with pytest.raises(ParameterError, match=f"{next(iter(change))}=.* whole number"):
        dataclasses.replace(profile("seal"), **change)


@pytest.mark.parametrize("change", [{"bits": math.nan}, {"log2_failure": 3.0}])
def test_a_bootstrap_law_is_a_law(change):
    with pytest.raises(ParameterError, match="bits of 200 at most, and a failure of probability 1"):
        dataclasses.replace(law("openfhe"), **change)


def test_a_program_without_operations_has_no_worst_input():
    with pytest.raises(ParameterError, match="computes nothing"):
        hesim.worst_input(lambda x: x, PARAMS, (-1, 1), (X,))
