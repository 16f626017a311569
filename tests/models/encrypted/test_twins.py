"""Polynomial twins of every architecture: traced, compiled, run on plain slots; composites at
sites; ranges left.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
import he_backend
import hesim
from hesim.errors import ParameterError
from hesim.params import InsecureParametersWarning
from models.config import EncoderConfig
from models.encrypted.update import training_sites
from models.errors import CheckpointError
from models.nn.encoder import Model
from models.objectives.losses import cross_entropy_polynomial
from models.sites.derivatives import CheapComposite, cheap
from models.sites.sites import (
    TRAINING_SITES,
    FitSettings,
    SiteRecorder,
    Sites,
    fit_ranges,
    function_of,
    join_ranges,
    met_ranges,
    prescaled,
    rescaled,
    site_names,
    targets_of,
)
from models.train.checkpoint import sites_from_json, sites_to_json
from models.train.optim import scale_by_adam_he
from models.train.ranges import check_ranges

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = EncoderConfig(
    layers=1, hidden=8, heads=2, ffn=8, sequence=4, vocabulary=9, pooler=(4,), norm_epsilon=1e-3
)
COMPOSITES = (
    ("exp", (("squarings", 5),)),
    ("relu", (("degrees", (5, 7)),)),
    ("inv_sqrt", (("degree", 3), ("steps", 1))),
    ("inv", (("degree", 3), ("steps", 1))),
)


@pytest.fixture(scope="module")
def ring() -> hesim.CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        return hesim.CKKSParams(
            log_n=11, levels=3, scale_bits=36, first_bits=46, special_bits=56, security=None
        )


def fitted(config: EncoderConfig, settings: FitSettings, seed: int = 0):
    """A twin fitted on what the exact model meets, its parameters, and inputs."""
    model = Model(config)
    params = model.init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    params = jax.tree.unflatten(
        tree, [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
    tokens = np.arange(2 * config.sequence).reshape(2, -1).astype(np.int32) % config.vocabulary
    mask = (np.arange(config.sequence) < np.array([4, 3])[:, None]).astype(np.float32)
    _, values = jax.jit(model.forward_with_values)(params, model.embed(params, tokens), mask)
    met = join_ranges([met_ranges(values, model.units())])
    return model.with_sites(fit_ranges(config, met, settings)), params, tokens, mask


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        (
            {
                "norm_order": "post",
                "biases": True,
                "positions": "learned",
                "token_types": 2,
                "activation": "gelu",
            },
            FitSettings(margin=0.5),
        ),
        (
            {"causal": True, "attention": "gaussian_normalised", "activation": "glu_silu"},
            FitSettings(margin=0.5),
        ),
        (
            {"attention": "power_softmax", "attention_power": 2, "activation": "relu"},
            FitSettings(margin=0.5, composites=COMPOSITES),
        ),
        ({"first_norm": True}, FitSettings(margin=0.5, composites=COMPOSITES, derivatives="cheap")),
    ],
)
def test_every_twin_is_traced_compiled_and_run_on_slots(ring, changes: dict, settings):
    twin, params, tokens, mask = fitted(TINY.replace(**changes), settings)
    x = np.asarray(twin.embed(params, tokens))
    program = hesim.trace(twin.encrypted_forward, params, x, mask, encrypted=(1,))
    report = he_backend.run(program, params, x, mask, params=ring, backend="slots")
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, mask))
        exact = np.asarray(jax.jit(twin.encrypted_forward)(*wide))
    np.testing.assert_allclose(np.asarray(report.outputs), exact, rtol=1e-5, atol=1e-6)


def test_composites_at_sites_come_close_to_the_exact_model():
    settings = FitSettings(
        margin=0.3,
        composites=(
            ("exp", (("squarings", 12),)),
            ("relu", (("tol", 1e-3),)),
            ("inv_sqrt", (("degree", 7), ("steps", 2))),
        ),
        degrees=(("tanh", 15),),
    )
    twin, params, tokens, mask = fitted(TINY, settings)
    exact = jax.jit(Model(TINY).predict)(params, tokens, mask)
    np.testing.assert_allclose(jax.jit(twin.predict)(params, tokens, mask), exact, atol=5e-3)
    again = Sites.from_json(twin.sites.to_json())
    assert again == twin.sites
    assert sites_from_json(sites_to_json(again)) == again
    with pytest.raises(CheckpointError, match=r"pooler\.tanh"):
        sites_to_json(Sites.of({"pooler.tanh": jnp.tanh}))


def test_the_units_of_composites_save_the_level_of_their_map():
    squaring = approx.composite("exp_squaring", (-20, 0), squarings=5)
    relu = approx.composite("relu", (-50, 50), degrees=(7, 7))
    sites = Sites.of({"layer0.attention.exp": squaring, "layer0.ffn.relu": relu})
    assert sites.unit("layer0.attention.exp") == 32.0
    assert sites.unit("layer0.ffn.relu") == pytest.approx(50.0)
    for name, function in sites.entries:
        assert rescaled(function, sites.unit(name)).depth == function.depth - 1


@pytest.mark.parametrize("kind", ["exp", "tanh", "inv_sqrt", "inv", "relu"])
def test_cheap_derivatives_are_near_the_true_ones(kind: str):
    domain = {"exp": (-4, 0), "tanh": (-2, 2), "relu": (-4, 4)}.get(kind, (0.5, 2))
    knobs: dict[str, Any] = {
        "exp": {"squarings": 12},
        "inv_sqrt": {"degree": 7, "steps": 2},
        "inv": {"degree": 7, "steps": 2},
        "relu": {"degrees": (15, 15)},
    }
    functions: list[Any] = [] if kind == "relu" else [approx.fit(kind, domain, degree=15)]
    if kind in knobs:
        name = "exp_squaring" if kind == "exp" else kind
        functions.append(approx.composite(name, domain, **knobs[kind]))
    x = jnp.linspace(*domain, 41)
    x = x[jnp.abs(x) > 0.3]
    true = {
        "exp": jnp.exp(x),
        "tanh": 1 - jnp.tanh(x) ** 2,
        "inv_sqrt": -0.5 * x**-1.5,
        "inv": -(x**-2.0),
        "relu": (x > 0) * 1.0,
    }[kind]
    for function in functions:
        ours = cheap(kind, function)
        np.testing.assert_array_equal(ours(x), function(x))
        for m in (1.0, 2.0):
            q = ours.rescaled(m)
            slope = jax.vmap(jax.grad(q))(x / m) / m
            np.testing.assert_allclose(slope, true, atol=2e-2)
        counts = [str(jax.make_jaxpr(jax.grad(f))(0.7)).count(" mul ") for f in (ours, function)]
        if isinstance(ours, CheapComposite):
            assert counts[0] < counts[1]
            assert Sites.from_json(Sites.of({"a.relu": ours}).to_json()).get("a.relu") == ours


@pytest.mark.parametrize("kind", ["inv_sqrt", "inv", "relu"])
def test_prescaled_is_the_function_on_a_multiple_of_the_range(kind: str):
    domain = (-1.0, 1.0) if kind == "relu" else (0.05, 1.0)
    knobs: dict[str, Any] = {"degrees": (15, 15)} if kind == "relu" else {"degree": 15, "steps": 2}
    exact = {"inv_sqrt": lambda x: x**-0.5, "inv": lambda x: 1 / x, "relu": lambda x: x * (x > 0)}
    for function in (
        approx.fit(kind, domain, degree=31),
        approx.composite(kind, domain, **knobs),
    ):
        wide = prescaled(kind, function, 300.0)
        x = np.linspace(300 * domain[0], 300 * domain[1], 999)
        gain = {"inv_sqrt": 300**-0.5, "inv": 1 / 300, "relu": 300.0}[kind]
        error = np.abs(wide(x) - exact[kind](x)).max()
        assert error <= 1.1 * gain * np.abs(function(x / 300) - exact[kind](x / 300)).max() + 1e-9
    with pytest.raises(ValueError, match="no pre-scale"):
        prescaled("tanh", approx.fit("tanh", (-1, 1), degree=3), 2.0)


def test_values_outside_their_range_are_reported_by_site_with_their_share():
    twin, params, tokens, mask = fitted(TINY, FitSettings(margin=0.5))
    report = check_ranges(twin, params, tokens, mask, size=1)
    assert report.outside == ()
    assert "stay within" in str(report)
    low, high = twin.sites.ranges()["pooler.tanh"]
    narrow = dict(twin.sites.entries)
    met = {site.name: site.met for site in report.sites}["pooler.tanh"]
    edge = max(map(abs, met)) * 0.999
    assert high > edge > low
    narrow["pooler.tanh"] = approx.fit("tanh", (-edge, edge), degree=7)
    left = check_ranges(twin.with_sites(Sites.of(narrow)), params, tokens, mask).outside
    assert [site.name for site in left] == ["pooler.tanh"]
    assert left[0].share == pytest.approx(1 / 8)
    assert "12.500%" in str(left[0])


def test_sites_of_training_are_recorded_and_may_be_polynomial():
    logits = jnp.asarray([[0.5, -1.0], [0.2, 0.4]])
    onehot = jnp.eye(2)

    def gradient(sites: Sites) -> tuple[jax.Array, dict[str, jax.Array]]:
        def loss(z: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            probe = SiteRecorder(sites)
            exp, inverse = probe.at("loss.exp"), probe.at("loss.inv")
            return cross_entropy_polynomial(z, onehot, exp, inverse), probe.values

        return jax.grad(loss, has_aux=True)(logits)

    exact, met = gradient(Sites())
    np.testing.assert_array_equal(met["loss.exp"], logits)
    np.testing.assert_allclose(met["loss.inv"], jnp.exp(logits).sum(-1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(exact, jax.nn.softmax(logits) - onehot, atol=1e-6)
    ranges = {"loss.exp": (-2.0, 2.0), "loss.inv": (0.4, 10.0), "optimizer.inv_sqrt": (0.01, 1.0)}
    settings = FitSettings(
        ranges=tuple(ranges.items()),
        degrees=(("exp", 15), ("inv", 31), ("inv_sqrt", 31)),
        composites=(("optimizer.inv_sqrt", (("degree", 15), ("steps", 2))),),
    )
    sites = fit_ranges(TINY, {}, settings, TRAINING_SITES)
    assert sites.ranges() == ranges
    np.testing.assert_allclose(gradient(sites)[0], exact, atol=1e-3)
    assert sites.norm_half_width() is None

    probe = SiteRecorder(sites)
    optimizer = scale_by_adam_he(eps=0.04, inv_sqrt=probe.at("optimizer.inv_sqrt"))
    grads = {"a": jnp.ones((2, 3)) * 0.3, "b": jnp.ones(4) * 0.5}
    steps, _ = optimizer.update(grads, optimizer.init(grads))
    assert probe.values["optimizer.inv_sqrt"].shape == (10,)
    expected = jax.tree.map(lambda g: g / jnp.sqrt(g * g + 0.04), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), steps, expected)


def test_settings_by_site_and_what_they_refuse():
    settings = FitSettings(degrees=(("exp", 3), ("layer1.attention.exp", 9)))
    assert [settings.degree(f"layer{i}.attention.exp") for i in (0, 1)] == [3, 9]
    assert math.isinf(approx.Polynomial((1.0,)).max_error)
    with pytest.raises(ValueError, match="no degree"):
        settings.degree("pooler.tanh")
    with pytest.raises(ValueError, match="derivatives"):
        FitSettings(derivatives="free")
    with pytest.raises(ValueError, match="no site layer7"):
        fit_ranges(TINY, {}, settings, ["layer7.attention.exp"])
    met = dict.fromkeys(site_names(TINY), (-1.0, 0.0))
    with pytest.raises(ParameterError, match="no site layer9"):
        fit_ranges(TINY, met, FitSettings(degrees=(("layer9.attention.exp", 3), ("exp", 3))))
    for wrong in (("expp", 3), ("loss.expp", 3)):
        with pytest.raises(ParameterError, match="neither a site nor a function"):
            FitSettings(degrees=(wrong,))
    with pytest.raises(ParameterError, match="low and a high"):
        FitSettings(ranges=(("exp", (0.0, -1.0)),))


def test_targets_are_of_sites_or_of_all_that_a_function_has():
    table = (("exp", (-6.0, 0.0)), ("layer0.attention.exp", (-3.0, 0.0)), ("silu", (-1.0, 1.0)))
    found = targets_of(TINY, table)
    assert dict(found)["layer0.attention.exp"] == (-3.0, 0.0)
    others = [pair for name, pair in found if name != "layer0.attention.exp"]
    assert others == [(-6.0, 0.0)] * (TINY.layers - 1)
    with pytest.raises(ParameterError, match="no site layer8"):
        targets_of(TINY, [("layer8.attention.exp", (-1.0, 0.0))])


def test_a_step_of_training_takes_its_own_entries_and_not_those_of_the_models_functions():
    fit = FitSettings(
        degrees=(("exp", 3), ("loss.exp", 9)),
        ranges=(("exp", (-40.0, 0.0)), ("loss.exp", (-2.0, 2.0))),
        composites=(("optimizer.inv_sqrt", (("degree", 15), ("steps", 2))),),
    )
    sites = training_sites(3, fit)
    assert sites.ranges()["loss.exp"] == (-2.0, 2.0)
    found = dict(sites.entries)
    assert found["loss.exp"].degree == 9 and found["loss.inv"].degree == 31
    low, high = sites.ranges()["loss.inv"]
    assert low < 3 and high > 3 * math.cosh(2.0)
    assert dict(found["optimizer.inv_sqrt"].knobs) == {"degree": 15, "steps": 2}
    assert [name for name, _ in training_sites(1).entries] == ["optimizer.inv_sqrt"]
    assert function_of("loss.inv") == "inv"
