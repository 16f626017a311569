"""Sites: names, units, ranges met, and the shared scale of the LayerNorm polynomials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import approx
from hesim.errors import ConstantValuesWarning, ParameterError
from models.config import EncoderConfig
from models.data.batches import Batch
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import twin_of
from models.nn.encoder import Model
from models.nn.layers import multiple
from models.sites.sites import (
    FitSettings,
    fit_ranges,
    function_of,
    join_ranges,
    met_ranges,
    norm_multiple,
    site_names,
    widen,
)

CONFIG = EncoderConfig(hidden=8, heads=2, ffn=8, sequence=5, vocabulary=13, pooler=(4,))


def ranges_of(low: float, high: float) -> dict[str, tuple[float, float]]:
    table = {"exp": (-5.0, 0.0), "relu": (-2.0, 3.0), "tanh": (-1.0, 2.0)}
    norms = iter([(low, high), (0.5, 1.5), (0.9, 4.0), (1.0, 3.0)])
    return {n: table.get(function_of(n)) or next(norms) for n in site_names(CONFIG)}


def test_forward_meets_exactly_the_named_sites():
    model = Model(CONFIG)
    params = model.init(jax.random.key(0))
    x = model.embed(params, jnp.ones((2, 5), jnp.int32))
    _, values = model.forward_with_values(params, x, jnp.ones((2, 5)))
    assert tuple(values) == site_names(CONFIG)


def test_values_mean_the_same_in_exact_model_and_twin():
    model = Model(CONFIG)
    params = model.init(jax.random.key(1))
    tokens = jnp.arange(10).reshape(2, 5)
    mask = jnp.ones((2, 5))
    degrees = tuple((f, 25) for f in ("exp", "relu", "inv_sqrt", "tanh"))

    def met(m: Model) -> dict[str, jax.Array]:
        _, values = m.forward_with_values(params, m.embed(params, tokens), mask)
        return met_ranges(values, m.units())

    exact = met(model)
    sites = fit_ranges(CONFIG, join_ranges([exact]), FitSettings(degrees=degrees, margin=0.5))
    twin = met(model.with_sites(sites))
    for name in site_names(CONFIG):
        np.testing.assert_allclose(exact[name], twin[name], rtol=0.05, atol=0.05)


def test_layernorm_domains_share_one_scale():
    sites = fit_ranges(CONFIG, ranges_of(0.7, 9.0), FitSettings(margin=0.0))
    norms = [n for n in site_names(CONFIG) if function_of(n) == "inv_sqrt"]
    widest = max(sites.half_width(n) or 0.0 for n in norms)
    for name in norms:
        low, high = sites.ranges()[name]
        wanted = ranges_of(0.7, 9.0)[name]
        assert low == pytest.approx(wanted[0])
        assert high >= wanted[1] - 1e-9
        ratio = widest / (sites.half_width(name) or 0.0)
        assert ratio == pytest.approx(norm_multiple(sites, name), rel=1e-9)
    assert max(norm_multiple(sites, n) for n in norms) > 1


def test_missing_range_is_named():
    ranges = ranges_of(0.5, 2.0)
    del ranges["pooler.tanh"]
    with pytest.raises(ValueError, match=r"pooler\.tanh"):
        fit_ranges(CONFIG, ranges)


def test_a_site_whose_range_no_polynomial_follows_is_named():
    ranges = ranges_of(0.5, 2.0) | {"final_norm.inv_sqrt": (4e-9, 1e6)}
    assert set(ranges) == set(site_names(CONFIG))
    with pytest.raises(approx.ApproxError, match=r"final_norm\.inv_sqrt .*range penalty"):
        fit_ranges(CONFIG, ranges)


def test_widening():
    assert widen("layer0.attention.exp", (-4.0, -0.5), 0.1) == pytest.approx((-4.4, 0.0))
    assert widen("a.inv_sqrt", (0.5, 2.0), 0.25) == pytest.approx((0.4, 2.5))
    assert widen("pooler.tanh", (-1.0, 2.0), 0.5) == pytest.approx((-3.0, 3.0))
    with pytest.raises(ValueError, match="variance"):
        widen("a.inv_sqrt", (0.0, 2.0), 0.1)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 64])
def test_multiple_is_made_of_additions(n: int):
    assert float(multiple(jnp.float32(1.5), n)) == 1.5 * n
    names = {e.primitive.name for e in jax.make_jaxpr(lambda x: multiple(x, n))(1.0).eqns}
    assert names <= {"add"}


def test_ranges_join():
    joined = join_ranges([{"a": (0.0, 1.0)}, {"a": (-1.0, 0.5), "b": (2.0, 3.0)}])
    assert joined == {"a": (-1.0, 1.0), "b": (2.0, 3.0)}


def test_ranges_that_are_none_are_named_by_their_site_and_not_lost_in_later_batches():
    met = ranges_of(0.7, 9.0)
    good = join_ranges([met, {"layer0.ffn.relu": (-3.0, 1.0)}])
    assert good["layer0.ffn.relu"] == (-3.0, 3.0)
    bad = join_ranges([met, {"layer0.ffn.relu": (-1.0, np.nan)}, met])
    with pytest.raises(ParameterError, match=r"layer0\.ffn\.relu met .*nan: .* is NaN or infinite"):
        fit_ranges(CONFIG, bad)
    with pytest.warns(ConstantValuesWarning, match=r"layer0\.ffn\.relu met 0 only"):
        fit_ranges(CONFIG, met | {"layer0.ffn.relu": (0.0, 0.0)})


def test_weights_that_are_no_numbers_are_named_before_ranges_are_measured():
    model = Model(CONFIG)
    params = model.init(jax.random.key(0))
    params["head"] = jax.tree.map(lambda leaf: leaf * jnp.nan, params["head"])
    rows = Batch(np.ones((4, 5), np.int32), np.ones((4, 5), np.int32), np.zeros(4, np.int32))
    with pytest.raises(ParameterError, match=r"weights are NaN or infinite: \['head'\]"):
        twin_of(model, params, rows, (5,), EncryptionSettings())
