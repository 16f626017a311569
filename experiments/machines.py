"""What a command takes for the machine that it is for: whether it is there, ring, and refreshes.

Whose model it is says which ring it was trained for, SEAL's as a rule. A machine that bootstraps
wants a chain that holds a bootstrap, and keys that are switched in digits.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hesim
from experiments.errors import ExperimentError
from experiments.training.twin import read_given
from he_backend.errors import BackendError
from he_backend.machines.table import find
from hesim.circuit.refresher import KEY_HOLDER, Refresher
from hesim.errors import ParameterError
from hesim.params import CKKSParams, InsecureParametersWarning
from models.encrypted.settings import EncryptionSettings

__all__ = ["BOOTSTRAPPING", "Suited", "based", "bootstrap_of", "missing", "need", "suited"]

BOOTSTRAPPING = CKKSParams(16, 9, 59, 60, 60, digits=2)
"""The ring of a machine that bootstraps, at 128 bits: as many levels as a bootstrap, which works on
13 of its own above them, leaves room for.
"""


@dataclasses.dataclass(frozen=True)
class Suited:
    """What a run is planned for.

    Attributes:
      how: ring, noise profile and polynomials.
      refresher: who refreshes: the key holder, or a bootstrap.
    """

    how: EncryptionSettings
    refresher: Refresher = KEY_HOLDER


def need(backend: str) -> None:
    """BackendError if the library of a machine is not there, before anything is done for it."""
    find(backend).python()


def missing(backend: str) -> str | None:
    """Why the library of a machine is not there, as text; None if it is."""
    try:
        need(backend)
    except BackendError as error:
        return str(error)
    return None


def based(how: EncryptionSettings, backend: str) -> EncryptionSettings:
    """`how` on the ring that is usual for a machine, if the model's own is none for it."""
    if find(backend).digits is None or how.ckks.digits is not None:
        return how
    return dataclasses.replace(how, ckks=BOOTSTRAPPING)


def suited(
    how: EncryptionSettings,
    backend: str,
    bootstrap: Mapping[str, Any] | None = None,
    *,
    insecure: int | None = None,
    key_holder: bool = False,
) -> Suited:
    """Ring and refresher for a machine.

    Args:
      how: ring and polynomials: `based` on the machine's, with what `config` says.
      backend: the machine's name.
      bootstrap: what a file's section `bootstrap` says, as `bootstrap_of` reads it.
      insecure: log2 of a ring degree: the same chain in a small ring, which protects nothing.
      key_holder: whether the key holder refreshes though the machine could bootstrap.

    Raises:
      ExperimentError: a ring that cannot be. ParameterError: there is no bootstrap for it.
    """
    row = find(backend)
    if insecure is not None:
        how = dataclasses.replace(how, ckks=_insecure(how.ckks, insecure))
    if row.encrypts:
        how = dataclasses.replace(how, profile=row.profile)
    bootstraps = row.bootstraps or (not row.encrypts and how.ckks.digits is not None)
    if key_holder or not bootstraps:
        return Suited(how)
    return Suited(how, hesim.openfhe_bootstrap(how.ckks, **(bootstrap or {})))


def bootstrap_of(config: str | Path | None) -> Mapping[str, Any]:
    """The section `bootstrap` of a TOML file, empty where there is none. Raises ExperimentError."""
    return read_given(config).get("bootstrap", {})


def _insecure(ring: CKKSParams, log_n: int) -> CKKSParams:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureParametersWarning)  # it was asked for as such
            return dataclasses.replace(ring, log_n=log_n, security=None)
    except ParameterError as error:
        raise ExperimentError(f"--insecure {log_n}: {error}") from error
