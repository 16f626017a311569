"""What `approximate` finds in a function, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import approx
import hesim

Normal = Callable[..., Any]


def operations(fn: Callable[..., Any], x: Any, **knobs: Any) -> list[str]:
    return [site.operation for site in hesim.approximate(fn, [x], degree=7, **knobs).sites]


def far(fn: Callable[..., Any], other: Callable[..., Any], x: Any) -> float:
    return float(np.max(np.abs(np.asarray(fn(x)) - np.asarray(other(x)))))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: 0.5 * x * (1 + jax.lax.erf(x / np.sqrt(2))), ["gelu"]),
        (lambda x: x / (1 + jnp.exp(-x)), ["silu"]),
        (lambda x: jnp.log(1 + jnp.exp(x)), ["softplus"]),
        (lambda x: x + jnp.tanh(x), ["tanh"]),
        (lambda x: jnp.where(x > 0, x, 0.1 * x), ["select_n, gt"]),
        (lambda x: jnp.exp(-x * x), ["exp"]),
        (lambda x: jnp.tanh(x) * (1 - jnp.tanh(x) ** 2), ["tanh"]),
        (lambda x: jax.nn.mish(x), ["mish"]),
        (jax.grad(lambda x: jax.nn.silu(x).sum()), ["silu'"]),
    ],
)
def test_a_function_of_one_value_is_one_site_however_it_is_written(
    fn: Callable[..., Any], expected: list[str], normal: Normal
) -> None:
    assert operations(fn, normal(8, 4)) == expected


def test_a_step_is_a_composite_that_no_degree_gives(normal: Normal) -> None:
    fn = lambda x: jnp.where(x[:, :1] > 0, x, -x)
    x = normal(64, 4)
    made = hesim.approximate(fn, [x], tol=5e-2)
    assert [site.operation for site in made.sites] == ["step"]
    assert far(made, fn, x) <= 5e-2
    choice = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: x * x, x)
    batches = [normal(2, 2, seed=k) for k in range(8)]
    both = hesim.approximate(choice, batches, tol=5e-2)
    assert [site.operation for site in both.sites] == ["step"]
    assert max(far(both, choice, x) for x in batches) <= 5e-2
    with pytest.raises(approx.ToleranceError, match=r"step at .*test_approximate\.py:\d+.*tol="):
        hesim.approximate(fn, [x], degree=7)


def test_what_is_used_twice_is_computed_once(normal: Normal) -> None:
    made = hesim.approximate(lambda x: (jnp.exp(x).sum(-1), jnp.exp(x) @ x.T), [normal(4, 4)])
    assert [site.operation for site in made.sites] == ["exp"]
    polynomials = [op for op in hesim.trace(made, normal(4, 4)).ops if op.name == "polynomial"]
    assert len(polynomials) == 1


SCORES = np.random.default_rng(5).normal(size=(6, 8)).astype(np.float32)
MASK = np.arange(8) < np.array([3, 8, 5, 4, 8, 6])[:, None]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: jax.nn.softmax(x), ["exp", "inv"]),
        (lambda x: jax.nn.softmax(jnp.where(MASK, x, -1e30)), ["exp", "inv"]),
        (lambda x: jax.nn.softmax(x, where=MASK, axis=-1), ["exp", "inv"]),
        (lambda x: jax.nn.log_softmax(x), ["exp", "log"]),
        pytest.param(
            lambda x: jax.nn.logsumexp(x, axis=-1), ["exp", "log"], marks=pytest.mark.slow
        ),
        (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), ["inv_sqrt"]),
        (lambda x: x.max(-1), ["relu"]),
        pytest.param(lambda x: x.min(0), ["relu"], marks=pytest.mark.slow),
        (lambda x: jnp.maximum(x, x[::-1]), ["relu"]),
        (lambda x: jnp.abs(x - 9.0), ["abs"]),
        pytest.param(lambda x: jax.lax.cummax(x), ["relu"], marks=pytest.mark.slow),
        (lambda x: (x.var(-1) + 1e-5) ** -0.5, ["inv_sqrt"]),
    ],
)
def test_several_values_are_taken_apart_and_the_result_is_the_same(
    fn: Callable[..., Any], expected: list[str]
) -> None:
    made = hesim.approximate(fn, [SCORES], tol=2e-2)
    assert [site.operation for site in made.sites] == expected
    assert far(made, fn, SCORES) <= 2e-2
    assert made.output_error == pytest.approx(far(made, fn, SCORES), rel=0.2, abs=1e-4)
    assert all(op.name != "reduce_max" for op in hesim.trace(made, SCORES).ops)


def test_an_additive_mask_that_is_an_argument_keeps_scores_in_their_range() -> None:
    added = np.where(MASK, 0, -1e9).astype(np.float32)
    fn = lambda x, mask: jax.nn.softmax(x + mask)
    made = hesim.approximate(fn, [(SCORES, added)], encrypted=(0,), tol=1e-2)
    assert made.sites[0].met[0] > -10
    assert np.max(np.abs(made(SCORES, added) - fn(SCORES, added))) <= 1e-2


def test_rows_far_from_each_other_are_shifted_by_their_means(normal: Normal) -> None:
    x = normal(6, 8) + np.linspace(-40, 40, 6, dtype=np.float32)[:, None]
    made = hesim.approximate(jax.nn.softmax, [x], tol=1e-2)
    assert far(made, jax.nn.softmax, x) <= 1e-2
    assert made.sites[0].met[1] < 5


def test_a_maximum_that_matters_is_no_shift(normal: Normal) -> None:
    fn = lambda x: x - x.max(-1, keepdims=True)
    made = hesim.approximate(fn, [normal(64, 4)], tol=5e-2)
    assert [site.operation for site in made.sites] == ["relu"]
    assert far(made, fn, normal(6, 4, seed=3)) <= 5e-2


def test_steps_of_a_loop_share_a_polynomial_over_all_that_they_meet(normal: Normal) -> None:
    w = normal(4, 4, seed=2) * 0.7

    def step(h: Any, row: Any) -> tuple[Any, None]:
        return jnp.tanh(h @ w + row), None

    def fn(x: Any) -> Any:
        return jax.lax.scan(step, x[0] * 0.0, x)[0]

    made = hesim.approximate(fn, [normal(3, 4)], tol=1e-2)
    assert [site.operation for site in made.sites] == ["tanh"]
    longer = normal(5, 4, seed=1) * 0.7
    assert far(made, fn, longer) <= 5e-2  # more steps than it was calibrated on
    assert sum(op.name == "polynomial" for op in hesim.trace(made, longer).ops) == 5


def test_a_layer_of_flax_needs_only_its_root(normal: Normal) -> None:
    for layer in (nnx.LayerNorm(4, rngs=nnx.Rngs(0)), nnx.RMSNorm(4, rngs=nnx.Rngs(0))):
        made = hesim.approximate(layer, [normal(32, 4)], tol=2e-2)
        assert [site.operation for site in made.sites] == ["inv_sqrt"]
        assert made.sites[0].domain[0] > 0


# --- what is asked ------------------------------------------------------------------------------


def two_layers(x: Any) -> Any:
    return jnp.tanh(jax.nn.gelu(x) @ np.eye(4, dtype=np.float32) * 0.5)


def test_a_smaller_tolerance_takes_higher_degrees_and_gives_smaller_errors(normal: Normal) -> None:
    made = [hesim.approximate(two_layers, [normal(256, 4)], tol=t) for t in (1e-1, 1e-3)]
    held = normal(32, 4, seed=9)
    errors = [far(one, two_layers, held) for one in made]
    degrees = [[site.degree for site in one.sites] for one in made]
    assert degrees[0] < degrees[1]
    assert errors[0] <= 1e-1 and errors[1] <= 1e-3


def test_one_degree_for_all(normal: Normal) -> None:
    made = hesim.approximate(two_layers, [normal(32, 4)], degree=9)
    assert [site.degree for site in made.sites] == [9, 9]
    assert made.tol is None


def test_levels_are_shared_out_and_kept(normal: Normal) -> None:
    made = {n: hesim.approximate(two_layers, [normal(32, 4)], levels=n) for n in (7, 10)}
    assert all(sum(site.levels for site in one.sites) <= n for n, one in made.items())
    errors = [one.output_error for one in made.values()]
    assert errors[0] > errors[1]
    with pytest.raises(approx.ToleranceError, match="levels=2"):
        hesim.approximate(two_layers, [normal(32, 4)], levels=2)


def test_overrides_by_name_by_line_and_by_object(normal: Normal) -> None:
    gelu = approx.fit("gelu_tanh", (-9, 9), degree=15)
    sites = hesim.approximate(two_layers, [normal(8, 4)]).sites
    assert sites[0].source is not None
    line = sites[0].source.brief
    x = [normal(8, 4)]
    made = hesim.approximate(two_layers, x, overrides={"gelu_tanh": gelu, "tanh": {"degree": 5}})
    assert made.sites[0].approximation is gelu
    assert made.sites[1].degree == 5
    made = hesim.approximate(two_layers, x, overrides={1: {"degree": 3}, "gelu_tanh": gelu})
    assert [site.degree for site in made.sites] == [gelu.degree, 3]
    made = hesim.approximate(two_layers, x, overrides={line: {"domain": (-6, 6), "tol": 1e-3}})
    assert [site.domain for site in made.sites] == [(-6.0, 6.0)] * 2


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"tol": 1e-2, "degree": 3}, "one of tol=, degree= and levels="),
        ({"tol": -1.0}, "positive"),
        ({"degree": 2.5}, "whole number"),
        ({"margin": -0.1}, "part of a width"),
        ({"overrides": {"exp": {"degree": 3}}}, "no such function or line"),
        ({"overrides": {"gelu_tanh": {"order": 3}}}, "'order'"),
        ({"overrides": {"gelu_tanh": 3}}, "approx object"),
    ],
)
def test_what_cannot_be_asked_is_said(knobs: dict[str, Any], says: str, normal: Normal) -> None:
    with pytest.raises(hesim.ArgumentError, match=says):
        hesim.approximate(two_layers, [normal(8, 4)], **knobs)
    with pytest.raises(hesim.ArgumentError, match="at least one batch"):
        hesim.approximate(two_layers, [])


def test_all_that_cannot_be_replaced_is_listed_at_once(normal: Normal) -> None:
    def fn(x: Any) -> Any:
        order = jnp.sort(x)
        rounded = jnp.floor(x)
        return order + rounded + jnp.argmax(x) + jax.nn.gelu(x)

    with pytest.raises(hesim.NotHomomorphicError) as caught:
        hesim.approximate(fn, [normal(8, 4)])
    found = {one.operation: one.source for one in caught.value.obstacles}
    assert set(found) == {"sort", "floor", "argmax"}
    lines = [source.line for source in found.values() if source is not None]
    assert len(set(lines)) == 3


def test_a_tolerance_out_of_reach_names_the_function_and_its_line() -> None:
    fn = lambda x: jnp.log(x)
    with pytest.raises(approx.ToleranceError, match=r"log on .* at .*test_approximate\.py:\d+"):
        hesim.approximate(fn, [np.geomspace(1e-6, 10, 64, dtype=np.float32)], tol=1e-3)


def test_values_that_are_not_finite_are_named() -> None:
    with pytest.raises(hesim.ArgumentError, match="tanh at .* NaN"):
        hesim.approximate(jnp.tanh, [np.array([1.0, np.nan], np.float32)], tol=1e-2)


# --- the result ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smooth(normal: Normal) -> hesim.Approximated:
    return hesim.approximate(two_layers, [normal(32, 4)], tol=1e-3)


def test_it_is_a_function_of_jax(smooth: hesim.Approximated, normal: Normal) -> None:
    x = normal(5, 4, seed=4)
    assert far(jax.jit(smooth), smooth, x) < 1e-5
    assert far(jax.vmap(smooth), smooth, x) < 1e-5
    slope = jax.grad(lambda x: smooth(x).sum())
    assert far(slope, jax.grad(lambda x: two_layers(x).sum()), x) < 5e-2
    exported = jax.export.export(jax.jit(smooth), platforms=("cpu", "tpu"))(x)
    assert far(exported.call, smooth, x) < 1e-5


def test_it_keeps_the_lines_of_the_function(smooth: hesim.Approximated, normal: Normal) -> None:
    program = hesim.trace(smooth, normal(5, 4))
    lines = {op.source.function for op in program.ops if op.source is not None}
    assert lines == {"two_layers"}


def test_a_place_has_its_own_line_where_the_next_layer_takes_a_multiple(normal: Normal) -> None:
    def fn(x: jax.Array) -> jax.Array:
        x = nnx.relu(x)
        return nnx.max_pool(x, (2,), strides=(2,))

    first = fn.__code__.co_firstlineno
    smooth = hesim.approximate(fn, [normal(8, 4, 2)], degree=7)
    lines = [site.source.line for site in smooth.sites if site.source is not None]
    assert lines == [first + 1, first + 2]
    x = normal(2, 4, 2)
    ops = hesim.trace(smooth, x).ops
    drawn = [op.source for op in ops if op.name.startswith("polynomial")]
    assert [source.line for source in drawn if source is not None] == lines


def test_a_clamp_that_acts_on_other_inputs_only_is_told_by_the_check(normal: Normal) -> None:
    fn = lambda x: jnp.clip(jnp.tanh(x) + x, -9.0, 9.0)
    smooth = hesim.approximate(fn, [normal(32, 4)], degree=15)
    inside, beyond = smooth.check(normal(8, 4)), smooth.check(np.full((2, 4), 3.0, np.float32) * 9)
    assert inside.assumed == 0.0 and "clamp" not in str(inside)
    assert beyond.assumed == pytest.approx(19.0) and beyond.error > 15.0
    assert "19 by a clamp or a comparison that acted here" in str(beyond)


def test_pytrees_go_in_and_out(normal: Normal) -> None:
    fn = lambda pair: {"a": jnp.exp(pair["x"]), "b": [pair["y"].sum()]}
    batch = {"x": normal(3, 2), "y": normal(2, 2)}
    out = hesim.approximate(fn, [batch], tol=1e-2)(batch)
    assert np.max(np.abs(out["a"] - np.exp(batch["x"]))) <= 1e-2
    assert out["b"][0] == pytest.approx(float(batch["y"].sum()), rel=1e-5)


def test_what_leaves_a_domain_is_counted_by_site(
    smooth: hesim.Approximated, normal: Normal
) -> None:
    inside, outside = smooth.check(normal(64, 4, seed=3) * 0.5), smooth.check(normal(64, 4) * 20)
    assert inside.outside == (0.0, 0.0)
    assert outside.outside[0] > 0.5
    assert outside.error > 100 * inside.error
    assert "outside" in str(outside)
    assert "<table" in outside._repr_html_()


def test_weights_that_are_arguments_are_trained_through_the_polynomials(normal: Normal) -> None:
    def model(w: Any, x: Any) -> Any:
        return jax.nn.sigmoid(jax.nn.gelu(x @ w["a"]) @ w["b"])

    w = {"a": normal(4, 6) * 0.5, "b": normal(6, 1, seed=1) * 0.5}
    x = normal(64, 4, seed=2)
    y = (x[:, :1] > 0).astype(np.float32)
    made = hesim.approximate(model, [(w, x)], encrypted=(1,), tol=1e-2, margin=0.5)
    loss = jax.jit(jax.value_and_grad(lambda w: ((made(w, x) - y) ** 2).mean()))
    losses = []
    for _ in range(30):
        value, gradient = loss(w)
        losses.append(float(value))
        w = jax.tree.map(lambda a, g: a - 0.5 * g, w, gradient)
    assert losses[-1] < 0.8 * losses[0]
    program = hesim.trace(made, w, x, encrypted=made.encrypted)
    assert [v.encrypted for v in program.inputs] == [False, False, True]


def test_the_table_says_what_was_chosen(smooth: hesim.Approximated) -> None:
    text = str(smooth)
    assert "two_layers: 2 places made polynomial" in text
    assert text.count("test_approximate.py:") == 2
    assert smooth._repr_html_().count("<tr>") == 3
    site = smooth.sites[0]
    assert site.domain[0] < site.met[0] < site.met[1] < site.domain[1]
    assert site.error == site.approximation.max_error
    assert site.gain > 0


def test_the_figure_has_two_panels_a_site(smooth: hesim.Approximated) -> None:
    figure = smooth.plot()
    drawn = [axes for axes in figure.axes if axes.lines]
    assert len(drawn) == 2 * len(smooth.sites)
