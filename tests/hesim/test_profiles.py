"""Noise profiles are data that checks itself."""

import dataclasses

import pytest

from hesim.errors import ParameterError
from hesim.profiles import PROFILES, profile


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
