"""`calibrate`: ranges met, polynomial domains, and overflow."""

import jax.numpy as jnp
import numpy as np
import pytest

import approx
import hesim
from hesim.calibrate import Calibration, Observed, ValueOverflowError

GELU = approx.fit("gelu", (-4.0, 4.0), degree=5)
PARAMS = hesim.CKKSParams(14, 6, 40, 50, 60)


def fn(x, w):
    return GELU(x @ w) * 0.5 + x


def batches(count=3, size=1.0):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 8)).astype(np.float32) / 3
    return [(size * rng.normal(size=(16, 8)).astype(np.float32), w) for _ in range(count)]


def calibrated(data):
    program = hesim.trace(fn, *data[0])
    return program, hesim.calibrate(program, data)


def test_ranges_are_those_of_all_batches():
    data = batches()
    program, found = calibrated(data)
    assert [op.name for op in found.ops] == [e.name for e in program.ops]
    products = np.stack([x.astype(np.float64) @ w.astype(np.float64) for x, w in data])
    first = found.ops[0]
    assert (first.low, first.high) == pytest.approx((products.min(), products.max()), rel=1e-12)
    assert first.rms == pytest.approx(np.sqrt(np.mean(products**2)), rel=1e-12)
    assert found.inputs[0].high == max(float(x.max()) for x, _ in data)
    assert found.batches == 3


def test_polynomials_are_held_against_their_domains():
    data = batches(size=4.0)
    _, found = calibrated(data)
    (poly,) = found.polynomials
    fed = np.stack([x @ w for x, w in data])
    assert poly.domain == (-4.0, 4.0)
    assert poly.met == pytest.approx((fed.min(), fed.max()), rel=1e-5)
    assert poly.outside == pytest.approx(np.mean(np.abs(fed) > 4.0))
    assert f"{poly.outside:.2%}" in found.table()
    ((low, high),) = found.domains(margin=0.0)
    _, refitted = calibrated_with(approx.fit("gelu", (low, high), degree=5), data)
    assert refitted.polynomials[0].outside == 0.0


def calibrated_with(poly, data):
    program = hesim.trace(lambda x, w: poly(x @ w), *data[0])
    return program, hesim.calibrate(program, data)


def test_json_round_trip(tmp_path):
    program, found = calibrated(batches())
    found.save(tmp_path / "ranges.json")
    again = Calibration.load(tmp_path / "ranges.json", program)
    assert again == found
    assert again.overflow(PARAMS) == found.overflow(PARAMS)
    with pytest.raises(ValueError, match="circuit"):
        Calibration.load(tmp_path / "ranges.json").overflow(PARAMS)


def test_overflow_is_found_where_an_encrypted_run_would_wrap():
    _, found = calibrated(batches())
    found.check(PARAMS)
    assert max(entry.probability for entry in found.overflow(PARAMS)) < 1e-9
    data = [(4000.0 * x, w) for x, w in batches()]
    program = hesim.trace(lambda x, w: x @ w, *data[0])
    short = hesim.CKKSParams(13, 1, 40, 50, 60)
    with pytest.raises(ValueOverflowError, match="level 0.*first_bits"):
        hesim.calibrate(program, data).check(short)


def test_contents_of_ciphertexts_are_values_without_gains():
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    program = hesim.trace(lambda x: x * 1e6, x)
    found = hesim.calibrate(program, [(x,)])
    params = hesim.CKKSParams(13, 1, 40, 50, 60)
    assert found.ops[0].largest == pytest.approx(1e6)
    found.check(params)
    circuit = hesim.compile(program, params)
    (entry,) = found.overflow(params, circuit)
    assert entry.largest == pytest.approx(1.0)
    found.check(params, circuit)


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_tail_probabilities_are_of_the_right_size(draw):
    rng = np.random.default_rng(1)
    sample = np.abs(getattr(rng, draw)(size=200_000))
    q99 = np.quantile(sample, 0.99)
    above = sample[sample > q99]
    seen = Observed("", "", 0.0, q99, 1.0, float(q99), float(np.mean(above - q99)))
    bound = np.quantile(sample, 0.9995)
    expected = 0.0005
    assert expected / 3 < seen.tail(float(bound)) < 10 * expected
    assert seen.tail(0.9 * seen.largest) == 1.0


