"""`run`: a Program executed on a machine, its outputs decrypted, compared and reported."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import tree_util

from he_backend.errors import BackendError, LedgerMismatchError
from he_backend.local import run_local, twin_ranges
from he_backend.machines.slots import SlotsMachine
from he_backend.machines.table import DEFAULT_MACHINE, find
from he_backend.processes import session
from he_backend.processes.memory import peak_bytes
from he_backend.processes.messages import Progress
from he_backend.processes.tasks import plan
from he_backend.report import twin as exact_twin
from he_backend.report.compare import Vectors, op_records
from he_backend.report.phases import Phases
from he_backend.report.report import Report, Subject
from he_backend.room import with_room
from hesim.circuit.aims.aim import Aim
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.memory import run_bytes
from hesim.circuit.plain.execute import Spent
from hesim.params import CKKSParams
from hesim.program import Program, need_program
from hesim.progress import Reporter, reporting

if TYPE_CHECKING:
    from hesim.calibrate import Calibration

__all__ = ["run"]

_SIMULATED = 2
"""Keys under which a comparing run simulates values; errors are predicted under all of `keys`."""


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
      circuit: compiled already, of this very program.
      run_dir: where an interrupted run leaves its work and finds it again; default temporary.
      client_dir: the client's state, secret key included; default `run_dir` + ".client".
      workers, clients: processes that evaluate, and that hold the key.
      worker_deaths: how many workers may be killed before the run gives up.
      progress: True for a bar with the phases of the run, on the terminal, in the notebook or in
        the log; or a function that is called with a Progress on every finished task. What has
        methods `phase` and `at` (see `hesim.progress.Reporter`) is told of the phases before and
        after, too: compiling, the exact twin, the check for overflow, keys, prediction, comparison.
      ranges: calibrated range of slot values by ciphertext, checked by the client at refresh and
        decryption; those that the twin on plain vectors met, widened, by default.
      outside: "error" or "warn", when a polynomial is fed values outside its domain.
      keys: random keys for the prediction of a comparing run.
      sampled: ciphertexts of each operation, at most, that a comparing run decrypts.
      calibration: from `hesim.calibrate` on this program. Refuses parameters under which its values
        overflow, and treats values beyond its ranges, wider by a quarter, as `outside` says.

    Raises:
      ValueOverflowError: values met in calibration wrap around the modulus.
      DomainError, EncodeError, ValueRangeError: bad values, naming operation and source line.
      MissingRotationKey, BlobError, WorkerDied, RunFolderError: see `he_backend.errors`.
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
    encrypts = find(backend).encrypts
    if outside not in ("error", "warn"):
        raise BackendError(f"outside={outside!r} must be 'error' or 'warn'")
    _check_counts(workers=(workers, 1), clients=(clients, 1), worker_deaths=(worker_deaths, 0))
    _check_counts(keys=(keys, 1), sampled=(sampled, 0))
    with reporting(progress) as shown:
        reporter = Phases(shown)
        aim = None
        if circuit is None:
            asked = {"objective": objective, "interactive": interactive}
            asked |= {"refresh_price": refresh_price, "memory": memory}
            asked |= {"calibration": calibration}
            circuit = _compiled(program, params, asked, reporter)
            aim = Aim.of(program=program, **asked)
        _check_circuit(program, params, circuit)
        _check_refresher(circuit, backend, encrypts)
        reporter.phase("evaluating the exact twin")
        exact = exact_twin.evaluate(program, args, keep_ops=compare)
        _check_values(program, circuit, exact, calibration, outside)
        for message in exact.outside:
            warnings.warn(str(message), stacklevel=2)
        told = _told(progress, reporter)

        def in_the_clear(circuit: Circuit) -> _Outcome:
            reporter.phase("evaluating on plain vectors")
            steps = circuit.rotation_steps
            plain = find(backend).load().generate(circuit.params, steps, circuit.slots)
            return _in_the_clear(
                *(circuit, plain, exact.inputs, _operands(circuit, args)),
                *(_decrypted(circuit, sampled if compare else 0), ranges, told),
            )

        def checked(circuit: Circuit) -> dict[int, tuple[float, float]]:
            # A server cannot see a value wrap around; the twin on plain vectors can, beforehand.
            reporter.phase("checking for overflow on plain vectors")
            decrypt = _decrypted(circuit, sampled if compare else 0)
            operands = _operands(circuit, args)
            return _check_on_slots(circuit, exact.inputs, operands, decrypt, reporter)

        planned = program, circuit, aim, args, exact.inputs
        if not encrypts:
            circuit, outcome = with_room(*planned, in_the_clear, reporter.phase)
        else:
            circuit, found = with_room(*planned, checked, reporter.phase)
            outcome = _encrypted(
                circuit,
                exact.inputs,
                _operands(circuit, args),
                _decrypted(circuit, sampled if compare else 0),
                {**found, **(ranges or {})},
                (run_dir, client_dir),
                {
                    "workers": workers,
                    "clients": clients,
                    "worker_deaths": worker_deaths,
                    "progress": told,
                    "machine": backend,
                },
            )
        _check_ledger(circuit, outcome.spent)
        prediction = None
        if compare:
            reporter.phase(f"predicting the error under {keys} keys")
            among = outcome.vectors if sampled else None
            prediction = _predicted(program, circuit, args, keys, among)
            reporter.phase("comparing")
        found = program, circuit, args, exact, outcome, prediction
        return _report(*found, reporter.seconds, backend, compare)


def _check_values(
    program: Program,
    circuit: Circuit,
    exact: exact_twin.Exact,
    calibration: Calibration | None,
    outside: str,
) -> None:
    """Raises what is known to go wrong before anything runs: values outside of a polynomial's
    domain, unlike those of the calibration, or too large for the modulus. The first two are only
    noted in `exact.outside` if `outside` is "warn".
    """
    if exact.outside and outside == "error":
        raise exact.outside[0]
    if calibration is not None:
        calibration.check(circuit.params, circuit)
        exact.outside.extend(exact_twin.unlike(program, exact, calibration))
        if exact.outside and outside == "error":
            raise exact.outside[0]


def _report(
    program: Program,
    circuit: Circuit,
    args: Sequence[Any],
    exact: exact_twin.Exact,
    outcome: _Outcome,
    prediction: Any,
    phases: Callable[[], dict[str, float]],
    backend: str,
    compare: bool,
) -> Report:
    encrypts = find(backend).encrypts
    vectors = outcome.vectors if compare else None
    ops, overall = op_records(
        circuit, exact, vectors, prediction, outcome.spent, encrypted=encrypts
    )
    return Report(
        outputs=_outputs(program, circuit, outcome.vectors, exact.outputs),
        exact=exact.outputs,
        encrypted=encrypts,
        backend=backend,
        params=circuit.params,
        ledger=circuit.ledger,
        counts={name: outcome.spent.counts.get(name, 0) for name in circuit.ledger.counts()},
        seconds=outcome.key_seconds + outcome.seconds,
        key_seconds=outcome.key_seconds,
        phases=phases(),
        core_seconds=sum(outcome.spent.seconds.values()),
        peak_bytes=outcome.peak_bytes,
        ops=ops,
        overall=overall,
        compared=compare,
        outside=tuple(str(message) for message in exact.outside),
        tasks=outcome.tasks,
        skipped=outcome.skipped,
        replaced=outcome.replaced,
        imported_jax=outcome.imported_jax,
        subject=Subject.of(program, circuit),
        refresher=circuit.refresher,
        predicted_peak_bytes=outcome.predicted_peak_bytes,
        simulate=lambda: (prediction or _predicted(program, circuit, args, 1)).outputs,
    )


def _told(
    progress: bool | Callable[[Progress], None] | None, reporter: Reporter
) -> Callable[[Progress], None]:
    """What tasks are told to: the caller's function, and the phase that they belong to."""
    evaluating = False

    def told(p: Progress) -> None:
        nonlocal evaluating
        if callable(progress):
            progress(p)
        if not p.tasks_total:
            reporter.phase(p.op)
            return
        if not evaluating and p.processes:
            reporter.phase("evaluating encrypted")
            evaluating = True
        reporter.at(p.fraction, p.op, p.eta)

    return told


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BackendError(f"{name}={value!r} must be a whole number, at least {least}")


