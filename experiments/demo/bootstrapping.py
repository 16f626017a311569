"""The demo's first sentences once more: bootstrapped on OpenFHE, if it is there, by no key holder.

They run in a small ring, which protects nothing, with the chain of the ring that does: that one
takes minutes and 13 GB.
"""

from __future__ import annotations

import dataclasses

import numpy as np

import he_backend
from experiments import machines
from experiments.console import Display
from experiments.demo.settings import Settings
from experiments.demo.stages import Prepared
from experiments.planning import compile_forward, forward_arguments
from experiments.validation.bootstrapped import STAGE
from experiments.validation.encrypting import Forward, Shown, said_before
from experiments.validation.folder import RunFolder
from he_backend.machines.table import find
from hesim.errors import HesimError
from models.data.batches import select_rows
from models.encrypted.settings import EncryptionSettings
from models.recipes.classify import Trained

__all__ = ["bootstrap", "finished", "wanted"]

_MACHINE = "openfhe"
_LOG_N = 11
_KEYS = 8
"""Random keys under which errors are predicted."""


def wanted(settings: Settings) -> bool:
    """Whether a demo has this stage: what encrypts and does not bootstrap by itself."""
    row = find(settings.backend)
    return settings.bootstrapped > 0 and row.encrypts and not row.bootstraps


def finished(settings: Settings, folder: RunFolder) -> bool:
    """Whether nothing is left to do of it: it has run, or still cannot."""
    if not wanted(settings):
        return True
    if not folder.done(STAGE):
        return False
    return "reason" not in folder.figures(STAGE) or machines.missing(_MACHINE) is not None


def bootstrap(
    settings: Settings, data: Prepared, trained: Trained, folder: RunFolder, show: Display
) -> None:
    """Write the stage "bootstrapped": figures and logits, or why there are none."""
    reason = machines.missing(_MACHINE)
    if reason is not None:
        folder.save(STAGE, {"reason": reason})
        show.say(f"not run: {reason}")
        return
    try:
        _bootstrap(_planned(settings, data, trained), folder, show)
    except HesimError as error:  # of the demo itself everything is done
        folder.save(STAGE, {"reason": str(error)})
        show.warn(f"not bootstrapped: {error}")


def _bootstrap(forward: Forward, folder: RunFolder, show: Display) -> None:
    circuit, shown = forward.circuit, Shown()
    ring, ledger = circuit.params, circuit.ledger
    show.say(
        f"N = 2^{ring.log_n}, {ring.levels} levels, NO SECURITY: {ledger.refreshes} bootstraps, "
        f"{ledger.rotation_keys} rotation keys"
    )
    with (
        he_backend.session(
            circuit, backend=_MACHINE, compare=True, keys=_KEYS, outside="warn", progress=shown
        ) as session,
        show.bar("bootstrapped", 1.0) as update,
        said_before(show) as said,
    ):
        shown.on(update)
        report = session.run(*forward.arguments(0))
    for message in report.outside:
        if message not in said:
            show.warn(message)
    error = report.outputs - report.exact
    tap = circuit.outputs[0]
    assert tap is not None
    figures = {
        "log_n": ring.log_n,
        "levels": ring.levels,
        "security": ring.security,
        "refreshes": ledger.refreshes,
        "rounds": ledger.refresh_rounds,
        "seconds": report.evaluation_seconds,
        "key_seconds": report.key_seconds,
        "core_seconds": report.core_seconds,
        "peak_bytes": report.peak_bytes,
        "measured_std": float(np.sqrt(np.mean(error**2))),
        "predicted_std": report.ops[tap.op].predicted_std,
        "outside": list(report.outside),
        "verdict": report.verdict(),
    }
    folder.save(STAGE, figures, {"encrypted": report.outputs, "reference": report.exact})


def _planned(settings: Settings, data: Prepared, trained: Trained) -> Forward:
    count = min(settings.bootstrapped, settings.sentences)
    how = machines.based(dataclasses.replace(EncryptionSettings(), ckks=settings.ckks), _MACHINE)
    chosen = machines.suited(how, _MACHINE, insecure=_LOG_N)
    met = select_rows(data.train, np.arange(count))
    circuit = compile_forward(
        *(trained.model, chosen.how.ckks, count, "logits"),
        samples=[forward_arguments(trained.model, trained.params, met)],
        refresher=chosen.refresher,
    )
    sentences = select_rows(data.test, np.arange(count))
    profile = chosen.how.profile
    return Forward(circuit, trained.model, trained.params, sentences, count, profile=profile)
