"""Fine-tuning: buckets, LoRA, and the step as encryption takes it."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hesim
from hesim.errors import ParameterError
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch
from models.data.buckets import bucket_batches, lengths_of, plan_epoch, trim
from models.data.tasks import TaskData, baseline
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import merged
from models.encrypted.update import (
    PolynomialSoftmax,
    encrypted_arguments,
    lora_update,
    simulated_update,
    training_sites,
)
from models.errors import CheckpointError, DataError, TrainingError
from models.nn.encoder import Model
from models.nn.lora import is_adapter, is_adapter_or_head, partition
from models.objectives.losses import cross_entropy
from models.recipes.finetune import _watched as watched
from models.recipes.finetune import finetune, overlay
from models.recipes.finetune_settings import FineTune
from models.recipes.finetune_step import learning_rates, penalty_factors
from models.sites.sites import FitSettings
from models.train.checkpoint import Checkpoints
from models.train.evaluate import fit_sites, make_evaluate
from models.train.optim import adamw_he
from models.train.step import TrainState

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = EncoderConfig(
    layers=1, hidden=16, heads=2, ffn=16, sequence=12, vocabulary=16, pooler=(8,), first_norm=True
)
SETTINGS = FineTune(epochs=4, batch=16, learning_rate=2e-2, buckets=(12,))
FIT = FitSettings(degrees=(("exp", 7), ("inv_sqrt", 7), ("relu", 7), ("tanh", 7)), margin=1.0)
HOW = EncryptionSettings(fit=dataclasses.replace(FIT, ranges=(("tanh", (-5.0, 5.0)),)))


def rows(n: int, seed: int) -> Batch:
    """The class is whether many tokens are above 9; lengths from 3 to 12."""
    random = np.random.default_rng(seed)
    tokens = random.integers(3, 16, (n, 12)).astype(np.int32)
    lengths = random.integers(3, 13, n)
    mask = (np.arange(12) < lengths[:, None]).astype(np.float32)
    many = ((tokens > 9) * mask).sum(axis=1) > 0.45 * lengths
    return Batch(tokens * mask.astype(np.int32), mask, many.astype(np.int32))


def task(regression: bool = False) -> TaskData:
    parts = [rows(n, seed) for n, seed in ((200, 0), (40, 1), (60, 2))]
    if regression:
        parts = [p._replace(targets=(2.0 * p.targets - 1).astype(np.float32)) for p in parts]
    names = ("pearson", "spearman") if regression else ("accuracy", "f1", "matthews")
    return TaskData("planted", 1 if regression else 2, names, *parts, truncated=0.0)


@functools.cache
def start() -> dict:
    """A pre-trained encoder: the task's own features, under a head that is thrown away."""
    settings = dataclasses.replace(SETTINGS, method="full", epochs=8)
    return finetune(CONFIG, Model(CONFIG).init(jax.random.key(7)), task(), settings).params


def test_an_epoch_meets_every_row_in_a_bucket_that_holds_it():
    data = rows(205, 0)
    lengths = lengths_of(data)
    plans = plan_epoch(lengths, 16, (4, 8, 12), seed=0, epoch=0)
    assert len(plans) == 13
    met = np.concatenate([plan.rows for plan in plans])
    assert set(met) == set(range(205)) and len(met) == 208
    for plan in plans:
        assert lengths[plan.rows].max() <= plan.length
        assert trim(data, plan).tokens.shape == (16, plan.length)
    assert {plan.length for plan in plans} == {4, 8, 12}
    again = plan_epoch(lengths, 16, (4, 8, 12), seed=0, epoch=0)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(plans, again, strict=True))
    other = plan_epoch(lengths, 16, (4, 8, 12), seed=0, epoch=1)
    assert not all(np.array_equal(a.rows, b.rows) for a, b in zip(plans, other, strict=True))


