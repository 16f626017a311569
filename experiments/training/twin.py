"""Options of a simulated encryption: the ring, and the polynomials of the twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import ExperimentError
from experiments.training.options import (
    Option,
    options_of,
    read_options,
    template,
    with_defaults,
)
from hesim.circuit.refresher import openfhe_bootstrap
from models.checks import check_range
from models.encrypted.settings import EncryptionSettings
from models.sites.sites import Range

__all__ = [
    "BOOTSTRAP",
    "RING",
    "TWIN",
    "as_encrypted_of",
    "default_ranges",
    "encryption_template",
    "read_encryption",
    "read_given",
    "ring_of",
    "said_ring",
]

_DEFAULT = EncryptionSettings()

_NONE = ("digits", "security")
"""Of the ring, what may be none, which a file says by 0."""

RING = (
    *options_of(
        _DEFAULT.ckks,
        "encrypted",
        {
            "log_n": "Binary logarithm of the ring dimension.",
            "levels": "Levels of a fresh ciphertext.",
            "scale_bits": "Bits of the scale.",
            "first_bits": "Bits of the first prime.",
            "special_bits": "Bits of the key-switching prime.",
        },
    ),
    Option(
        "encrypted",
        "digits",
        0,
        "Digits in which keys are switched, as OpenFHE does it; 0: a digit a prime, as SEAL does.",
    ),
    Option(
        "encrypted",
        "security",
        128,
        "Bits of security that are held against the ring; 0: none, for tests only.",
    ),
    *options_of(
        _DEFAULT,
        "encrypted",
        {
            "profile": "Whose noise is simulated: the name of a profile of hesim.noise.profiles.",
            "loss_scale": "Factor of the loss in an encrypted training step, which lifts the "
            "gradients above the noise.",
        },
    ),
)
"""Section `encrypted` of a file."""

_USUAL: Mapping[str, Any] = openfhe_bootstrap.__kwdefaults__ or {}

BOOTSTRAP = (
    Option(
        "bootstrap",
        "budget",
        _USUAL["budget"],
        "Levels of the two linear maps of OpenFHE's bootstrap, coefficients to slots and slots to "
        "coefficients: more are faster, and leave fewer.",
    ),
    Option(
        "bootstrap",
        "correction",
        _USUAL["correction"],
        "Binary logarithm of what values are divided by in it: larger ones bend values above 1 "
        "less, and are noisier.",
    ),
    Option(
        "bootstrap",
        "iterations",
        _USUAL["iterations"],
        "Bootstraps that one refresh consists of: 2 bootstraps the error of the first as well, in "
        "twice the seconds, and errs a million times less.",
    ),
)
"""Section `bootstrap` of a file, of a machine that bootstraps."""

_FUNCTIONS: Mapping[str, tuple[str, Range]] = {
    "exp": ("the Gaussian kernel's exponent", (-40.0, 0.0)),
    "inv": ("the mean of a row of scores, by which normalised kernels divide", (0.05, 2.0)),
    "inv_sqrt": ("the variances in LayerNorms", (0.3, 24.0)),
    "relu": ("ReLU's input", (-7.0, 7.0)),
    "gelu": ("GELU's input", (-14.0, 14.0)),
    "gelu_tanh": ("the input of GELU by tanh", (-14.0, 14.0)),
    "silu": ("SiLU's input", (-14.0, 14.0)),
    "softmax_exp": ("softmax's scores over 2^softmax_squarings", (-4.0, 4.0)),
    "softmax_inv": ("the sums that softmax divides by", (0.02, 16.0)),
    "tanh": ("the pooler's tanh", (-5.0, 5.0)),
    "loss_exp": ("logits less their mean in the loss's softmax", (-4.0, 4.0)),
}
_SITES = {"loss_exp": "loss.exp"}
"""Names of options that are not those of functions."""

_DEGREES = dict(_DEFAULT.fit.degrees) | {"loss_exp": 15, "loss_inv": 31}

TWIN = (
    Option(
        "twin",
        "margin",
        _DEFAULT.fit.margin,
        "How far beyond the ranges that the model meets the polynomials hold, as a share of a "
        "range's width, where none is given here.",
    ),
    Option("twin", "range_rows", _DEFAULT.range_rows, "Training rows on which they are measured."),
    *(
        Option("twin", name, example, f"Range of {what}, canonical.", optional=True)
        for name, (what, example) in _FUNCTIONS.items()
    ),
    *(
        Option("twin", f"{name}_degree", degree, f"Degree of the polynomial for {name}.")
        for name, degree in _DEGREES.items()
    ),
    Option(
        "twin",
        "exp_squarings",
        14,
        "The kernel's exponential as (1 + x / 2^k)^(2^k) with k = exp_squarings, as in the paper, "
        "in place of one polynomial; it holds on [-2^k, 0].",
        optional=True,
    ),
    Option(
        "twin",
        "softmax_squarings",
        _DEFAULT.softmax_squarings,
        "Of a model in the clear with softmax attention, as it runs encrypted: the softmax of the "
        "scores over two to this power is squared and normalised as many times.",
    ),
    Option(
        "twin",
        "relu_degrees",
        (15, 15, 27),
        "ReLU as x times a composition of polynomials of these degrees, as in the paper.",
        optional=True,
    ),
    Option(
        "twin",
        "inv_sqrt_newton",
        3,
        "1/sqrt by so many Newton steps from a polynomial of inv_sqrt_degree, as in the paper.",
        optional=True,
    ),
    Option(
        "twin",
        "root_tol",
        1e-3,
        "Largest error of AdamW-HE's 1/sqrt on [0.0005, 1], a seed with Newton steps.",
    ),
)
"""Section `twin` of a file."""


def as_encrypted_of(
    values: Mapping[str, Mapping[str, Any]], how: EncryptionSettings = _DEFAULT
) -> EncryptionSettings:
    """What the sections `encrypted` and `twin` of a file say, which `read_options` has read; where
    they give no range, those of `how`. ExperimentError names what is wrong.
    """
    ring, twin = values["encrypted"], values["twin"]
    given: dict[str, Range] = {}
    for name in _FUNCTIONS:
        if name in twin:
            bounds = twin[name]
            try:
                check_range(name, bounds)
            except ValueError as error:
                raise ExperimentError(f"twin: {error}") from error
            given[_SITES.get(name, name)] = (float(bounds[0]), float(bounds[1]))
    degrees = {
        **{name: twin[f"{name}_degree"] for name in dict(how.fit.degrees)},
        "loss.exp": twin["loss_exp_degree"],
        "loss.inv": twin["loss_inv_degree"],
    }
    if not 0 < twin["root_tol"] < 1:
        raise ExperimentError(f"twin: root_tol is {twin['root_tol']}, not between 0 and 1")
    if "relu_degrees" in twin and not twin["relu_degrees"]:
        raise ExperimentError("twin: relu_degrees is empty: give the degrees to compose")
    composites: dict[str, tuple[tuple[str, Any], ...]] = {
        "optimizer.inv_sqrt": (("tol", twin["root_tol"]),)
    }
    if "exp_squarings" in twin:
        composites["exp"] = (("squarings", twin["exp_squarings"]), ("degree", 1))
    if "relu_degrees" in twin:
        composites["relu"] = (("degrees", tuple(twin["relu_degrees"])),)
    if "inv_sqrt_newton" in twin:
        composites["inv_sqrt"] = (
            ("degree", twin["inv_sqrt_degree"]),
            ("steps", twin["inv_sqrt_newton"]),
        )
    try:
        fit = dataclasses.replace(
            how.fit,
            degrees=tuple(sorted(degrees.items())),
            composites=tuple(sorted(composites.items())),
            ranges=tuple(sorted((dict(how.fit.ranges) | given).items())),
            margin=twin["margin"],
        )
        known = {option.name: ring[option.name] for option in RING}
        chosen = {name: twin[name] for name in ("range_rows", "softmax_squarings")}
        return dataclasses.replace(ring_of(known, how), fit=fit, **chosen)
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def default_ranges() -> dict[str, Range]:
    """A canonical range for every function, of the size that models meet."""
    return {name: example for name, (_, example) in _FUNCTIONS.items()}


def read_encryption(path: str | Path | None, how: EncryptionSettings) -> EncryptionSettings:
    """`how` with what a file of the sections `encrypted` and `twin` says; `how` itself for None.
    ExperimentError names what is wrong.
    """
    if path is None:
        return how
    own = {"twin": {"margin": how.fit.margin}, "encrypted": said_ring(how)}
    options = (*with_defaults((*RING, *TWIN), own), *BOOTSTRAP)
    return as_encrypted_of(read_options(path, options), how)


def read_given(path: str | Path | None) -> dict[str, dict[str, Any]]:
    """What a file for `read_encryption` says itself, by section and option: no defaults."""
    return read_options(path, _all_optional())


def encryption_template() -> str:
    """A TOML file for `read_encryption` with every option at its default, explained."""
    return template(
        _all_optional(),
        "Ring, polynomials and bootstrap of an encrypted run. Every option may be left out: then "
        "the ring is the model's own, or, where OpenFHE bootstraps, the one that is secure for "
        "that, and the polynomials are those that the model was trained with.",
    )


def _all_optional() -> tuple[Option, ...]:
    return tuple(dataclasses.replace(o, optional=True) for o in (*RING, *TWIN, *BOOTSTRAP))


def said_ring(how: EncryptionSettings) -> dict[str, Any]:
    """Ring, profile and factor of the loss by the names of a file's section `encrypted`."""
    return {
        option.name: getattr(how if hasattr(how, option.name) else how.ckks, option.name) or 0
        for option in RING
    }


def ring_of(said: Mapping[str, Any], how: EncryptionSettings) -> EncryptionSettings:
    """`how` with the ring and the profile that `said_ring` noted of another."""
    primes = {name: said[name] for name in said if hasattr(how.ckks, name)}
    primes |= {name: primes[name] or None for name in _NONE if name in primes}
    others = {name: said[name] for name in said if name not in primes}
    return dataclasses.replace(how, ckks=dataclasses.replace(how.ckks, **primes), **others)
