"""Training: batch order, a synthetic task, the recipe with polynomials, resuming to the bit."""

import dataclasses
import warnings

import jax
import numpy as np
import optax
import pytest

from hesim.certify import certify
from hesim.params import CKKSParams
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch, batch_rows, batches_of, shuffled
from models.encrypted.forward import forward_circuit, simulated_forward
from models.errors import CheckpointError, TrainingError
from models.nn.encoder import Model
from models.recipes.classify import Recipe, train_classifier
from models.sites.sites import function_of, site_names
from models.train.classifier import Regularisation, make_step
from models.train.evaluate import make_evaluate
from models.train.loop import Progress, run_steps
from models.train.step import initial_state

CONFIG = EncoderConfig(layers=1, hidden=16, heads=2, ffn=16, sequence=6, vocabulary=12, pooler=(8,))
RECIPE = Recipe(
    steps=160,
    polynomial_steps=40,
    batch=32,
    learning_rate=1e-2,
    dropout=0.0,
    word_dropout=0.0,
    range_rows=256,
    evaluate_every=40,
    save_every=40,
)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def synthetic(rows: int, seed: int) -> Batch:
    """Is there a token 3 or a token 4 more often? Ids 2.. are words, the first token is 1."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 12, (rows, 6)).astype(np.int32)
    labels = rng.integers(0, 2, rows).astype(np.int32)
    tokens[np.isin(tokens, (3, 4))] = 5
    place = rng.integers(1, 4, rows)
    tokens[np.arange(rows), place] = np.where(labels == 1, 3, 4)
    tokens[:, 0] = 1
    length = rng.integers(4, 7, rows)
    mask = (np.arange(6) < length[:, None]).astype(np.float32)
    return Batch(np.where(mask > 0, tokens, 0), mask, labels)


def test_an_epoch_meets_every_row_once():
    rows = np.concatenate([batch_rows(3, step, 10, 4) for step in range(5)])
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])
    assert list(batch_rows(3, 2, 10, 4)) == list(rows[8:12])


def test_evaluation_does_not_depend_on_the_batch_size():
    data, model = synthetic(13, 0), Model(CONFIG)
    params = model.init(jax.random.key(0))
    whole, parts = (make_evaluate(model, size)(params, data) for size in (13, 5))
    np.testing.assert_allclose(whole.logits, parts.logits, rtol=1e-5, atol=1e-6)
    assert whole.logits.shape == (13, 2)
    for name in site_names(CONFIG):
        np.testing.assert_allclose(whole.ranges[name], parts.ranges[name], rtol=1e-5)
    assert [n for _, n in batches_of(data, 5)] == [5, 5, 3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    reports: list[Progress] = []
    folder = tmp_path_factory.mktemp("run")
    result = train_classifier(
        CONFIG,
        synthetic(512, 0),
        synthetic(128, 1),
        RECIPE,
        report=reports.append,
        checkpoints=folder,
    )
    return result, reports


def test_twin_learns_the_synthetic_task(trained):
    result, reports = trained
    held_out = synthetic(256, 2)
    logits = make_evaluate(result.model)(result.params, held_out).logits
    assert metrics.score(logits, held_out.targets)["accuracy"] > 0.9
    assert [r.phase for r in reports] == ["exact"] * 3 + ["polynomial"]
    assert [r.step for r in reports] == [40, 80, 120, 160]
    assert len(result.sites.entries) == len(site_names(CONFIG))


def test_values_stay_in_the_fitted_ranges(trained):
    result, _ = trained
    for name, (low, high) in result.ranges_met.items():
        fitted = result.ranges_fitted[name]
        width = fitted[1] - fitted[0]
        assert fitted[0] - 0.1 * width <= low <= high <= fitted[1] + 0.1 * width, name


@pytest.mark.parametrize("stop", [60, 140])
def test_a_killed_run_ends_with_the_same_bits(trained, tmp_path, stop: int):
    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step > stop:
            raise Killed

    data = synthetic(512, 0), synthetic(128, 1)
    with pytest.raises(Killed):
        train_classifier(CONFIG, *data, RECIPE, report=kill, checkpoints=tmp_path)
    again: list[Progress] = []
    result = train_classifier(CONFIG, *data, RECIPE, report=again.append, checkpoints=tmp_path)
    assert 0 < len(again) < 4
    jax.tree.map(np.testing.assert_array_equal, result.params, trained[0].params)
    assert result.sites == trained[0].sites
    assert result.history == trained[0].history
    with pytest.raises(CheckpointError, match="another"):
        other = dataclasses.replace(RECIPE, seed=1)
        train_classifier(CONFIG, *data, other, checkpoints=tmp_path)


def test_range_penalty_narrows_what_is_met():
    data = synthetic(256, 0)
    optimizer = optax.adam(1e-2)
    met = []
    for weight in (0.0, 1.0):
        targets = tuple((n, (-0.5, 0.0)) for n in site_names(CONFIG) if function_of(n) == "exp")
        step = make_step(Model(CONFIG), optimizer, Regularisation(penalty=weight, ranges=targets))
        key = jax.random.key(0)
        state = initial_state(Model(CONFIG).init(key), optimizer, key)
        state = run_steps(step, state, shuffled(data, 32, 0), until=60)
        met.append(
            make_evaluate(Model(CONFIG))(state.params, data).ranges["layer0.attention.exp"][0]
        )
    assert met[1] > -0.7 > met[0]


def test_a_noisy_forward_is_used_and_is_reproducible():
    model = Model(CONFIG)
    calls = []

    def noisy(key, params, x, mask):
        calls.append(1)
        logits, values = model.forward_with_values(params, x, mask)
        return logits + 0.1 * jax.random.normal(key, logits.shape), values

    optimizer = optax.sgd(0.1)
    ends = []
    for forward in (noisy, noisy, None):
        step = make_step(model, optimizer, forward=forward)
        key = jax.random.key(0)
        state = initial_state(model.init(key), optimizer, key)
        state = run_steps(step, state, shuffled(synthetic(64, 0), 16, 0), until=3)
        ends.append(np.asarray(state.params["head"]["kernel"]))
    assert calls
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_a_loss_that_is_not_finite_stops_the_run():
    model, optimizer = Model(CONFIG), optax.sgd(float("nan"))
    key = jax.random.key(0)
    state = initial_state(model.init(key), optimizer, key)
    with pytest.raises(ValueError, match="step"):
        batches_of = shuffled(synthetic(64, 0), 16, 0)
        run_steps(make_step(model, optimizer), state, batches_of, until=5)


def test_noise_that_runs_away_stops_the_training_with_the_site_that_was_left():
    fit = dataclasses.replace(RECIPE.fit, ranges=(("tanh", (-1e-3, 1e-3)),))
    recipe = dataclasses.replace(RECIPE, steps=4, polynomial_steps=2, evaluate_every=2, fit=fit)

    def simulate(model):
        def forward(key, params, x, mask):
            logits, values = model.forward_with_values(params, x, mask)
            return logits + 1e30 * jax.random.normal(key, logits.shape) ** 9 * 1e30, values

        return forward

    rows = synthetic(64, 0)
    with pytest.raises(TrainingError, match=r"at step 3 \(.*leave their domain: .*tanh"):
        train_classifier(CONFIG, rows, rows, recipe, simulate=simulate)


def test_regression_is_learned():
    config = CONFIG.replace(classes=1)
    data, held_out = (
        b._replace(targets=b.targets.astype(np.float32))
        for b in (synthetic(512, 0), synthetic(128, 1))
    )
    recipe = dataclasses.replace(RECIPE, smoothing=0.0)
    result = train_classifier(config, data, held_out, recipe)
    assert result.history[-1]["pearson"] > 0.8


def test_recipe_refuses_polynomial_steps_only():
    with pytest.raises(ValueError, match="polynomial_steps"):
        Recipe(steps=10, polynomial_steps=10)


def test_training_sees_the_noise_of_the_circuit_that_runs(trained):
    """The schedule of four sentences, for a batch of two: another error than the guessed one's."""
    model, params = trained[0].model, trained[0].params
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ring = CKKSParams(10, 4, 25, 35, 45, security=None)
    circuit = forward_circuit(model, ring, 4)
    assert forward_circuit(model, ring, 4) is circuit
    data = synthetic(2, 5)
    x = model.embed(params, data.tokens)
    exact = np.asarray(model.encrypted_forward(params, x, data.mask))
    errors = []
    for chosen in (circuit, None):
        forward = jax.jit(simulated_forward(model, ring, circuit=chosen))
        keys = jax.random.split(jax.random.key(0), 40)
        logits = [np.asarray(forward(key, params, x, data.mask)[0]) for key in keys]
        errors.append(float(np.std(np.array(logits) - exact)))
    rows = np.concatenate([x, x])
    certified = certify(circuit, (params, rows, np.concatenate([data.mask] * 2)), keys=40)
    assert certified.outputs[0] is not None
    predicted = certified.outputs[0].std
    assert errors[0] == pytest.approx(predicted, rel=0.3)
    assert errors[0] != errors[1]