def test_whole_meets_every_row_once():
    data = rows(50, 0)
    own = [plan.rows[: plan.count] for plan in bucket_batches(lengths_of(data), 16, (4, 8, 12))]
    assert sorted(np.concatenate(own)) == list(range(50))


def test_a_sequence_that_no_bucket_holds_is_refused():
    with pytest.raises(DataError, match="12 tokens"):
        plan_epoch(lengths_of(rows(50, 0)), 16, (4, 8), seed=0, epoch=0)


def test_cutting_to_a_bucket_changes_no_logit():
    model = Model(CONFIG)
    params, data = model.init(jax.random.key(0)), rows(60, 3)
    found = make_evaluate(model, size=16, buckets=(4, 8, 12))(params, data).logits
    expected = model.predict(params, data.tokens, data.mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_full_training_and_then_lora_learn_a_task():
    data = task()
    least = max(baseline(data)["accuracy"] + 0.25, 0.85)
    full = make_evaluate(Model(CONFIG), buckets=(12,))(start(), data.test).logits
    assert metrics.score(full, data.test.targets)["accuracy"] > least
    result = finetune(CONFIG, start(), data, SETTINGS)
    logits = make_evaluate(result.model, buckets=(12,))(result.params, data.test).logits
    assert metrics.score(logits, data.test.targets)["accuracy"] > least


def typed(n: int, seed: int) -> Batch:
    types = np.random.default_rng(seed).integers(0, 2, (n, 12)).astype(np.int32)
    return rows(n, seed)._replace(types=types)


@pytest.mark.parametrize("how", [{"method": "full"}, {"method": "lora"}, {"encrypted": HOW}])
def test_token_types_reach_training_and_answers(how):
    parts = [typed(n, seed) for n, seed in ((64, 0), (40, 1), (60, 2))]
    data = dataclasses.replace(task(), train=parts[0], validation=parts[1], test=parts[2])
    settings = dataclasses.replace(SETTINGS, epochs=1, batch=64, learning_rate=1e-9, **how)
    config = CONFIG.replace(token_types=2, initial_std=0.3)
    done = finetune(config, Model(config).init(jax.random.key(5)), data, settings)

    def loss(part: Batch, types: np.ndarray | None) -> float:
        logits = done.model.predict(done.params, part.tokens, part.mask, types)
        return float(cross_entropy(logits, jnp.asarray(part.targets)))

    met = done.history[0]["loss"]
    assert met == pytest.approx(loss(data.train, data.train.types), abs=1e-3)
    assert abs(met - loss(data.train, None)) > 1e-2
    answers = make_evaluate(done.model, buckets=(12,))(done.params, data.test)
    expected = done.model.predict(done.params, data.test.tokens, data.test.mask, data.test.types)
    np.testing.assert_allclose(answers.logits, expected, atol=1e-4)


def apart(n: int, seed: int) -> Batch:
    """The class is whether both sentences have the same first token; other tokens are noise."""
    random = np.random.default_rng(seed)
    tokens = random.integers(3, 16, (n, 2, 12)).astype(np.int32)
    same = random.integers(0, 2, n).astype(np.int32)
    tokens[:, 1, 0] = np.where(same, tokens[:, 0, 0], (tokens[:, 0, 0] - 3 + 6) % 13 + 3)
    mask = (np.arange(12) < random.integers(3, 9, (n, 2))[..., None]).astype(np.float32)
    return Batch(tokens, mask, same)


def test_pairs_read_apart_are_learned_and_cut_to_buckets():
    parts = [apart(n, seed) for n, seed in ((400, 0), (40, 1), (100, 2))]
    data = dataclasses.replace(task(), train=parts[0], validation=parts[1], test=parts[2])
    np.testing.assert_array_equal(lengths_of(data.test), data.test.mask.sum(axis=-1).max(axis=1))
    settings = dataclasses.replace(
        SETTINGS, method="full", epochs=8, learning_rate=5e-3, buckets=(6, 12), pairs="bi-encoder"
    )
    done = finetune(CONFIG, Model(CONFIG).init(jax.random.key(5)), data, settings)
    answers = make_evaluate(done.model, buckets=(6, 12))(done.params, data.test)
    assert metrics.score(answers.answers, data.test.targets)["accuracy"] > 0.9
    expected = done.model.predict(done.params, data.test.tokens, data.test.mask)
    np.testing.assert_allclose(answers.logits, expected, atol=1e-4)
    with pytest.raises(ParameterError, match="pairs='cross-encoder' does not read"):
        finetune(CONFIG, {}, data, SETTINGS)


def test_pairs_read_apart_are_trained_and_answered_as_encrypted():
    parts = [apart(n, seed) for n, seed in ((64, 0), (40, 1), (60, 2))]
    data = dataclasses.replace(task(), train=parts[0], validation=parts[1], test=parts[2])
    how = EncryptionSettings(fit=FIT)
    settings = dataclasses.replace(
        SETTINGS,
        epochs=1,
        batch=64,
        learning_rate=1e-9,
        epsilon=0.1,
        pairs="bi-encoder",
        encrypted=how,
    )
    narrow = dataclasses.replace(settings, encrypted=HOW)
    with pytest.raises(TrainingError, match=r"step 1 left the parameter .*100.00% of"):
        finetune(CONFIG, Model(CONFIG).init(jax.random.key(5)), data, narrow)
    done = finetune(CONFIG, Model(CONFIG).init(jax.random.key(5)), data, settings)
    logits = done.model.predict(done.params, data.train.tokens, data.train.mask)
    loss = float(cross_entropy(logits, jnp.asarray(data.train.targets)))
    assert done.history[0]["loss"] == pytest.approx(loss, abs=1e-3)
    expected = done.model.predict(done.params, data.test.tokens, data.test.mask)
    answers = make_evaluate(done.model, buckets=(12,), how=how)(done.params, data.test)
    assert 0 < np.abs(answers.logits - expected).max() < 1e-3


def test_lora_leaves_the_encoder_as_it_was():
    before = start()
    result = finetune(CONFIG, before, task(), dataclasses.replace(SETTINGS, epochs=1))
    after, _ = partition(result.params, lambda path: not is_adapter_or_head(path))
    old, _ = partition(before, lambda path: not is_adapter_or_head(path))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), after, old))
    adapters, _ = partition(result.params, is_adapter)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(adapters))


