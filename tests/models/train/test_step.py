"""The step factory: accumulation, bfloat16, donation, rematerialisation; where NaN came from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.config import EncoderConfig
from models.data.batches import Batch, shuffled
from models.errors import TrainingError
from models.nn.encoder import Model
from models.train.classifier import make_step, make_task_loss
from models.train.diagnose import origin
from models.train.loop import run_steps
from models.train.step import StepOptions, initial_state, make_update, rematerialised

CONFIG = EncoderConfig(layers=1, hidden=16, heads=2, ffn=16, sequence=6, vocabulary=12, pooler=(8,))
MODEL = Model(CONFIG)
KEY = jax.random.key(0)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def data(rows: int = 32) -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 12, (rows, 6)).astype(np.int32)
    return Batch(tokens, np.ones((rows, 6), np.float32), (tokens[:, 1] > 6).astype(np.int32))


def trained(options: StepOptions, steps: int = 3):
    optimizer = optax.adam(1e-2)
    step = make_step(MODEL, optimizer, options=options)
    state = initial_state(MODEL.init(KEY), optimizer, KEY)
    losses: list[float] = []
    state = run_steps(
        step,
        state,
        shuffled(data(), 16, 0),
        until=steps,
        report=lambda _, figures: losses.append(figures["loss"]),
        report_every=1,
    )
    return state, losses


@pytest.fixture(scope="module")
def plain():
    return trained(StepOptions())


def test_accumulated_gradients_are_those_of_the_whole_batch(plain):
    state, losses = trained(StepOptions(accumulate=4))
    np.testing.assert_allclose(losses, plain[1], rtol=1e-5)
    for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain[0].params)):
        np.testing.assert_allclose(one, two, atol=2e-4)
    with pytest.raises(ValueError, match="equal parts"):
        trained(StepOptions(accumulate=3))


def test_bfloat16_keeps_float32_parameters_and_comes_close(plain):
    state, losses = trained(StepOptions(precision="bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert losses != plain[1]
    np.testing.assert_allclose(losses, plain[1], rtol=0.03)


def test_products_of_a_bfloat16_step_are_in_bfloat16():
    optimizer = optax.adam(1e-2)
    step = make_step(MODEL, optimizer, options=StepOptions(precision="bfloat16"))
    state = initial_state(MODEL.init(KEY), optimizer, KEY)
    text = step.lower(state, data(8)).as_text()  # pyright: ignore[reportFunctionMemberAccess]
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 20
    assert all("bf16" in line for line in products)


def test_a_donated_state_is_gone_and_the_numbers_are_the_same(plain):
    optimizer = optax.adam(1e-2)
    step = make_step(MODEL, optimizer, options=StepOptions(donate=True))
    before = initial_state(MODEL.init(jax.random.clone(KEY)), optimizer, jax.random.clone(KEY))
    batch_of = shuffled(data(), 16, 0)
    state, metrics = step(before, batch_of(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    np.testing.assert_allclose(float(metrics["loss"]), plain[1][0], rtol=1e-6)
    assert int(state.step) == 1


def test_rematerialisation_changes_no_number_and_computes_again():
    loss = make_task_loss(MODEL)
    again = rematerialised(lambda params, batch: loss(params, {}, batch, KEY)[0])
    params, batch = MODEL.init(KEY), data(8)
    plain_gradient = jax.grad(lambda p: loss(p, {}, batch, KEY)[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.jit(jax.grad(again))(params, batch),
        jax.jit(plain_gradient)(params),
    )
    counts = [
        str(jax.make_jaxpr(gradient)(params)).count(" exp ")
        for gradient in (plain_gradient, jax.grad(lambda p: again(p, batch)))
    ]
    assert counts[1] > counts[0], "nothing is computed a second time"


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="accumulate"):
        StepOptions(accumulate=0)
    with pytest.raises(ValueError, match="precision"):
        StepOptions(precision="float16")  # pyright: ignore[reportArgumentType]


def spoiled(place: str, value: float):
    params = MODEL.init(KEY)
    block = params["blocks"][0]
    if place == "query":
        block["attention"]["query"]["kernel"] *= value
    elif place == "up":
        block["ffn"]["up"]["kernel"] = block["ffn"]["up"]["kernel"].at[0, 0].set(value)
    else:
        params["pooler"][0]["kernel"] *= value
    return params


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("query", 1e25, "reaches the site layer0.attention.exp"),
        ("up", float("nan"), "parameter blocks.0.ffn.up.kernel"),
        ("pooler", float("inf"), "parameter pooler.0.kernel"),
    ],
)
def test_the_origin_is_named(place: str, value: float, named: str):
    assert named in origin(MODEL, spoiled(place, value), data(4))


def test_healthy_numbers_blame_the_gradient():
    assert "gradient" in origin(MODEL, MODEL.init(KEY), data(4))


@pytest.mark.parametrize("donate", [False, True])
def test_a_run_that_diverges_names_step_and_place(donate: bool):
    optimizer = optax.sgd(lambda count: jnp.where(count == 2, 1e30, 0.0))
    step = make_update(make_task_loss(MODEL), optimizer, StepOptions(donate=donate))
    state = initial_state(MODEL.init(jax.random.key(1)), optimizer, jax.random.key(1))
    with pytest.raises(
        TrainingError, match=r"at step 4 \(what reaches the site layer0\.ffn\.relu is not finite\)"
    ):
        run_steps(
            step,
            state,
            shuffled(data(), 16, 0),
            until=10,
            report_every=5,
            diagnose=lambda params, batch: origin(MODEL, params, batch),
        )
