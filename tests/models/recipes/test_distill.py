"""Distillation: what softmax does not notice, how near a student comes, and going on to the bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.config import EncoderConfig, preset
from models.data.batches import Batch
from models.errors import CheckpointError
from models.nn.encoder import Model
from models.nn.lora import Params
from models.recipes.agreement import agreement, embeddings, layer_pairs
from models.recipes.distill import DistilBatch, Distillation, distil, make_loss
from models.recipes.finetune import overlay
from models.sites.sites import FitSettings
from models.start.softmax_to_gaussian import balanced, warm_start
from models.train.evaluate import fit_sites
from models.train.schedules import Budget
from models.train.step import initial_state, update_function

pytestmark = pytest.mark.usefixtures("quick_compilation")

BERT = preset("bert", layers=2, hidden=16, heads=2, ffn=16, sequence=12, vocabulary=24, pooler=(8,))
STUDENT = Model(BERT.replace(attention="gaussian", attention_mean=True))
TEACHER = Model(BERT)
SETTINGS = Distillation(
    batch=16, budget=Budget(steps=60), rate=5e-3, buckets=(6, 12), log_every=10, evaluate_every=30
)


def rows(n: int, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    mask = (np.arange(12) < random.integers(3, 13, n)[:, None]).astype(np.float32)
    tokens = random.integers(3, 24, (n, 12)) * mask.astype(np.int64)
    return Batch(tokens.astype(np.int32), mask, np.zeros(n, np.int32))


@functools.cache
def teacher() -> Params:
    """A random BERT whose queries and keys are long and off the origin, as trained ones are."""
    params = TEACHER.init(jax.random.key(1))
    for i, block in params["blocks"].items():
        for j, name in enumerate(("query", "key", "value")):
            part = block["attention"][name]
            key = jax.random.key(10 * i + j)
            part["bias"] = 0.8 * jax.random.normal(key, part["bias"].shape)
            part["kernel"] = part["kernel"] * 15
        for name in ("output",):
            block["attention"][name]["kernel"] *= 15
    return params


@functools.cache
def started() -> Params:
    data = rows(64, 0)
    return warm_start(BERT, teacher(), data.tokens, data.mask)


def test_balancing_keeps_products_and_makes_squares_smaller_and_equal():
    random = np.random.default_rng(0)
    q = random.normal(size=(500, 6)) @ random.normal(size=(6, 6))
    k = 3 * random.normal(size=(500, 6)) @ random.normal(size=(6, 6))
    q, k = q - q.mean(0), k - k.mean(0)
    m = balanced(q, k)
    a, b = q @ m.T, k @ np.linalg.inv(m)
    np.testing.assert_allclose(a @ b.T, q @ k.T, atol=1e-9)
    squares = (a * a).sum(1).mean(), (b * b).sum(1).mean()
    assert squares[0] == pytest.approx(squares[1], rel=1e-2)
    assert sum(squares) < 0.9 * ((q * q).sum(1).mean() + (k * k).sum(1).mean())


def test_the_warm_start_is_nearer_than_the_teachers_weights():
    data = rows(96, 1)
    plain = agreement(TEACHER, teacher(), STUDENT, teacher(), data, buckets=(6, 12))
    warm = agreement(TEACHER, teacher(), STUDENT, started(), data, buckets=(6, 12))
    assert warm.attention[0] < 0.6 * plain.attention[0]
    assert warm.states[-1] < plain.states[-1] and warm.pooled < plain.pooled
    before, after = teacher()["blocks"][0]["ffn"], started()["blocks"][0]["ffn"]
    assert before["up"]["kernel"] is after["up"]["kernel"]


def test_a_model_agrees_with_itself_whatever_fills_its_last_batch():
    found = agreement(TEACHER, teacher(), TEACHER, teacher(), rows(21, 2), buckets=(6, 12))
    assert found.states == (0.0, 0.0) and found.pooled == 0.0 and found.logits == 0.0
    one = agreement(TEACHER, teacher(), STUDENT, started(), rows(21, 2), batch=21, buckets=(12,))
    cut = agreement(TEACHER, teacher(), STUDENT, started(), rows(21, 2), batch=8, buckets=(6, 12))
    np.testing.assert_allclose(cut.states, one.states, rtol=1e-4)
    assert cut.logits == pytest.approx(one.logits, rel=1e-4)


@pytest.mark.parametrize("config", [BERT, EncoderConfig(vocabulary=24, sequence=12, hidden=16)])
def test_layer_outputs_end_with_hidden_states_and_logits(config: EncoderConfig):
    data = rows(8, 3)
    exact = Model(config)
    params = exact.init(jax.random.key(0))
    fit = FitSettings(degrees=(("exp", 15), ("gelu", 15), ("relu", 15), ("tanh", 15)), margin=0.3)
    degrees = (*fit.degrees, ("inv_sqrt", 15))
    models = [exact]
    if config.attention == "gaussian":
        settings = dataclasses.replace(fit, degrees=degrees)
        models.append(exact.with_sites(fit_sites(exact, params, data, settings)))
    for model in models:
        x = model.embed(params, data.tokens)
        found = model.layer_outputs(params, x, data.mask)
        np.testing.assert_allclose(
            found.final, model.hidden_states(params, x, data.mask)[0], atol=1e-5
        )
        np.testing.assert_allclose(
            found.logits, model.predict(params, data.tokens, data.mask), atol=2e-5
        )
        if config.post_norm:
            np.testing.assert_array_equal(found.states[-1], found.final)
    if len(models) == 2:  # in the units of the exact model, whatever the polynomials' scale
        outs = [m.layer_outputs(params, m.embed(params, data.tokens), data.mask) for m in models]
        for a, b in zip(outs[0].states + outs[0].attention, outs[1].states + outs[1].attention):
            assert float(jnp.max(jnp.abs(a - b))) < 0.1 * float(jnp.max(jnp.abs(a)))


def test_distilling_brings_the_student_near_and_resumes_to_the_bit(tmp_path):
    data, held = rows(200, 4), rows(40, 5)
    reports = []
    run = functools.partial(distil, TEACHER, teacher(), STUDENT, started(), data, SETTINGS)
    whole = run(tmp_path / "whole", held_out=held, report=reports.append)
    assert whole.finished and whole.step == 60
    before = agreement(TEACHER, teacher(), STUDENT, started(), held, buckets=(6, 12))
    after = agreement(TEACHER, teacher(), STUDENT, whole.params, held, buckets=(6, 12))
    assert after.states[-1] < 0.8 * before.states[-1]
    assert max(np.divide(after.attention, before.attention)) < 0.8
    last = reports[-1].figures
    assert last["held_out/pooled"] == pytest.approx(after.pooled, rel=1e-5)
    low = after.ranges["layer0.attention.exp"][0]
    assert last["range/layer0.attention.exp/low"] == pytest.approx(low, rel=1e-5)
    word = whole.params["embedding"]["word"]
    assert word is started()["embedding"]["word"]

    calls = iter(range(1000))
    first = run(tmp_path / "parts", stop=lambda: next(calls) > 30)
    assert not first.finished and 0 < first.step < 60
    second = run(tmp_path / "parts")
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), whole.params, second.params)
    assert jax.tree.all(same)
    with pytest.raises(CheckpointError, match="settings.rate is 0.005 there and 0.001 here"):
        distil(
            TEACHER,
            teacher(),
            STUDENT,
            started(),
            data,
            dataclasses.replace(SETTINGS, rate=1e-3),
            tmp_path / "parts",
        )


def one_step(settings: Distillation):
    """Loss and parameters behind one step of everything on 16 rows, and the jaxpr of the step; the
    heads are loud enough for logits that differ.
    """
    loud = [
        {**p, "head": {**p["head"], "kernel": 300 * p["head"]["kernel"]}}
        for p in (teacher(), started())
    ]
    loss, optimizer = make_loss(TEACHER, STUDENT, settings), optax.sgd(0.1)
    frozen = {"teacher": loud[0], "student": {}}
    data = rows(16, 9)
    batch = DistilBatch(data.tokens, data.mask, np.float32(0.5))
    state = initial_state(loud[1], optimizer, jax.random.key(0))
    arguments = (state, batch, frozen)
    step = update_function(loss, optimizer, settings.options())
    traced = jax.jit(step).trace(*arguments)
    after, metrics = traced.lower().compile()(*arguments)
    return float(metrics["loss"]), after.params, str(traced.jaxpr)


LOGITS = dataclasses.replace(
    SETTINGS, states=0.0, attention=0.0, pooled=0.0, logits=1.0, trained="all"
)


def test_a_step_in_parts_or_computed_again_is_the_same_step():
    loss, params, plain = one_step(LOGITS)
    assert loss > 1e-3
    for changes in ({"accumulate": 4}, {"remat": True}):
        other, found, text = one_step(dataclasses.replace(LOGITS, **changes))
        assert other == pytest.approx(loss, rel=1e-5)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        if "accumulate" in changes:  # the plain step has no loop
            assert plain.count(" scan[") < text.count(" scan[")
        else:
            assert plain.count(" exp ") < text.count(" exp "), "nothing is computed again"


def test_both_models_compute_in_bfloat16_and_the_student_stays_in_float32():
    loss, _, plain = one_step(SETTINGS)
    near, params, text = one_step(dataclasses.replace(SETTINGS, precision="bfloat16"))
    assert near != loss and near == pytest.approx(loss, rel=0.05)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    products = [line for line in text.splitlines() if "= dot_general" in line]
    wide = [line for line in products if ":bf16" not in line]
    assert "bf16" not in plain and len(products) > 60
    assert len(wide) < 0.1 * len(products), wide  # sums over tokens, which are wanted exact


def test_how_a_step_computes_is_part_of_a_run_unless_plain(tmp_path):
    data = rows(32, 4)
    short = dataclasses.replace(SETTINGS, budget=Budget(steps=2))
    distil(TEACHER, teacher(), STUDENT, started(), data, short, tmp_path)
    parts = dataclasses.replace(short, accumulate=2)
    with pytest.raises(CheckpointError, match="settings.accumulate is 1 there and 2 here"):
        distil(TEACHER, teacher(), STUDENT, started(), data, parts, tmp_path)
    with pytest.raises(ValueError, match="no multiple"):
        dataclasses.replace(SETTINGS, accumulate=3)
    with pytest.raises(ValueError, match="precision"):
        dataclasses.replace(SETTINGS, precision="half")


def test_logits_alone_distil_a_narrower_student(tmp_path):
    small = Model(EncoderConfig(layers=1, hidden=8, ffn=8, vocabulary=24, sequence=12, pooler=(8,)))
    params = small.init(jax.random.key(0))
    data = rows(64, 6)
    only = dataclasses.replace(
        SETTINGS, states=0.0, attention=0.0, pooled=0.0, logits=1.0, trained="all"
    )
    with pytest.raises(CheckpointError, match="hidden widths 16 and 8"):
        distil(TEACHER, teacher(), small, params, data, SETTINGS, tmp_path / "a")
    before = agreement(TEACHER, teacher(), small, params, data, buckets=(6, 12))
    result = distil(TEACHER, teacher(), small, params, data, only, tmp_path / "b")
    after = agreement(TEACHER, teacher(), small, result.params, data, buckets=(6, 12))
    assert np.isnan(after.pooled) and after.logits < 0.7 * before.logits
    assert layer_pairs(TEACHER, small) == ((0, 1),)


def test_the_penalty_pulls_a_students_ranges_in(tmp_path):
    data = rows(64, 7)
    settings = dataclasses.replace(
        SETTINGS, penalty=1.0, targets=(("exp", (-2.0, 0.0)),), trained="attention"
    )
    before = agreement(TEACHER, teacher(), STUDENT, started(), data, buckets=(6, 12))
    result = distil(TEACHER, teacher(), STUDENT, started(), data, settings, tmp_path)
    after = agreement(TEACHER, teacher(), STUDENT, result.params, data, buckets=(6, 12))
    name = "layer0.attention.exp"
    assert after.ranges[name][0] > 0.7 * before.ranges[name][0]
    assert (
        result.params["blocks"][0]["ffn"]["up"]["kernel"]
        is (started()["blocks"][0]["ffn"]["up"]["kernel"])
    )


def test_embeddings_have_length_one_and_ignore_padding():
    data = rows(30, 8)
    found = embeddings(TEACHER, teacher(), data, batch=8, buckets=(6, 12))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    dirty = data._replace(tokens=np.where(data.mask > 0, data.tokens, 7).astype(np.int32))
    again = embeddings(TEACHER, teacher(), dirty, batch=30, buckets=(12,))
    np.testing.assert_allclose(found, again, atol=1e-5)


def test_what_cannot_be_warm_started_is_refused():
    data = rows(4, 0)
    with pytest.raises(CheckpointError, match="softmax encoder with biases"):
        warm_start(STUDENT.config, started(), data.tokens, data.mask)


def test_a_post_norm_encoder_starts_a_fine_tuning():
    fresh = TEACHER.init(jax.random.key(9))
    found = overlay(fresh, {**teacher(), "head": {}})
    assert (
        found["blocks"][1]["ffn"]["up"]["kernel"] is teacher()["blocks"][1]["ffn"]["up"]["kernel"]
    )
    assert found["head"] is fresh["head"] and found["pooler"] is fresh["pooler"]
    small = Model(
        EncoderConfig(hidden=16, heads=2, ffn=16, vocabulary=24, sequence=12, pooler=(8,))
    )
    with pytest.raises(CheckpointError, match="final_norm is missing"):
        overlay(small.init(jax.random.key(0)), teacher())