def encrypted_settings(**changes) -> FineTune:
    return dataclasses.replace(SETTINGS, encrypted=HOW, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("regression", [False, True])
def test_as_encrypted_ends_where_the_exact_training_ends(regression):
    data = task(regression)
    settings = encrypted_settings(epochs=2, epsilon=0.1 if regression else 6e-4)
    noisy = finetune(CONFIG, start(), data, settings)
    exact = finetune(CONFIG, start(), data, dataclasses.replace(settings, encrypted=None))
    name = "pearson" if regression else "accuracy"
    scores = [
        metrics.score(
            make_evaluate(r.model, buckets=(12,), how=how)(r.params, data.test).logits,
            data.test.targets,
        )
        for r, how in ((noisy, settings.encrypted), (exact, None))
    ]
    assert abs(scores[0][name] - scores[1][name]) < 0.1
    assert noisy.history[-1]["phase"] == "as encrypted"
    assert noisy.history[-1]["outside"] < 0.2


@pytest.mark.slow
def test_a_step_out_of_the_roots_domain_is_named():
    data = task(regression=True)
    with pytest.raises(ValueError, match=r"optimizer\.inv_sqrt \("):
        finetune(CONFIG, start(), data, encrypted_settings(epsilon=1e-3, learning_rate=5.0))


def test_the_site_that_a_runaway_step_left_first_is_named():
    shares = {"layer0.ffn.relu": 0.25, "pooler.tanh": 1.0, "loss.exp": 1.0}
    order = ("layer0.attention.exp", "layer0.ffn.relu", "pooler.tanh", "loss.exp")

    def step(state, batch, frozen):
        return state, {"loss": jnp.nan, "outside": {**shares, "layer0.attention.exp": 0.0}}

    state = TrainState(jnp.array(7), {}, (), jax.random.key(0))
    with pytest.raises(
        TrainingError, match=r"step 7; in this step layer0\.ffn\.relu was the first"
    ):
        watched(step, {}, order)(state, rows(2, 0))


def test_the_encrypted_update_is_the_exact_one_up_to_its_polynomials():
    data = rows(64, 0)
    adapted = CONFIG.replace(lora_rank=2)
    exact = Model(adapted, low_rank=True)
    params = exact.init(jax.random.key(0))
    fit = FitSettings(
        degrees=(("exp", 15), ("inv_sqrt", 15), ("relu", 63), ("tanh", 15)), margin=0.3
    )
    twin = exact.with_sites(fit_sites(exact, params, data, fit))
    trained, frozen = partition(params, is_adapter_or_head)
    x = {m: m.embed(params, data.tokens[:8]) for m in (exact, twin)}
    y = jax.nn.one_hot(data.targets[:8], 2)

    def step(model, optimizer, softmax, scale=1.0):
        state = optimizer.init(trained)
        update = jax.jit(lora_update(model, optimizer, softmax, scale))
        return update(trained, state, frozen, x[model], data.mask[:8], y, 1.0)

    sites = training_sites(2)
    root = sites.get("optimizer.inv_sqrt")
    found, state, _ = step(
        twin,
        adamw_he(1e-2, eps=6e-4, inv_sqrt=root, prescale=3.0),
        PolynomialSoftmax.of(sites),
    )
    real = PolynomialSoftmax(jnp.exp, lambda s: 1 / s)
    expected, _, _ = step(exact, adamw_he(1e-2, eps=6e-4), real)
    for new, right, old in zip(*map(jax.tree.leaves, (found, expected, trained)), strict=True):
        moved = float(jnp.max(jnp.abs(right - old)))
        assert float(jnp.max(jnp.abs(new - right))) < 0.1 * moved + 1e-6
    assert jax.tree.leaves(state)
    # A larger loss with its larger epsilon takes the same step.
    scaled, _, _ = step(exact, adamw_he(1e-2, eps=64 * 6e-4), real, 8.0)
    for new, right in zip(*map(jax.tree.leaves, (scaled, expected)), strict=True):
        np.testing.assert_allclose(new, right, atol=1e-6)


def test_a_whole_lora_step_traces_and_its_noise_is_small():
    data = rows(4, 0)
    model = Model(CONFIG.replace(lora_rank=1, ffn=4, hidden=8), low_rank=True)
    params = model.init(jax.random.key(0))
    twin = model.with_sites(fit_sites(model, params, data, FIT))
    trained, frozen = partition(params, is_adapter_or_head)
    sites = training_sites(2)
    root = sites.get("optimizer.inv_sqrt")
    optimizer = adamw_he(1e-2, eps=6e-4, inv_sqrt=root, prescale=3.0)
    state = optimizer.init(trained)
    update = lora_update(twin, optimizer, PolynomialSoftmax.of(sites))
    x, y = twin.embed(params, data.tokens), jax.nn.one_hot(data.targets, 2)
    arguments = (trained, state, frozen, x, data.mask, y, np.float32(1))
    program = hesim.trace(update, *arguments, encrypted=encrypted_arguments(state))
    assert {"polynomial", "dot_general"} <= {op.name for op in program.ops}
    ckks = EncryptionSettings().ckks
    # One layout, since what is tested is not which one is cheapest.
    layouts = [
        (len(v.shape) - 2,) if len(v.shape) > 1 else () for v in program.inputs if v.encrypted
    ]
    circuit = hesim.compile(program, ckks, layouts=layouts)
    noisy = jax.jit(simulated_update(update, state, ckks, circuit=circuit))
    found = noisy(jax.random.key(1), *arguments)[0]
    exact = jax.jit(update)(*arguments)[0]
    errors = [
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    ]
    assert 0 < max(errors) < 1e-4


def test_resuming_ends_with_the_same_bits(tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=3)
    whole_run = finetune(CONFIG, start(), task(), settings)

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step >= 26:
            raise Stop

    with pytest.raises(Stop):
        finetune(CONFIG, start(), task(), settings, checkpoints=tmp_path / "c", report=stop)
    resumed = finetune(CONFIG, start(), task(), settings, checkpoints=tmp_path / "c")
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.all(a == b)), whole_run.params, resumed.params)
    )
    assert len(resumed.history) == 3
    with pytest.raises(CheckpointError, match="another fine-tuning"):
        other = dataclasses.replace(settings, learning_rate=1.0)
        finetune(CONFIG, start(), task(), other, checkpoints=tmp_path / "c")
    fewer = dataclasses.replace(task(), train=rows(190, 0))
    with pytest.raises(CheckpointError, match=r"other data\)"):
        finetune(CONFIG, start(), fewer, settings, checkpoints=tmp_path / "c")
    elsewhere = jax.tree.map(lambda leaf: leaf + 1, start())
    with pytest.raises(CheckpointError, match=r"other start\)"):
        finetune(CONFIG, elsewhere, task(), settings, checkpoints=tmp_path / "c")