def test_bad_data_is_named():
    program, _ = calibrated(batches())
    with pytest.raises(ValueError, match="at least one"):
        hesim.calibrate(program, [])
    x, w = batches()[0]
    with pytest.raises(ValueError, match="NaN"):
        hesim.calibrate(program, [(x * np.nan, w)])


def test_the_figure_shows_every_polynomial(tmp_path):
    _, found = calibrated(batches(size=4.0))
    figure = found.plot(tmp_path / "ranges.png")
    assert (tmp_path / "ranges.png").stat().st_size > 1000
    (axes,) = figure.axes
    assert len(axes.get_yticks()) == len(found.polynomials)


def test_integer_inputs_and_second_results_are_counted():
    program = hesim.trace(lambda x: jnp.split(x * x, 2), np.arange(4.0, dtype=np.float32))
    found = hesim.calibrate(program, [(np.arange(4.0, dtype=np.float32),)])
    assert found.ops[-1].high == 9.0


def test_ranges_of_named_values_are_targets_of_the_range_penalty():
    from models.objectives.losses import range_penalty

    def recorded(x, w):
        met = x @ w
        return GELU(met), {"gelu": met, "rows": -x}

    data = batches()
    program = hesim.trace(recorded, *data[0])
    found = hesim.calibrate(program, data)
    units = {"gelu": 2.0}
    targets = found.targets(units)
    products = np.stack([x.astype(np.float64) @ w.astype(np.float64) for x, w in data])
    assert targets["gelu"] == pytest.approx((2 * products.min(), 2 * products.max()), rel=1e-9)
    assert targets["rows"] == pytest.approx((-found.inputs[0].high, -found.inputs[0].low))
    low, high = found.targets(margin=0.25)["gelu"]
    assert high - low == pytest.approx(1.5 * np.ptp(products), rel=1e-9)
    assert Calibration.from_json(found.to_json()).targets(units) == targets
    unit = {"gelu": 2.0, "rows": 1.0}
    for stretch, outside in ((0.999, False), (1.3, True)):
        values = {"gelu": jnp.asarray(stretch * products, jnp.float32)}
        assert (float(range_penalty(values, unit, targets)) > 0) == outside
    with pytest.raises(ValueError, match="in one dictionary"):
        calibrated(data)[1].targets()


def test_values_in_the_gap_of_a_union_are_outside_the_domain():
    inv = approx.fit("inv", [(-1.0, -0.25), (0.25, 1.0)], degree=7)
    x = np.array([-0.5, 0.0, 0.02, 0.25, 1.0, 1.5])
    found = hesim.calibrate(hesim.trace(lambda x: inv(x), x), [(x,), (x,)])
    (poly,) = found.polynomials
    assert poly.outside == pytest.approx(0.5)
    assert poly.domain == (-1.0, 1.0) and poly.intervals == ((-1.0, -0.25), (0.25, 1.0))
    assert "[-1, -0.25] | [0.25, 1]" in found.table()
    again = Calibration.from_json(found.to_json())
    assert again.polynomials == found.polynomials
    assert len(found.plot().axes[0].lines) == 3  # two intervals, and what was met


def test_polynomials_of_public_values_are_held_against_their_domains():
    sigmoid = approx.fit("sigmoid", (-2.0, 2.0), degree=3)
    x, w = np.ones((3,), np.float32), np.array([1.0, 2.0, 5.0], np.float32)
    program = hesim.trace(lambda x, w: x * sigmoid(w) + GELU(x), x, w, encrypted=(0,))
    found = hesim.calibrate(program, [(x, w), (x, 0 * w)])
    (public,) = found.publics
    assert public.outside == pytest.approx(1 / 6)
    assert public.met == (0.0, 5.0) and "test_calibrate.py" in public.source
    assert len(found.polynomials) == 1 and found.polynomials[0].outside == 0.0
    assert "polynomial (public)" in found.table()
    assert Calibration.from_json(found.to_json()).publics == found.publics
