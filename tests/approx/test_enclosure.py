"""Certificates of composites: tight, above exact evaluation, and checked again."""

import dataclasses

import numpy as np
import pytest

import approx
from approx import enclosure

CASES = [
    ("inv", (1e-2, 1), {"degree": 15, "steps": 1}),
    ("inv", (-4, -0.05), {"degree": 7, "steps": 3}),
    ("inv_sqrt", (1e-2, 1), {"degree": 15, "steps": 1}),
    ("exp_squaring", (-64, 0), {"degree": 7, "squarings": 4}),
    ("exp_squaring", (-1024, 0), {"squarings": 10}),
    ("relu", (-1, 1), {"degrees": (3, 5)}),
    ("sign", [(-1, -0.1), (0.1, 1)], {"degrees": (5, 7)}),
]
FUNCTIONS = {
    "inv": lambda x: 1 / x,
    "inv_sqrt": lambda x: x**-0.5,
    "exp_squaring": np.exp,
    "relu": lambda x: np.maximum(x, 0),
    "sign": np.sign,
}


@pytest.mark.parametrize(("kind", "domain", "knobs"), CASES)
def test_certificates_of_composites_hold_and_are_tight(kind, domain, knobs):
    c = approx.composite(kind, domain, **knobs)
    x = np.concatenate([np.linspace(a, b, 100001) for a, b in c.intervals])
    errors = np.abs(c(x) - FUNCTIONS[kind](x))
    assert c.certified
    assert np.max(errors) <= c.max_error + 1e-13
    import flint

    with flint.ctx.workprec(400), enclosure.terms():
        model = enclosure.Model(c)
        exact = [abs(model.error(p, p)[0]) for p in x[np.argsort(errors)[-10:]].tolist()]
        largest = max(float(e.lower()) for e in exact)
    assert largest <= c.max_error <= 1.001 * largest
    assert enclosure.recheck(c)
    assert not enclosure.recheck(dataclasses.replace(c, max_error=0.999 * c.max_error))
    assert not enclosure.recheck(dataclasses.replace(c, certified=False))


def test_a_rescaled_composite_keeps_its_certificate():
    c = approx.composite("inv", (0.1, 2), degree=7, steps=1)
    assert enclosure.recheck(c.rescaled(2.5))


def test_a_model_encloses_the_error_on_its_cell():
    import flint

    c = approx.composite("inv", (1e-2, 1), degree=15, steps=1)
    with flint.ctx.workprec(300):
        model = enclosure.Model(c)
        with enclosure.terms():
            for low, high in ((0.01, 0.015), (0.02, 0.06), (0.3, 0.9)):
                error = flint.arb_poly(model.error(low, high))
                for t in (-1.0, -0.7, 0.0, 0.9, 1.0):
                    x = 0.5 * (low + high) + 0.5 * (high - low) * t
                    inside = (2 * flint.arb(x) - low - high) / (flint.arb(high) - low)
                    assert error(inside).overlaps(model.error(x, x)[0])


def test_squaring_over_a_huge_domain_is_found_and_certified():
    c = approx.composite("exp_squaring", (-1e9, 0), tol=1e-2)
    assert c.certified
    assert c.max_error <= 1e-2
    assert dict(c.knobs)["degree"] == 1