def test_what_cannot_be_is_refused():
    with pytest.raises(CheckpointError, match="no encoder"):
        overlay(start(), {})
    wider = Model(CONFIG.replace(hidden=32)).init(jax.random.key(0))
    with pytest.raises(CheckpointError, match="shape"):
        overlay(start(), wider)
    with pytest.raises(ValueError, match="lora"):
        FineTune(method="full", encrypted=EncryptionSettings())
    with pytest.raises(ValueError, match="dropout"):
        FineTune(dropout=0.1, encrypted=EncryptionSettings())
    with pytest.raises(ValueError, match="softmax"):
        lora_update(Model(CONFIG), optax.sgd(0.1), None)
    with pytest.raises(ParameterError, match="lora_rank=17 is more than hidden=16"):
        finetune(CONFIG, start(), task(), dataclasses.replace(SETTINGS, rank=17))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("epochs", 0),
        ("learning_rate", float("nan")),
        ("warmup", -0.1),
        ("weight_decay", -1.0),
        ("dropout", 1.0),
        ("alpha", 0.0),
        ("multiplier", -1.0),
        ("accumulate", 0),
        ("accumulate", -4),
        ("precision", "fp16"),
        ("epochs", 10**12),
        ("seed", -1),
        ("adapted", ()),
    ],
)
def test_a_setting_out_of_bounds_is_named(name: str, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SETTINGS, **{name: value})


