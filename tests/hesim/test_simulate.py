"""`simulate`: the noise of each rule against closed forms, and its behaviour as a JAX function."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from hesim.certify import certify
from hesim.circuit.compile import compile
from hesim.errors import ArgumentError, LevelError, NotHomomorphicError, ParameterError
from hesim.noise import formulas
from hesim.noise.pools import Draws
from hesim.noise.profiles import profile
from hesim.params import CKKSParams
from hesim.refresh import refresh
from hesim.simulate import simulate, simulate_program
from hesim.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore::hesim.params.InsecureParametersWarning")
SEAL = profile("seal")
PARAMS = CKKSParams(14, 7, 40, 50, 60)
TOP = PARAMS.levels


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def fresh_std() -> float:
    return formulas.value_std(formulas.fresh(PARAMS.n, SEAL), PARAMS, TOP, SEAL)


def rescale_std(level: int = TOP - 1) -> float:
    return formulas.value_std(formulas.rescale(SEAL), PARAMS, level, SEAL)


def rotate_std(level: int = TOP) -> float:
    return formulas.value_std(formulas.key_switch(PARAMS, level, SEAL), PARAMS, level, SEAL)


def measured(fn, *args, encrypted=(0,), params=PARAMS, keys: int = 4) -> float:
    """Root mean square of simulated minus exact over elements and keys."""
    args = tuple(jnp.asarray(a) for a in args)
    f = jax.jit(simulate(fn, params, encrypted=encrypted))
    exact = fn(*args)
    errors = [f(key, *args) - exact for key in jax.random.split(jax.random.key(3), keys)]
    return float(jnp.sqrt(jnp.mean(jnp.square(jnp.stack(errors)))))


def uniform(*shape: int, seed: int = 0, low: float = -1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, 1.0, shape)


def root(*parts: float) -> float:
    return math.sqrt(sum(p * p for p in parts))


# --- each rule against its closed form ------------------------------------------------------------

N = 1 << 14
X, Y = uniform(N, seed=1), uniform(N, seed=2)
THIRD = 1 / math.sqrt(3)  # root mean square of a uniform number in [-1, 1]
MASK = np.arange(N) % 2 == 0


def rules():
    f, r, k = fresh_std(), rescale_std(), rotate_std()
    yield "fresh", lambda x: x, f
    yield "negate", lambda x: -x, f
    yield "add public", lambda x: x + Y, f
    yield "add to itself", lambda x: x + x, 2 * f
    yield "multiply public", lambda x: x * Y, root(f * THIRD, r)
    yield "multiply constant", lambda x: x * 0.125, f / 8
    yield "divide by a constant", lambda x: x / 8.0, f / 8
    yield "divide public", lambda x: x / (Y + 3.0), root(f * 0.354, r)
    yield "square", lambda x: x * x, root(2 * f * THIRD, r)
    yield "fourth power", lambda x: x**4, root(4 * f / 7**0.5, 2 * r / 5**0.5, r)
    yield "refresh", lambda x: refresh(x), f * math.sqrt(2)
    yield "select", lambda x: jnp.where(MASK, x, 0.0), root(f / math.sqrt(2), r)
    yield "sum of 16", lambda x: x.reshape(-1, 16).sum(1), 4 * root(f, k)
    yield "move", lambda x: jnp.concatenate([x[5:], x[:5]]).reshape(4, -1).T, f
    yield "level drop", lambda x: x + (x * Y) * 0.0, root(f, rescale_std())


@pytest.mark.parametrize(("name", "fn", "expected"), list(rules()), ids=[r[0] for r in rules()])
def test_std_of_each_rule(name, fn, expected):
    assert measured(fn, X) == pytest.approx(expected, rel=0.03), name


def test_std_of_a_product_of_ciphertexts():
    got = measured(lambda x, y: x * y, X, Y, encrypted=(0, 1))
    assert got == pytest.approx(root(fresh_std() * THIRD * math.sqrt(2), rescale_std()), rel=0.03)


def test_std_of_a_public_matmul():
    x, w = uniform(256, 64, seed=4), uniform(64, 64, seed=5)
    w = w / np.sqrt(np.sum(w**2, 0))
    got = measured(lambda x: x @ w, x)
    assert got == pytest.approx(root(fresh_std(), rotate_std(), rescale_std()), rel=0.03)


def test_std_of_an_encrypted_matmul():
    x, y = uniform(128, 32, seed=6), uniform(32, 128, seed=7)
    got = measured(lambda x, y: x @ y, x, y, encrypted=(0, 1))
    carried = root(fresh_std(), rotate_std()) * math.sqrt(2 * 32) * THIRD
    assert got == pytest.approx(root(carried, rescale_std()), rel=0.03)


def test_std_of_a_product_over_an_axis():
    x = uniform(4096, 4, seed=8, low=0.9)
    got = measured(lambda x: jnp.prod(x, axis=1), x)
    m = float(np.mean(x**2))
    first = root(fresh_std() * math.sqrt(2 * m), rescale_std())
    assert got == pytest.approx(root(first * m * math.sqrt(2), rescale_std()), rel=0.03)


def test_encoding_errors_of_weights_grow_with_the_message():
    x = 3000.0 * uniform(N, seed=9)
    got = measured(lambda x: x * Y, x)
    encoding = formulas.encode_std(PARAMS, TOP, SEAL, scalar=False) * 3000 * THIRD
    assert encoding > 3 * rescale_std()
    assert got == pytest.approx(root(fresh_std() * THIRD, rescale_std(), encoding), rel=0.03)


@pytest.mark.parametrize("target", ["exp", "gelu"])
def test_std_of_a_polynomial_is_that_of_its_steps(target):
    poly = approx.fit(target, (-4.0, 4.0), degree=7)
    x = 4.0 * X
    got = measured(lambda x: poly(x), x)
    u = poly.scale * np.asarray(x) + poly.shift
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(4):
        registers = [u + fresh_std() * poly.scale * rng.normal(size=N)]
        registers[0] = registers[0] + rescale_std() * rng.normal(size=N)
        for step in poly.plan.steps:
            total = np.full(N, step.constant) + rescale_std() * rng.normal(size=N)
            for factor, a, b in step.products:
                total += factor * registers[a] * registers[b]
            for c, j in step.scalars:
                total += c * registers[j]
            for c, j in step.adds:
                total += c * registers[j]
            registers.append(total)
        errors.append(registers[poly.plan.output] - poly(np.asarray(x)))
    # Operands brought down to the level of their partner add a rounding that this leaves out.
    assert 0.95 < got / np.std(errors) < 1.35


# --- the shape of the noise -----------------------------------------------------------------------


def test_noise_is_heavy_tailed_and_bad_in_the_same_slots():
    f = simulate(lambda x: (x, x * Y), PARAMS)
    first, second = f(jax.random.key(0), X)
    one, two = np.asarray(first - X), np.asarray(second - X * Y)
    assert 5.0 < np.mean(one**4) / np.mean(one**2) ** 2 < 7.5
    rounding = two - one * np.asarray(Y)
    slots = PARAMS.slots
    assert np.corrcoef(one[:slots] ** 2, rounding[:slots] ** 2)[0, 1] > 0.1
    assert abs(np.corrcoef(one, rounding)[0, 1]) < 0.05


def test_the_same_key_gives_the_same_noise_and_another_does_not():
    f = simulate(lambda x: x * x, PARAMS)
    a, b, c = f(jax.random.key(1), X), f(jax.random.key(1), X), f(jax.random.key(2), X)
    assert jnp.array_equal(a, b)
    assert not jnp.any(a == c)


def test_dead_operations_add_no_noise():
    def dead(x):
        _ = jnp.sum(x * x * x)
        return x * Y

    key = jax.random.key(0)
    alive = simulate(lambda x: x * Y, PARAMS)(key, X)
    assert jnp.array_equal(simulate(dead, PARAMS)(key, X), alive)


def test_noise_vanishes_as_the_scale_grows():
    stds = []
    for bits in (30, 40, 50):
        params = CKKSParams(13, 2, bits, min(60, bits + 10), 60, security=None)
        stds.append(measured(lambda x: (x * Y) ** 2, X, params=params))
    assert stds[0] / stds[1] == pytest.approx(2**10, rel=0.05)
    assert stds[1] / stds[2] == pytest.approx(2**10, rel=0.05)


def test_public_values_stay_exact():
    def fn(x, w):
        return x, w @ w.T

    w = uniform(8, 8)
    noisy, exact = simulate(fn, PARAMS)(jax.random.key(0), X, w)
    assert jnp.array_equal(exact, w @ w.T)
    assert not jnp.array_equal(noisy, X)


def test_missing_levels_are_refreshed_and_the_refresh_is_in_the_noise():
    short = CKKSParams(14, 1, 40, 50, 60)
    quiet = measured(lambda x: (x * Y) * Y, X)
    loud = measured(lambda x: (x * Y) * Y, X, params=short)
    common = root(fresh_std() * float(np.sqrt(np.mean(Y**4))), rescale_std() * THIRD, rescale_std())
    assert quiet == pytest.approx(common, rel=0.03)
    assert loud == pytest.approx(root(common, fresh_std() * THIRD), rel=0.03)


def test_a_chain_without_levels_is_refused():
    with pytest.raises(LevelError, match="levels=1"):
        simulate(lambda x: x * Y, CKKSParams(14, 0, 40, 50, 60))(jax.random.key(0), X)


def test_untraceable_functions_are_refused():
    with pytest.raises(NotHomomorphicError):
        simulate(jnp.exp, PARAMS)(jax.random.key(0), X)


# --- as a JAX function ----------------------------------------------------------------------------

GELU = approx.fit("gelu", (-4.0, 4.0), degree=5)


def model(x, w):
    h = GELU(x @ w)
    scores = h @ h.T
    return (scores @ h).sum(-1) * 0.5 + x.mean(-1)


def test_jit_grad_and_vmap_in_any_order_give_the_same_numbers():
    params = CKKSParams(13, 8, 30, 40, 60, security=None)
    cube = approx.fit("tanh", (-4.0, 4.0), degree=3)
    f = simulate(lambda x, w: cube(x @ w) * x, params)
    key = jax.random.key(7)
    xs, w = uniform(2, 3, 4, seed=1), uniform(4, 4, seed=2) / 2

    def loss(w, x):
        return jnp.sum(jnp.square(f(key, x, w)))

    grad = jax.grad(loss)
    one_by_one = jnp.stack([jax.jit(grad)(w, x) for x in xs])
    mapped = (None, 0)
    orders = [
        jax.vmap(grad, mapped),
        jax.jit(jax.vmap(grad, mapped)),
        jax.vmap(jax.jit(grad), mapped),
        jax.vmap(jax.grad(jax.jit(loss)), mapped),
    ]
    for order in orders:
        np.testing.assert_allclose(order(w, xs), one_by_one, rtol=1e-12, atol=1e-14)
    summed = jax.jit(jax.grad(lambda w: jnp.sum(jax.vmap(loss, mapped)(w, xs))))
    np.testing.assert_allclose(summed(w), one_by_one.sum(0), rtol=1e-12, atol=1e-14)


def test_mapping_over_keys_gives_independent_noise():
    f = simulate(lambda x: x * Y, PARAMS)
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = jax.vmap(f, (0, None))(keys, X) - X * Y
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    np.testing.assert_allclose(a, f(keys[0], X) - X * Y, rtol=1e-6)


def test_gradients_agree_with_finite_differences_at_a_frozen_key():
    f = simulate(model, PARAMS)
    key = jax.random.key(7)
    x, w = uniform(4, 6, seed=1), uniform(6, 6, seed=2) / 3
    loss = jax.jit(lambda w: jnp.sum(jnp.square(f(key, x, w))))
    direction = uniform(6, 6, seed=3)
    step = 1e-5
    slope = (loss(w + step * direction) - loss(w - step * direction)) / (2 * step)
    assert float(jnp.vdot(jax.grad(loss)(w), direction)) == pytest.approx(float(slope), rel=1e-7)


def test_the_gradient_itself_can_be_simulated():
    def loss(x, w):
        return jnp.sum(jnp.square(model(x, w)))

    x, w = uniform(4, 6, seed=1), uniform(6, 6, seed=2) / 3
    gradient = jax.grad(loss, argnums=1)
    noisy = jax.jit(simulate(gradient, PARAMS))(jax.random.key(0), x, w)
    error = jnp.max(jnp.abs(noisy - jax.jit(gradient)(x, w)))
    assert 0.0 < float(error) < 2.0**-18


def test_a_function_that_closes_over_tracers_is_simulated_too():
    x, w = uniform(4, 6, seed=1), uniform(6, 6, seed=2) / 3
    key = jax.random.key(0)

    def loss(w):
        return jnp.sum(simulate(lambda x: model(x, w), PARAMS)(key, x))

    exact = jax.grad(lambda w: jnp.sum(model(x, w)))(w)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(w), exact, atol=2.0**-18)


def test_pytrees_and_flags_pass_through():
    def fn(batch, weights):
        return {"out": batch["x"] @ weights["w"] + batch["b"]}

    batch = {"x": uniform(4, 8), "b": jnp.ones(8)}
    weights = {"w": uniform(8, 8)}
    flags = ({"x": True, "b": False}, False)
    out = simulate(fn, PARAMS, encrypted=flags)(jax.random.key(0), batch, weights)
    np.testing.assert_allclose(out["out"], fn(batch, weights)["out"], atol=2.0**-22)


def test_float32_works_and_keeps_its_dtype():
    with jax.enable_x64(False):
        params = CKKSParams(13, 4, 25, 35, 60, security=None)
        x = jnp.asarray(X, jnp.float32)
        out = simulate(lambda x: x * x, params)(jax.random.key(0), x)
        assert out.dtype == jnp.float32
        assert 0 < float(jnp.std(out - x * x)) < 2.0**-10


def test_taps_see_every_encrypted_operation():
    program = trace(model, uniform(4, 6), uniform(6, 6))
    seen = []
    simulate_program(
        program,
        PARAMS,
        jax.random.key(0),
        [uniform(4, 6), uniform(6, 6)],
        tap=lambda equation, out: seen.append((equation.name, out[0].shape)),
    )
    assert seen == [(e.name, e.outputs[0].shape) for e in program.ops]


def test_long_simulations_reuse_the_pool_without_repeating_a_draw():
    x = uniform(1 << 17, seed=1)
    y = x[::-1]
    f = simulate(lambda x: (x * y, x + 1.0), PARAMS)
    product, shifted = f(jax.random.key(0), x)
    first = np.asarray(shifted - 1.0 - x)
    second = np.asarray(product - x * y) - first * np.asarray(y)
    assert np.std(second) == pytest.approx(rescale_std(), rel=0.03)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_both_tiers_give_errors_of_one_size():
    x = uniform(64, 8, 16, seed=1)
    w = [uniform(16, 16, seed=k) / 3 for k in (2, 3)]

    def attention(x):
        q, k = x @ w[0], x @ w[1]
        scores = jnp.einsum("bid,bjd->bij", q, k) / 4
        return GELU(jnp.einsum("bij,bjd->bid", scores, x) * q).sum(-1) + x[..., 0]

    errors = []
    for tier in ("train", "predict"):
        f = jax.jit(simulate(attention, PARAMS, tier=tier))
        runs = [f(key, x) - attention(x) for key in jax.random.split(jax.random.key(0), 8)]
        errors.append(float(jnp.std(jnp.stack(runs))))
    assert errors[0] == pytest.approx(errors[1], rel=0.15)


@pytest.mark.parametrize(
    "spec", ["bik,bkj->bij", "kib,bjk->bij", "bik,kj->bij", "ki,bkj->ibj", "ibk,jbk->bij"]
)
def test_errors_of_operands_of_any_contraction_have_one_size_in_both_tiers(spec):
    sizes = {"b": 3, "i": 5, "j": 7, "k": 64}
    left, right = spec.split("->")[0].split(",")
    # Rows of very unequal size: a variance given to the wrong rows would show.
    x = uniform(*(sizes[a] for a in left), seed=1) * np.geomspace(1, 300, sizes[left[0]]).reshape(
        -1, *[1] * (len(left) - 1)
    )
    y = uniform(*(sizes[a] for a in right), seed=2)
    stds = []
    for tier in ("train", "predict"):
        f = jax.jit(simulate(lambda x, y: jnp.einsum(spec, x, y), PARAMS, (0, 1), tier=tier))
        errors = jax.vmap(lambda k, f=f: f(k, x, y))(jax.random.split(jax.random.key(1), 300))
        stds.append(np.std(errors, axis=0))
    assert np.max(np.abs(np.log2(stds[0] / stds[1]))) < 0.6
    assert abs(np.mean(np.log2(stds[0] / stds[1]))) < 0.05


def test_unknown_tiers_are_refused():
    with pytest.raises(ParameterError, match="train, predict"):
        simulate(lambda x: x, PARAMS, tier="fast")


@pytest.mark.parametrize("elements", [1 << 10, 1 << 16, 1 << 18])
def test_statistical_error_of_the_pool_is_as_stated(elements):
    """Std under one key: 1 / sqrt(2 min(elements, pool)) of itself; less over keys."""
    draws = [Draws(k, PARAMS, SEAL, elements) for k in jax.random.split(jax.random.key(3), 40)]
    like = jnp.zeros(elements)
    stds = np.array([float(jnp.sqrt(jnp.mean(d.plain(like, 1.0) ** 2))) for d in draws])
    stated = 1 / math.sqrt(2 * min(elements, 1 << 16))
    assert 0.7 < np.std(stds) / stated < 1.4
    assert abs(np.mean(stds) - 1) < 4 * stated / math.sqrt(len(stds))


def test_what_is_carried_is_encrypted_once():
    """A running sum: its errors are those that the certificate carries from run to run."""
    x = uniform(PARAMS.slots)

    def fn(total, x):
        return total + x, total * 2.0

    circuit = compile(trace(fn, x, x, encrypted=(0, 1)), PARAMS, carried={0: 0})
    run = jax.jit(simulate(fn, PARAMS, (0, 1), circuit=circuit))
    total, certificate = x, None
    for k in range(4):
        total, _ = run(jax.random.key(k), total, x, carried=k > 0)
        certificate = certify(circuit, (x, x), keys=8, after=certificate)
        predicted = certificate.outputs[0]
        assert predicted is not None
        assert abs(math.log2(float(jnp.std(total - (k + 2) * x)) / predicted.std)) < 0.1


def test_only_a_circuit_that_carries_takes_what_was_returned():
    x = uniform(8)
    plain = simulate(lambda s, x: s + x, PARAMS, (0, 1))
    with pytest.raises(ArgumentError, match=r"carried=\{argument: result\}"):
        plain(jax.random.key(0), x, x, carried=True)
