"""`run`: a Program executed on a machine, its outputs decrypted, compared and reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from he_backend.circuits import check_params, compiled
from he_backend.clusters.cluster import Cluster
from he_backend.machines.table import DEFAULT_MACHINE
from he_backend.options import Asked, Options
from he_backend.processes.messages import Progress
from he_backend.report.phases import Phases
from he_backend.report.report import Report
from he_backend.sessions import Session
from hesim.circuit.aims.aim import Aim
from hesim.circuit.circuit import Circuit
from hesim.params import CKKSParams
from hesim.program import Program, need_program
from hesim.progress import reporting

if TYPE_CHECKING:
    from hesim.calibrate import Calibration

__all__ = ["run"]


def run(
    program: Program,
    *args: Any,
    params: CKKSParams | None = None,
    backend: str = DEFAULT_MACHINE,
    compare: bool = False,
    refresh_price: float | str | None = None,
    objective: str = "seconds",
    interactive: bool = True,
    memory: float | None = None,
    circuit: Circuit | None = None,
    run_dir: str | os.PathLike | None = None,
    client_dir: str | os.PathLike | None = None,
    workers: int = 2,
    clients: int = 2,
    worker_deaths: int = 3,
    progress: bool | Callable[[Progress], None] | None = None,
    ranges: Mapping[int, tuple[float, float]] | None = None,
    outside: str = "error",
    keys: int = 32,
    sampled: int = 32,
    calibration: Calibration | None = None,
    cluster: Any = None,
) -> Report:
    """Run a Program on a machine and report.

    Before anything is encrypted, a twin on plain vectors checks that no ciphertext overflows. Where
    a level does not hold its values and no `circuit` is given, the plan is made anew at levels that
    do.

    Args:
      program: from `hesim.trace`.
      args: its arguments; the encrypted ones are encrypted by the client process.
      params: ring and primes; may be left out if `circuit` is given.
      backend: "pyfhel" (encrypted, client and server processes), "slots" (plain vectors), or
        another machine of `he_backend.machines.table`.
      compare: decrypt every operation's result and hold it against the exact and the predicted one.
      refresh_price, objective, interactive, memory: as for `hesim.compile` (in seconds, and in
        bytes), if no `circuit` is given.
      circuit: compiled already, of this program or another trace of the same function; may have
        been saved and loaded.
      run_dir: where an interrupted run leaves its work and finds it again; default temporary.
      client_dir: the client's state, secret key included; default `run_dir` + ".client".
      workers, clients: processes that evaluate, and that hold the key.
      worker_deaths: how many workers may be killed before the run gives up.
      progress: True for a bar with the phases of the run, on the terminal, in the notebook or in
        the log; or a function that is called with a Progress on every finished task; where
        they are hundreds, some ten times a second and after the last one. What has
        methods `phase` and `at` (see `hesim.progress.Reporter`) is told of the phases before and
        after, too: compiling, the exact twin, the check for overflow, keys, prediction, comparison.
      ranges: calibrated range of slot values by ciphertext, checked by the client at refresh and
        decryption; those that the twin on plain vectors met, widened, by default.
      outside: "error" or "warn", when a polynomial is fed values outside its domain.
      keys: random keys for the prediction of a comparing run.
      sampled: ciphertexts of each operation, at most, that a comparing run decrypts.
      calibration: from `hesim.calibrate` on this program. Refuses parameters under which its values
        overflow, and treats values beyond its ranges, wider by a quarter, as `outside` says.
      cluster: of Dask, whose workers evaluate instead of `workers` processes of this host: the
        address of its scheduler, "tcp://HOST:PORT" or "tls://HOST:PORT", a `distributed.Client`, or
        a cluster such as `distributed.LocalCluster`. See docs/clusters.md.

    Raises:
      ValueOverflowError: values met in calibration wrap around the modulus.
      DomainError, EncodeError, ValueRangeError: bad values, naming operation and source line.
      MissingRotationKey, BlobError, WorkerDied, RunFolderError, ClusterError: see
        `he_backend.errors`.
      LedgerMismatchError: the run spent something else than the Circuit's ledger says.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> x = np.array([0.5, -0.25])
      >>> program = hesim.trace(lambda x: x * x, x)
      >>> report = he_backend.run(program, x, params=params, backend="slots")  # "pyfhel" encrypts
      >>> report.outputs, report.encrypted
      (array([0.25  , 0.0625]), False)
    """
    need_program(program, "run")
    options = Options(
        backend=backend,
        compare=compare,
        workers=workers,
        clients=clients,
        worker_deaths=worker_deaths,
        progress=progress,
        ranges=ranges,
        outside=outside,
        keys=keys,
        sampled=sampled,
        calibration=calibration,
        cluster=Cluster.of(cluster),
    )
    with reporting(progress) as shown:
        reporter, aim = Phases(shown), None
        if circuit is None:
            asked = {"objective": objective, "interactive": interactive, "memory": memory}
            asked |= {"refresh_price": refresh_price, "calibration": calibration}
            circuit = compiled(program, params, asked, reporter)
            aim = Aim.of(program=program, **asked)
        check_params(circuit, params)
        with Session(program, circuit, options, run_dir, client_dir, several=False) as session:
            return session.report(args, Asked("0", compare), reporter, aim)