def test_unknown_projections_and_buckets_are_named():
    with pytest.raises(ValueError, match="no such projection for LoRA: .*'foo'"):
        FineTune(adapted=("query", "foo"))
    with pytest.raises(DataError, match="buckets"):
        FineTune(buckets=())


@pytest.mark.parametrize(
    ("method", "site"), [("lora", "attention.exp"), ("full", "attention_norm.inv_sqrt")]
)
def test_a_loss_that_is_not_finite_stops_with_the_site_that_met_it(method, site: str):
    """The warm-up begins at a rate of 0, so step 2 is the one that leaves, and step 3 meets it."""
    settings = dataclasses.replace(SETTINGS, method=method, learning_rate=1e30)
    said = rf"at step 3 \(what reaches the site layer0\.{re.escape(site)} is not finite\)"
    with pytest.raises(TrainingError, match=said):
        finetune(CONFIG, start(), task(), settings)


def test_a_label_out_of_range_is_named():
    data = task()
    wrong = data.train._replace(targets=np.where(np.arange(200) == 7, 2, data.train.targets))
    with pytest.raises(DataError, match="planted, train, row 7: the label is 2, a class from 0"):
        dataclasses.replace(data, train=wrong)
    rated = task(regression=True)
    nothing = rated.test._replace(targets=np.full(60, np.nan))
    with pytest.raises(DataError, match="test, row 0: the label is nan, a finite rating"):
        dataclasses.replace(rated, test=nothing)