class _Outcome:
    """Decrypted vectors of a run and what it cost."""

    def __init__(self, vectors: Mapping[int, np.ndarray], spent: Spent, seconds: float):
        self.vectors = vectors
        self.spent = spent
        self.seconds = seconds
        self.key_seconds = 0.0
        self.peak_bytes = self.predicted_peak_bytes = 0
        self.tasks = self.skipped = self.replaced = 0
        self.imported_jax = False


def _check_refresher(circuit: Circuit, backend: str, encrypts: bool) -> None:
    """Refuses a Circuit whose refreshes the machine cannot serve; plain vectors need none."""
    refresher = circuit.refresher
    if encrypts and circuit.ledger.refreshes and not refresher.interactive:
        raise BackendError(
            f"the circuit was planned for refreshes by a {refresher.name}, and {backend} does not "
            "bootstrap: compile it with hesim.KEY_HOLDER, who refreshes in round trips "
            "(refresh_price='bootstrap' plans as few as a bootstrap would), or run it with "
            "backend='slots'"
        )


def _compiled(
    program: Program, params: CKKSParams | None, asked: dict[str, Any], reporter: Reporter
) -> Circuit:
    if params is None:
        raise BackendError("give params, or a circuit compiled with hesim.compile")
    import hesim

    return hesim.compile(program, params, **asked, progress=reporter)


def _check_circuit(program: Program, params: CKKSParams | None, circuit: Circuit) -> None:
    """BackendError if a Circuit is of another program, or of other parameters."""
    if circuit.publics is None or circuit.program is not program:
        raise BackendError(
            "the circuit was not compiled from this program object (a loaded Circuit carries no "
            "program); compile it with hesim.compile(program, params)"
        )
    if params is not None and params != circuit.params:
        raise BackendError("params differ from those that the circuit was compiled for")


