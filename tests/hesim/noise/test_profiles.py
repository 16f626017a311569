"""Noise profiles are data that checks itself."""

import dataclasses

import pytest

import approx
from hesim.errors import ParameterError
from hesim.noise.profiles import PROFILES, profile


def test_profiles_are_found_by_name_and_pass_through():
    seal = profile("seal")
    assert seal.name == "seal"
    other = dataclasses.replace(seal, name="other", centred_digits=True)
    assert profile(other) is other
    assert all(name == p.name for name, p in PROFILES.items())


def test_unknown_names_and_kinds_are_refused():
    with pytest.raises(ParameterError, match="seal"):
        profile("nobody")
    with pytest.raises(ParameterError, match="public_over_special"):
        dataclasses.replace(profile("seal"), encryption="by hand")
    with pytest.raises(ParameterError):
        dataclasses.replace(profile("seal"), digit_primes=0)


def test_levels_of_polynomials_are_data():
    seal, openfhe = profile("seal"), profile("openfhe")
    assert [seal.polynomial_depth(d) for d in (7, 8, 31, 63)] == [4, 5, 6, 7]
    assert [openfhe.polynomial_depth(d) for d in (5, 13, 14, 59, 2031)] == [4, 5, 6, 7, 12]
    assert openfhe.polynomial_depth(59, affine=False) == seal.polynomial_depth(59, affine=False)
    with pytest.raises(ParameterError, match="2031"):
        openfhe.polynomial_depth(2032)
    with pytest.raises(ParameterError, match="ascend"):
        dataclasses.replace(seal, polynomial_levels=((9, 4), (5, 3)))


@pytest.mark.parametrize("degree", [7, 15, 31, 63])
def test_our_own_polynomials_take_the_levels_of_the_seal_profile(degree):
    gelu = approx.fit("gelu", (-4.0, 4.0), degree=degree)
    assert gelu.depth == profile("seal").polynomial_depth(gelu.degree)