def test_the_rate_rises_and_falls_over_the_steps():
    found = learning_rates(dataclasses.replace(SETTINGS, warmup=0.1), 100)
    assert found.shape == (100,) and found.max() == np.float32(SETTINGS.learning_rate)
    assert int(found.argmax()) == 10 and found[0] == 0 and found[-1] < 0.01 * found.max()
    assert (np.diff(found[:11]) > 0).all() and (np.diff(found[10:]) < 0).all()


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (0.0, 4), (0.06, 8), (1.0, 1), (0.9, 3)])
def test_few_steps_and_no_warm_up_train_at_some_rate(warmup: float, steps: int):
    found = learning_rates(dataclasses.replace(SETTINGS, warmup=warmup), steps)
    assert found.shape == (steps,) and found.max() == np.float32(SETTINGS.learning_rate)
    assert (found[0] > 0) == (round(warmup * steps) == 0 or steps == 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss_scale", 0.0), ("loss_scale", float("nan")), ("range_rows", 0), ("profile", "foo")],
)
def test_an_encryption_that_cannot_be_is_named(name: str, value):
    with pytest.raises(ValueError, match=name.removesuffix("_rows")):
        EncryptionSettings(**{name: value})


def test_a_stopped_training_saves_where_it_was_and_ends_with_the_same_bits(tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=2)
    asked = iter(range(10**6))
    part = finetune(
        CONFIG, start(), task(), settings, stop=lambda: next(asked) == 18, checkpoints=tmp_path
    )
    assert not part.finished and len(part.history) == 1
    rest = finetune(CONFIG, start(), task(), settings, checkpoints=tmp_path)
    whole_run = finetune(CONFIG, start(), task(), settings)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), whole_run.params, rest.params)
    assert rest.finished and jax.tree.all(same)


def test_merging_changes_no_answer():
    result = finetune(CONFIG, start(), task(), dataclasses.replace(SETTINGS, epochs=1))
    model, params = merged(result.model, result.params)
    assert model.config.lora_rank == 0 and model.config != result.model.config
    data = task().test
    np.testing.assert_allclose(
        model.predict(params, data.tokens, data.mask),
        result.model.predict(result.params, data.tokens, data.mask),
        atol=1e-5,
    )


def test_the_pooling_is_the_models_own_unless_the_settings_say_another():
    mean = CONFIG.replace(pooling="mean")
    assert FineTune(method="full").adapt(mean).pooling == "mean"
    assert FineTune(pooling="token").adapt(mean).pooling == "token"
    assert FineTune(pooling="mean").adapt(CONFIG).pooling == "mean"
    with pytest.raises(ValueError, match="pooling"):
        FineTune(pooling="max")  # pyright: ignore[reportArgumentType]


def test_a_training_with_the_mean_reads_words_that_the_first_token_cannot_see():
    """One epoch at a rate of nearly 0 leaves the encoder as it was: the model then still pools as
    the settings said, which its logits show.
    """
    settings = dataclasses.replace(SETTINGS, epochs=1, learning_rate=1e-12, pooling="mean")
    done = finetune(CONFIG, start(), task(), settings)
    assert done.model.config.pooling == "mean"
    data = task().test
    token = dataclasses.replace(done.model, config=done.model.config.replace(pooling="token"))
    found, other = (
        make_evaluate(*merged(m, done.params)[:1], buckets=(12,))(
            merged(m, done.params)[1], data
        ).logits
        for m in (done.model, token)
    )
    assert np.abs(found - other).max() > 1e-3