def _operands(circuit: Circuit, args: Sequence[Any]) -> list[np.ndarray]:
    """The public operands, in the order of this Circuit."""
    assert circuit.program is not None
    return circuit.publics.evaluate(circuit.program.flatten(args))


def _decrypted(circuit: Circuit, sampled: int) -> list[int]:
    """Ciphertexts that the client decrypts: all outputs, and up to `sampled` of each operation."""
    found = {int(c) for tap in circuit.outputs if tap is not None for c in tap.ciphers}
    for tap in circuit.taps if sampled else ():
        places = np.linspace(0, len(tap.ciphers) - 1, min(sampled, len(tap.ciphers)))
        found.update(tap.ciphers[np.unique(places.astype(int))].tolist())
    return sorted(found)


def _in_the_clear(circuit, machine, inputs, operands, decrypt, ranges, progress) -> _Outcome:
    started = time.monotonic()

    def report(done: int, total: int) -> None:
        elapsed = time.monotonic() - started
        eta = elapsed * (total - done) / done
        progress(Progress(done, total, done, total, elapsed, eta))

    vectors, spent = run_local(
        circuit, machine, inputs, operands, decrypt, ranges=ranges, progress=report
    )
    outcome = _Outcome(vectors, spent, time.monotonic() - started)
    outcome.peak_bytes = peak_bytes()
    return outcome


def _check_on_slots(
    circuit: Circuit,
    inputs: Sequence[np.ndarray],
    operands: Sequence[np.ndarray],
    decrypt: Sequence[int],
    reporter: Reporter,
) -> dict[int, tuple[float, float]]:
    """Overflow anywhere raises; ranges of what the client will decrypt are returned, widened."""
    machine = SlotsMachine(circuit.params, circuit.slots, circuit.rotation_steps)
    found: dict[int, tuple[float, float]] = {}

    def note(c: int, vector: np.ndarray) -> None:
        found[c] = (float(vector.min()), float(vector.max()))

    run_local(
        circuit,
        machine,
        inputs,
        operands,
        decrypt,
        taken=note,
        keep=False,
        progress=lambda done, total: reporter.at(done / total),
    )
    return twin_ranges(found)


def _encrypted(circuit, inputs, operands, decrypt, ranges, where, options) -> _Outcome:
    with session.temporary_folders(*where) as folders:
        durable = where[0] is not None
        job = session.Job(
            circuit, decrypt, inputs, operands, folders, ranges, durable=durable, **options
        )
        result = session.execute(job)
        if where[0] is None:
            held = {c: result.vector(c, circuit.slots) for c in decrypt}
            vectors: Mapping[int, np.ndarray] = held
        else:
            vectors = Vectors(decrypt, lambda c: result.vector(c, circuit.slots))
    outcome = _Outcome(vectors, result.spent, result.seconds)
    outcome.key_seconds = result.key_seconds
    outcome.peak_bytes = result.peak_bytes
    processes = options["workers"], options["clients"]
    passing = plan(circuit, decrypt, job.task_seconds).most_bytes(circuit)
    predicted = run_bytes(circuit.params, circuit.ledger, *processes, passing)
    outcome.predicted_peak_bytes = predicted
    outcome.tasks, outcome.skipped = result.tasks, result.skipped
    outcome.replaced, outcome.imported_jax = result.replaced, result.imported_jax
    return outcome


def _check_ledger(circuit: Circuit, spent: Spent) -> None:
    wrong = {
        name: (expected, spent.counts.get(name, 0))
        for name, expected in circuit.ledger.counts().items()
        if spent.counts.get(name, 0) != expected
    }
    if wrong:
        listed = ", ".join(f"{name} {was} instead of {said}" for name, (said, was) in wrong.items())
        raise LedgerMismatchError(f"the run spent {listed}")


def _predicted(
    program: Program,
    circuit: Circuit,
    args: Sequence[Any],
    keys: int,
    among: Collection[int] | None = None,
) -> Any:
    """Errors under so many keys, of what was decrypted; values under the first few of them.

    Operations are simulated one by one: compiling a long program as a whole takes longer than the
    run itself.
    """
    from hesim.noise import placement
    from hesim.predict import predict

    placed = placement.of_circuit(program, circuit)
    shared = {"keys": keys, "schedule": placed, "jit": False}
    return predict(program, circuit.params, args, **shared, among=among, simulated=_SIMULATED)


def _outputs(
    program: Program, circuit: Circuit, vectors: Mapping[int, np.ndarray], exact: Any
) -> Any:
    """fn's result out of decrypted vectors; leaves that are public come from the exact one."""
    leaves = tree_util.tree_leaves(exact)
    read = [
        leaf if tap is None else tap.read(vectors)
        for tap, leaf in zip(circuit.outputs, leaves, strict=True)
    ]
    return tree_util.tree_unflatten(program.out_tree, read)
