"""The Circuit of a run: compiled if none is given, and held against what it is run with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from he_backend.errors import BackendError
from he_backend.machines.table import find
from he_backend.options import Options
from hesim.circuit.circuit import Circuit
from hesim.circuit.publics import bound
from hesim.errors import ParameterError
from hesim.params import CKKSParams
from hesim.program import Program
from hesim.progress import Reporter

__all__ = ["check_params", "check_refresher", "compiled", "of_program"]


def compiled(
    program: Program, params: CKKSParams | None, asked: Mapping[str, Any], reporter: Reporter
) -> Circuit:
    """`hesim.compile` with what was `asked`; BackendError without params."""
    if params is None:
        raise BackendError("give params, or a circuit compiled with hesim.compile")
    import hesim

    return hesim.compile(program, params, **asked, progress=reporter)


def check_params(circuit: Circuit, params: CKKSParams | None) -> None:
    """BackendError if a Circuit was compiled for other parameters than those that are given."""
    if params is not None and params != circuit.params:
        raise BackendError("params differ from those that the circuit was compiled for")


def check_refresher(circuit: Circuit, options: Options) -> None:
    """Refuses a Circuit whose refreshes the machine cannot serve; plain vectors need none."""
    refresher = circuit.refresher
    encrypts = options.encrypts and not find(options.backend).bootstraps
    if encrypts and circuit.ledger.refreshes and not refresher.interactive:
        raise BackendError(
            f"the circuit was planned for refreshes by a {refresher.name}, and {options.backend} "
            "does not bootstrap: compile it with hesim.KEY_HOLDER, who refreshes in round trips "
            "(refresh_price='bootstrap' plans as few as a bootstrap would), or run it with "
            "backend='slots', or compile it with hesim.openfhe_bootstrap for backend='openfhe'"
        )


def of_program(program: Program, circuit: Circuit) -> Circuit:
    """A Circuit with its Program, also where it was loaded. BackendError if that is another one."""
    try:
        return bound(circuit, program)
    except ParameterError as error:
        raise BackendError(str(error)) from error
