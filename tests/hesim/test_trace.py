"""`trace`: what a Program keeps of a function, and what it refuses, with the caller's own line."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import approx
from he_backend import run
from hesim import CKKSParams, NotHomomorphicError, Program, TraceError, refresh, trace
from hesim.program import is_key

X = np.linspace(-1.0, 1.0, 6).reshape(2, 3)


def names(program: Program) -> list[str]:
    return [eqn.name for eqn in program.ops]


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def refused(fn: Callable, *args, encrypted=(0,)) -> NotHomomorphicError:
    with pytest.raises(NotHomomorphicError) as caught:
        trace(fn, *args, encrypted=encrypted)
    return caught.value


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "operation", "advice"),
    [
        (jnp.exp, "exp", 'approx.fit("exp"'),
        (jnp.exp2, "exp2", "approx.fit(jnp.exp2"),
        (jnp.expm1, "expm1", "approx.fit(jnp.expm1"),
        (jnp.log, "log", 'approx.fit("log"'),
        (jnp.log1p, "log1p", "approx.fit(jnp.log1p"),
        (jnp.tanh, "tanh", 'approx.fit("tanh"'),
        (jnp.sqrt, "sqrt", 'approx.fit("sqrt"'),
        (lax.rsqrt, "rsqrt", 'approx.fit("inv_sqrt"'),
        (jnp.abs, "abs", 'approx.fit("abs"'),
        (jnp.sign, "sign", 'approx.fit("sign"'),
        (jnp.sin, "sin", "approx.fit(jnp.sin"),
        (lax.erf, "erf", 'approx.fit("erf"'),
        (jax.nn.sigmoid, "logistic", 'approx.fit("sigmoid"'),
        (jax.nn.relu, "max", 'approx.fit("relu"'),
        (jax.nn.silu, "logistic", 'approx.fit("sigmoid"'),
        (jax.nn.gelu, "tanh", 'approx.fit("tanh"'),
        (lambda x: jnp.maximum(x, x[::-1]), "max", 'approx.composite("sign"'),
        (lambda x: x.max(), "reduce_max", 'approx.composite("sign"'),
        (lambda x: jnp.clip(x, -1, 1), "max", 'approx.composite("sign"'),
        (jnp.sort, "sort", 'approx.composite("sign"'),
        (jnp.argmax, "argmax", 'approx.composite("sign"'),
        (lambda x: x > 0, "gt", 'approx.composite("sign"'),
        (lambda x: 1.0 / x, "div", 'approx.fit("inv"'),
        (lambda x: x / x.sum(), "div", 'approx.fit("inv"'),
        (lambda x: x**-2, "integer_pow", 'approx.fit("inv"'),
        (lambda x: x**0.5, "pow", "approx.fit(lambda x: x**a"),
        (lambda x: x**1.5, "pow", "approx.fit(lambda x: x**a"),
        (lambda x: x ** jnp.array([1.0, 2.0, 3.5]), "pow", "approx.fit(lambda x: x**a"),
        (lambda x: 2.0**x, "pow", "approx.fit(lambda x: x**a"),
        (lambda x: x.astype(jnp.int32), "convert_element_type", "Keep encrypted values floating"),
        (jnp.floor, "floor", 'approx.composite("sign"'),
        (lambda x: jnp.fft.fft(x), "convert_element_type", "x @ cos"),
    ],
)
def test_refusal_names_operation_line_and_remedy(fn, operation, advice):
    error = refused(lambda x: fn(x), X)
    line = here() - 1
    assert error.operation == operation
    assert error.source is not None
    assert Path(error.source.file).name == Path(__file__).name
    assert error.source.function.endswith("<lambda>")
    assert error.source.line in (line, *_lambda_lines(fn))
    assert f"{Path(__file__).name}:{error.source.line}" in str(error)
    assert advice in str(error)


def _lambda_lines(fn: Callable) -> tuple[int, ...]:
    code = getattr(fn, "__code__", None)
    if code is None or Path(code.co_filename).name != Path(__file__).name:
        return ()
    return (code.co_firstlineno,)


def test_refusal_of_encrypted_loops_and_places():
    def loop(carry):
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2.0), carry)

    error = refused(loop, (np.int32(0), X), encrypted=((False, True),))
    assert error.operation == "while"
    assert "fixed number of steps" in str(error)
    # Comparing is refused before a choice or a place could depend on the result.
    assert (
        refused(lambda x: lax.cond(x[0, 0] > 0, jnp.square, jnp.negative, x), X).operation == "gt"
    )
    assert refused(lambda x: x[x[0].astype(int)], X).operation == "convert_element_type"


def test_refusal_inside_jit_scan_and_derivatives_names_the_callers_line():
    def inner(x):
        return jnp.tanh(x)

    line = inner.__code__.co_firstlineno + 1
    assert _line(refused(lambda x: jax.jit(inner)(x), X)) == line

    def step(carry, row):
        return carry + jnp.exp(row), row

    line = step.__code__.co_firstlineno + 1
    assert _line(refused(lambda x: lax.scan(step, jnp.zeros(3), x), X)) == line

    def loss(w, x):
        return jnp.sum(jnp.log(x @ w))

    line = loss.__code__.co_firstlineno + 1
    assert _line(refused(lambda x, w: jax.grad(loss)(w, x), X, np.ones(3))) == line
    # A library function under jit has no frame of the caller inside: it gets the call's line.
    assert _line(refused(lambda x: jax.nn.softmax(x), X)) == here()


def _line(error: NotHomomorphicError) -> int:
    assert error.source is not None
    assert Path(error.source.file).name == Path(__file__).name
    return error.source.line


def test_refusal_inside_a_flax_module_names_the_module_of_the_caller():
    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.linear(x))

    graph, state = nnx.split(Layer(nnx.Rngs(0)))
    error = refused(lambda s, x: nnx.merge(graph, s)(x), state, X, encrypted=(1,))
    assert error.source is not None
    assert error.source.function.endswith("Layer.__call__")
    assert Path(error.source.file).name == Path(__file__).name


def test_a_program_typed_into_an_interpreter_has_sources():
    code = (
        "import numpy as np, jax.numpy as jnp, hesim\n"
        "def f(x):\n"
        "    return jnp.exp(x)\n"
        "try:\n"
        "    hesim.trace(f, np.ones(3))\n"
        "except hesim.NotHomomorphicError as error:\n"
        "    assert error.source.line == 3, error.source\n"
        "    assert error.source.function == 'f'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("encrypted", "message"),
    [
        ((2,), "there are 2 arguments"),
        (-3, "there are 2 arguments"),
        (((True, False), True), "prefix"),
        ({"a": True}, "prefix"),
        ("x", "prefix"),
        ((1,), "int32"),
    ],
)
def test_encrypted_that_does_not_fit(encrypted, message):
    with pytest.raises(TraceError, match=message):
        trace(lambda x, i: x * i, X, np.int32(1), encrypted=encrypted)


def test_arguments_that_are_not_arrays():
    with pytest.raises(TraceError, match=r"args\[1\] is a str"):
        trace(lambda x, mode: x, X, "train")


def test_called_with_other_structures_or_shapes():
    program = trace(lambda x: x["a"] * 2, {"a": X})
    with pytest.raises(TraceError, match=r"args\[0\] of .* as traced, not a"):
        program({"b": X})
    with pytest.raises(TraceError, match=r"args\[0\]\['a'\].*shape \(3,\)"):
        program({"a": X[0]})
    with pytest.raises(TraceError, match="precision"):
        program({"a": X}, precision="float16")


# --- what is kept -------------------------------------------------------------------------------


def test_dead_equations_go_before_they_can_be_refused():
    def fn(x):
        _ = jnp.exp(x)
        unused = jax.jit(lambda a: (jnp.log(a), a * 2.0))(x)
        return unused[1]

    program = trace(fn, X)
    assert names(program) == ["mul"]
    assert len(program.equations) == 1


def test_calls_and_derivatives_are_inlined():
    @jax.custom_jvp
    def cube(x):
        return x * x * x

    cube.defjvp(lambda p, t: (cube(p[0]), 3.0 * p[0] * p[0] * t[0]))

    @jax.custom_vjp
    def double(x):
        return x + x

    double.defvjp(lambda x: (double(x), None), lambda _, g: (2.0 * g,))

    @jax.checkpoint
    def square(x):
        return x * x

    def fn(x):
        return jax.jit(lambda a: square(double(cube(a))))(x).sum()

    flat = {"mul", "add", "add_any", "reduce_sum", "broadcast_in_dim", "neg"}
    for traced in (fn, jax.grad(fn)):
        program = trace(traced, X)
        assert set(names(program)) <= flat
        np.testing.assert_allclose(program(X), traced(X), rtol=1e-6)
    np.testing.assert_allclose(
        trace(jax.grad(fn), X)(X, precision="float64"), 24.0 * X**5, atol=1e-12
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_over_encrypted_values_are_unrolled(reverse):
    def fn(x, w):
        def step(carry, row):
            return carry * w + row, (carry + row, jnp.float32(1.0))

        return lax.scan(step, jnp.zeros(3), x, reverse=reverse)

    program = trace(fn, X, np.float64(0.5))
    assert "scan" not in {eqn.name for eqn in program.equations}
    wanted = fn(jnp.asarray(X), jnp.float32(0.5))
    found = program(X, np.float64(0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
    # What the scan makes of public values only stays public.
    assert [getattr(v, "encrypted", False) for v in program.outputs] == [True, True, False]


def test_loops_with_a_fixed_number_of_steps_are_unrolled():
    program = trace(lambda x: lax.fori_loop(0, 3, lambda i, c: c * c + i, x), X)
    assert names(program).count("mul") + names(program).count("square") == 3


def test_public_control_flow_is_left_to_jax():
    def fn(x, n, w):
        w = lax.fori_loop(0, n, lambda i, c: c * 0.5, w)
        w, _ = lax.scan(lambda c, r: (c + r, None), w, jnp.ones((4, 3)))
        return x * w * lax.cond(n > 2, jnp.sin, jnp.cos, w)

    program = trace(fn, X, np.int32(3), np.ones(3))
    assert set(names(program)) == {"mul"}
    assert {"while", "scan", "cond"} <= {eqn.name for eqn in program.equations}
    wanted = fn(jnp.asarray(X), 3, jnp.ones(3))
    np.testing.assert_allclose(program(X, np.int32(3), np.ones(3)), wanted, rtol=1e-6)
    wide = program(X, np.int32(3), np.ones(3), precision="float64")
    np.testing.assert_allclose(wide, wanted, rtol=1e-6)


def test_conditionals_on_public_predicates_become_selections():
    def fn(x, p):
        return lax.cond(p, lambda a: (a * 2.0, 1.0), lambda a: (a * a, 3.0), x)

    program = trace(fn, X, np.bool_(True))
    assert "cond" not in {eqn.name for eqn in program.equations}
    for p in (True, False):
        found = program(X, np.bool_(p))
        np.testing.assert_allclose(found[0], X * 2.0 if p else X * X, rtol=1e-6)
        assert float(found[1]) == (1.0 if p else 3.0)
    assert [getattr(v, "encrypted", False) for v in program.outputs] == [True, False]


def test_branches_of_public_conditionals_are_checked_too():
    error = refused(lambda x, p: lax.cond(p, jnp.exp, jnp.negative, x), X, np.bool_(True))
    assert error.operation == "exp"


def test_whole_exponents_are_powers():
    for exponent in (0.0, 2, 3.0, jnp.full((3,), 5.0), np.full((2, 3), 1.0)):
        program = trace(lambda x, e=exponent: jnp.power(x, e), X)
        assert set(names(program)) <= {"integer_pow", "square", "mul"}
        np.testing.assert_allclose(
            program(X, precision="float64"), np.power(X, np.asarray(exponent)), atol=1e-12
        )
    # The exponent itself is dead afterwards.
    program = trace(lambda x: lax.pow(x, jnp.full(x.shape, 4.0)), X)
    assert [eqn.name for eqn in program.equations] == ["integer_pow"]
    assert program.equations[0].params == {"y": 4}


def test_modules_split_and_merged():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    def fn(state, x):
        return nnx.merge(graph, state)(x)

    program = trace(fn, state, X, encrypted=(1,))
    assert [v.encrypted for v in program.inputs].count(True) == 1
    assert "dot_general" in names(program)
    np.testing.assert_allclose(program(state, X), model(jnp.asarray(X)), rtol=1e-6)
    gradient = trace(jax.grad(lambda s, x: (fn(s, x) ** 2).sum()), state, X, encrypted=(1,))
    wanted = jax.grad(lambda s: (fn(s, X) ** 2).sum())(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradient(state, X), wanted
    )


def test_pytrees_of_bools_choose_leaves():
    args = ({"a": X, "b": X}, (X, X))
    fn = lambda d, t: d["a"] * d["b"] + t[0] * t[1]
    program = trace(fn, *args, encrypted=({"a": True, "b": False}, (False, True)))
    assert [v.encrypted for v in program.inputs] == [True, False, False, True]
    assert program.labels == ("args[0]['a']", "args[0]['b']", "args[1][0]", "args[1][1]")
    whole = trace(fn, *args, encrypted=(True, False))
    assert [v.encrypted for v in whole.inputs] == [True, True, False, False]
    for encrypted in (0, (0,), [0], {0}, -2, np.int64(0)):
        program = trace(fn, *args, encrypted=encrypted)
        assert [v.encrypted for v in program.inputs] == [True, True, False, False]


def test_shapes_are_enough():
    program = trace(lambda x: x @ x.T, jax.ShapeDtypeStruct((4, 3), np.float32))
    assert program.outputs[0].shape == (4, 4)


# --- evaluation -----------------------------------------------------------------------------------


def test_float64_evaluation_equals_numpy():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 5)), rng.normal(size=(5, 3)).astype(np.float32)
    poly = approx.fit("gelu", (-8, 8), degree=15)

    def fn(xp, x, w):
        h = x @ w
        return xp.cumsum(poly(h) / xp.sqrt(2.0 + w[0] ** 2), 0) + h[:, ::-1] ** 3

    program = trace(lambda x, w: fn(jnp, x, w), x, w)
    found = program(x, w, precision="float64")
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, fn(np, x, w), rtol=1e-13)
    assert program(x, w).dtype == np.float32


def test_evaluation_shows_and_replaces_encrypted_results():
    program = trace(lambda x, w: (x * w + x * 2.0).sum(), X, X)
    seen = []

    def hook(equation, results):
        seen.append(equation.name)
        return [r * 0.0 for r in results]

    (out,) = program.evaluate([X, X], hook)
    assert seen == names(program)
    assert float(out) == 0.0
    first = program.ops[0].outputs[0]
    np.testing.assert_allclose(program.evaluate([X, X], until=[first])[0], X * X, rtol=1e-6)


def test_constants_of_a_program_are_those_of_the_function_as_float64():
    program = trace(lambda x, w: x * jnp.exp(jnp.arange(3.0)) + w, X, X)
    factor = program.ops[0].inputs[1]
    value = program.constant(factor)
    assert value is not None
    assert value.dtype == np.float64
    np.testing.assert_array_equal(value, np.broadcast_to(jnp.exp(jnp.arange(3.0)), value.shape))
    assert program.constant(program.inputs[0]) is None
    assert program.constant(program.inputs[1]) is None


def test_public_index_arguments_stay_arguments():
    program = trace(lambda x, i: lax.dynamic_index_in_dim(x, i, 1), X, np.int32(0))
    for i in (0, 1, 2):
        np.testing.assert_allclose(program(X, np.int32(i)), X[:, i : i + 1], rtol=1e-6)


def test_random_numbers_and_typed_operations_on_public_values_in_float64():
    def fn(x, key):
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        noise = jax.random.normal(key, x.shape)
        row = jnp.zeros(3).at[jnp.array([0, 0])].mul(2.0) + jnp.cumprod(noise, 0)
        return jnp.where(kept, x, 0.0) * noise + row

    key = jax.random.PRNGKey(0)
    program = trace(fn, X, key)
    wide = program(X, key, precision="float64")
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, fn(jnp.asarray(X), key), rtol=1e-5, atol=1e-6)


def test_integer_and_boolean_arguments_keep_their_types_in_float64():
    program = trace(lambda x, i, m: jnp.where(m, x * i, x), X, np.int32(3), X > 0)
    wide = program(X, np.int32(3), X > 0, precision="float64")
    np.testing.assert_allclose(wide, np.where(X > 0, X * 3, X), rtol=1e-15)


# --- the listing ----------------------------------------------------------------------------------


def test_listing_is_readable():
    def layer(x, w):
        h = x @ w
        return h * h

    lines = str(trace(layer, X, np.ones((3, 4)))).splitlines()
    first = layer.__code__.co_firstlineno
    assert lines[0] == "program layer: 2 operations on encrypted values, depth 2"
    assert lines[1] == "  encrypted: %0:f32[2,3] args[0]"
    assert lines[2] == "  public:    p1:f32[3,4] args[1]"
    assert lines[3].startswith("  %2:f32[2,4] = dot_general[(((1,), (0,)), ((), ()))] %0, p1")
    assert lines[3].endswith(f"# test_trace.py:{first + 1}")
    assert lines[4].startswith("  %3:f32[2,4] = mul %2, %2")
    assert lines[4].endswith(f"# test_trace.py:{first + 2}")
    assert lines[5] == "  return %3"
    assert max(map(len, lines)) < 120


def test_sources_of_our_models_name_the_layer_and_the_caller():
    from models.nn.layers import multiple

    program = trace(lambda x: multiple(x * x, 3), X)
    line = here() - 1
    product, *sums = program.ops
    assert product.source is not None
    assert (product.source.line, product.source.inner) == (line, "")
    for eqn in sums:
        assert eqn.source is not None
        assert eqn.source.line == line
        assert eqn.source.brief.startswith("models/nn/layers.py:")


# --- refresh and depth ----------------------------------------------------------------------------


def test_refresh_is_the_identity_for_values_derivatives_and_batches():
    tree = {"a": jnp.asarray(X), "b": jnp.ones(2)}
    jax.tree.map(np.testing.assert_array_equal, refresh(tree), tree)
    f = lambda x: (refresh(x * x) * x).sum()
    np.testing.assert_allclose(jax.grad(f)(jnp.asarray(X)), 3 * X * X, rtol=1e-6)
    _, tangent = jax.jvp(refresh, (jnp.asarray(X),), (jnp.ones_like(X),))
    np.testing.assert_array_equal(tangent, np.ones_like(X))
    np.testing.assert_array_equal(jax.vmap(refresh)(jnp.asarray(X)), X.astype(np.float32))
    np.testing.assert_array_equal(jax.jit(refresh)(X), X.astype(np.float32))
    assert names(trace(refresh, X)) == ["refresh"]


def test_depth_counts_products_on_the_longest_path():
    w = np.ones((3, 3))
    poly = approx.fit("tanh", (-3, 3), degree=7)
    cases: list[tuple[Callable, int]] = [
        (lambda x, w: x + w[0] - x, 0),
        (lambda x, w: x @ w, 1),
        (lambda x, w: (x @ w) * x, 2),
        (lambda x, w: x**8, 3),
        (lambda x, w: x**5, 3),
        (lambda x, w: x.prod(1), 2),
        (lambda x, w: poly(x), poly.depth),
        (lambda x, w: poly(x @ w) * x, poly.depth + 2),
    ]
    for fn, depth in cases:
        program = trace(fn, X, w)
        assert program.depth == program.levels == depth
    for fn in (lambda x, w: refresh(x**8) @ w, lambda x, w: refresh(x @ w) ** 8):
        assert (trace(fn, X, w).depth, trace(fn, X, w).levels) == (4, 3)
    assert poly.depth == math.ceil(math.log2(8)) + (poly.scale not in (1.0, -1.0))


def test_sums_over_windows_are_sums_of_slices_and_parts():
    def pool(x):
        return jax.lax.reduce_window(
            x, 0.0, jax.lax.add, (1, 2, 3, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (1, 1), (0, 0))
        )

    x = np.arange(2 * 5 * 4 * 3, dtype=np.float32).reshape(2, 5, 4, 3)
    program = trace(pool, x)
    linear = {"pad", "slice", "add", "reshape", "reduce_sum"}
    assert {op.name for op in program.ops} <= linear
    np.testing.assert_allclose(program(x), pool(jnp.asarray(x)))


@pytest.mark.parametrize(
    "traced, given",
    [
        (np.int32(2), np.float32(1.7)),
        (np.int32(2), 1.7),
        (np.int32(2), 2**35),
        (np.uint8(2), np.int64(-1)),
        (np.float32(2), np.complex64(2 + 1j)),
        (np.bool_(True), np.int32(2)),
        (np.float32(2), "2"),
        (jax.random.key(0), np.float32(1)),
    ],
)
def test_values_that_do_not_fit_the_traced_dtype_are_refused(traced, given):
    """They were rounded, wrapped or cut without a word."""

    def fn(x, i):
        return x * (jax.random.uniform(i) if hasattr(i, "dtype") and is_key(i) else i)

    program = trace(fn, np.ones(3, np.float32), traced)
    with pytest.raises(TraceError, match=r"args\[1\] .*do not fit"):
        program.flatten((np.ones(3, np.float32), given))


@pytest.mark.parametrize("wide", [False, True])
def test_a_program_works_whether_x64_was_on_or_off_when_it_was_traced(wide):
    def fn(x, w):
        return (x * w + 1e-3 * w) @ np.ones((3, 2)) + jnp.arange(3).sum() * x[:, :2]

    x, w = np.ones((4, 3)), np.arange(3)
    with jax.enable_x64(wide):
        program = trace(fn, x, w * 1.0)
        there = program(x, w)
    with jax.enable_x64(not wide):
        here = program(x, w)
    assert here.dtype == there.dtype == (np.float64 if wide else np.float32)
    np.testing.assert_array_equal(here, there)


def test_a_random_key_may_be_closed_over():
    key = jax.random.key(3)

    def fn(x):
        return x * jax.random.uniform(key, x.shape)

    x = np.ones(4, np.float32)
    program = trace(fn, x)
    np.testing.assert_array_equal(program(x), fn(x))
    params = CKKSParams(5, 1, 30, 40, 50, security=None)
    got = run(program, x, params=params, backend="slots").outputs
    np.testing.assert_allclose(got, fn(x), rtol=1e-6)