def test_a_step_in_parts_takes_the_whole_steps_gradient_and_bfloat16_stays_near_it():
    settings = dataclasses.replace(SETTINGS, method="full", epochs=1, learning_rate=1e-3)
    expected = finetune(CONFIG, start(), task(), settings)
    for change, tolerance in (
        ({"accumulate": 4}, 1e-4),
        ({"remat": True}, 1e-4),
        ({"precision": "bfloat16"}, 2e-2),
    ):
        found = finetune(CONFIG, start(), task(), dataclasses.replace(settings, **change))
        assert found.history[-1]["loss"] == pytest.approx(
            expected.history[-1]["loss"], rel=max(tolerance, 1e-3)
        )
        moved = [
            float(jnp.max(jnp.abs(a - b)))
            for a, b in zip(*map(jax.tree.leaves, (found.params, expected.params)), strict=True)
        ]
        assert max(moved) < tolerance
    with pytest.raises(ValueError, match="one whole of float32"):
        encrypted_settings(accumulate=2)
    with pytest.raises(ValueError, match="no multiple of accumulate"):
        dataclasses.replace(settings, accumulate=3)


def test_the_penaltys_weight_rises_in_the_last_share_of_the_steps():
    settings = dataclasses.replace(SETTINGS, penalty=1.0, ranges=(("exp", (-1.0, 0.0)),))
    assert penalty_factors(settings, 8).tolist() == [1.0] * 8
    last = dataclasses.replace(settings, penalty_last=0.5)
    assert penalty_factors(last, 8).tolist() == [0, 0, 0, 0, 0, 0.5, 1, 1]
    with pytest.raises(ParameterError, match="no site layer5"):
        wrong = dataclasses.replace(settings, ranges=(("layer5.attention.exp", (-1.0, 0.0)),))
        finetune(CONFIG, start(), task(), wrong)


def test_the_range_penalty_draws_the_model_into_its_ranges():
    free = dataclasses.replace(SETTINGS, method="full", epochs=3)
    held = dataclasses.replace(free, penalty=3.0, ranges=(("tanh", (-0.5, 0.5)),))
    reach = {}
    for name, settings in (("free", free), ("held", held)):
        last = finetune(CONFIG, start(), task(), settings).history[-1]
        low, high = (last[f"range/pooler.tanh/{end}"] for end in ("low", "high"))
        reach[name] = max(-low, high)
    assert reach["held"] < 0.8 * reach["free"]


def test_checkpoints_within_an_epoch_are_gone_on_from(tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=1, save_seconds=0.0)
    whole_run = finetune(CONFIG, start(), task(), settings)

    class Killed(Exception):
        pass

    calls = iter(range(100))

    def kill() -> bool:
        if next(calls) == 5:
            raise Killed
        return False

    with pytest.raises(Killed):
        finetune(CONFIG, start(), task(), settings, stop=kill, checkpoints=tmp_path)
    with Checkpoints(tmp_path) as store:
        assert store.latest == 5
    again = finetune(CONFIG, start(), task(), settings, checkpoints=tmp_path)
    for a, b in zip(*map(jax.tree.leaves, (whole_run.params, again.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_encrypted_trainings_figures_name_the_sites_and_what_the_step_met():
    reported: list[dict[str, float]] = []
    done = finetune(
        CONFIG,
        start(),
        task(),
        encrypted_settings(epochs=1),
        report=lambda progress: reported.append(progress.figures),
    )
    last = done.history[-1]
    low, high = (last[f"range/optimizer.inv_sqrt/{end}"] for end in ("low", "high"))
    assert 0.0 < low <= high < 1.0
    assert last["range/loss.inv/low"] >= 1.9 and "range/layer0.attention.exp/low" in last
    assert {name for name, _ in done.training.entries} == {
        "loss.exp",
        "loss.inv",
        "optimizer.inv_sqrt",
    }
    assert all("outside" in figures for figures in reported)
