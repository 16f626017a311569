"""`session`: batch after batch of one Program under one set of keys, each with its report."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import tree_util

from he_backend import evaluating
from he_backend.carrying import LeftHere, filled, leaves_of, public_results, with_carried
from he_backend.circuits import check_params, check_refresher, compiled, of_program
from he_backend.clusters.cluster import Cluster
from he_backend.errors import BackendError, ValueRangeError
from he_backend.evaluating import Outcome
from he_backend.machines.table import DEFAULT_MACHINE, find
from he_backend.options import Asked, Options
from he_backend.processes import session as processes
from he_backend.processes.folders import Folders
from he_backend.processes.messages import Progress
from he_backend.processes.tasks import plan
from he_backend.report import twin
from he_backend.report.batch import Given, Reports
from he_backend.report.compare import Vectors
from he_backend.report.phases import Phases
from he_backend.report.report import Report
from he_backend.room import with_room
from he_backend.steps import Batches, States, Step, Training
from he_backend.telling import Told
from hesim.bundles.bundle import Bundle
from hesim.circuit.aims.aim import Aim
from hesim.circuit.circuit import Circuit
from hesim.circuit.costs.memory import run_bytes, staying_bytes
from hesim.circuit.sizes import available
from hesim.params import CKKSParams
from hesim.program import Program, need_program
from hesim.progress import reporting

if TYPE_CHECKING:
    from hesim.calibrate import Calibration

__all__ = ["Session", "session"]


class Session:
    """Runs batches of one Program; a context manager, from `he_backend.session`.

    Args:
      program, circuit: what is run. options: how; see `session` for them and for the folders.
      run_dir, client_dir: where keys and batches are left and found; temporary by default.
      several: whether more batches than one are to be expected, so that it pays to encode all
        plaintexts that have room before the first one.

    Attributes:
      program, circuit, options: as above.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
      >>> with he_backend.session(circuit, backend="slots") as session:
      ...     session.run(np.array([0.5, 2.0])).outputs
      array([0.25, 4.  ])
    """

    def __init__(
        self,
        program: Program,
        circuit: Circuit,
        options: Options,
        run_dir: str | os.PathLike | None = None,
        client_dir: str | os.PathLike | None = None,
        *,
        several: bool = True,
    ):
        check_refresher(circuit, options)
        self.program, self.circuit, self.options = program, of_program(program, circuit), options
        self._where = run_dir, client_dir
        self._several = several
        self._count = 0
        self._told: Callable[[Progress], None] = lambda p: None
        self._exits = contextlib.ExitStack()
        self._encrypted: processes.Session | None = None
        self._local: dict[str, LeftHere] = {}

    def __enter__(self) -> Session:
        """Hold the folders, if they are not temporary: nobody else uses them until the end."""
        if self.options.apart and self._where[0] is not None and self._several:
            self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._encrypted = None
        self._exits.close()

    def done(self, batch: int | str) -> bool:
        """Whether the batch of this name, or number, is finished in the run folder, so that `run`
        with the same arguments reads it back. Never without a folder, or where nothing is
        encrypted.
        """
        if not self.options.apart or self._where[0] is None:
            return False
        return self._open().done(str(batch))

    def forget(self, batch: int | str) -> None:
        """Remove what either side holds of a batch, and what it left to go on from."""
        self._local.pop(str(batch), None)
        if self.options.apart and (self._where[0] is not None or self._encrypted is not None):
            self._open().forget(str(batch))

    def run(
        self,
        *args: Any,
        batch: int | str | None = None,
        after: int | str | None = None,
        compare: bool | None = None,
        check: bool = True,
    ) -> Report:
        """Run the Program on a batch of arguments, and report as `he_backend.run` does.

        Args:
          args: of the Program; encrypted and public ones may differ from batch to batch.
          batch: its name: digits for a number, otherwise letters, digits, "_", "-" and ".". By
            default batches are numbered from 0 in the order of the calls.
          after: a batch whose carried results, still encrypted, are the carried arguments of this
            one. These are neither encrypted nor looked at, but by the checks: without them, None
            may stand for one.
          compare: whether this one is compared operation by operation; as the session by default.
            A comparison takes about as long as the evaluation, so of many batches some will do.
            One that goes on from another is held against the function of what that one left, which
            the key holder decrypts: errors are those of this batch alone.
          check: whether the function is evaluated in the clear, too: by a twin on the arguments,
            whose carried ones are then what the caller believes them to be, and on plain vectors
            for overflow. Without, ranges that the client checks are those of the session, and the
            report has nothing exact.

        Raises:
          RunFolderError: the run folder holds a batch of this name with other arguments, or going
            on from another batch; or what `after` left is gone, damaged, or not finished.
          BackendError: nothing is carried, or no batch `after` has been run.
          Others as `he_backend.run` does.
        """
        compares = self.options.compare and check if compare is None else compare
        asked = Asked(
            str(self._count if batch is None else batch),
            compares,
            None if after is None else str(after),
            check,
        )
        with reporting(self.options.progress) as shown:
            report = self.report(args, asked, Phases(shown))
        self._count += batch is None
        return report

    def read(self, batch: int | str) -> Any:
        """The function's result of a finished batch, with what is carried, decrypted by the key
        holder from what the batch left. It is for the client only.

        Raises:
          RunFolderError: there is no such batch, it is not finished, or what it left is gone or
            damaged. ValueRangeError: of values that it cannot have left.
        """
        return tree_util.tree_unflatten(self.program.out_tree, self._leaves(str(batch)))

    def steps(
        self,
        state: States,
        batches: Batches,
        *,
        count: int | None = None,
        first: int = 0,
        keep: int = 2,
        check: bool | Callable[[int], bool] = False,
        read: bool | Callable[[int], bool] = False,
        ahead: Callable[[int], Sequence[Any]] | None = None,
    ) -> Iterator[Step]:
        """Steps of a training: each goes on from the state that the one before left encrypted.

        With a run_dir the same call goes on after a kill: the last step that was finished comes
        once more, read back, since nobody may have seen it, and then those after it. Of what steps
        leave the last `keep` states stay, older batches are forgotten. If the last state is
        damaged, the one before it is gone on from, and the work since is made again.

        Args:
          state: the carried arguments at the start, in the order of `carried` in the compilation;
            or a function of a step's number that gives those before it as the caller knows them:
            what of them is public, and all of them before a step that is checked.
          batches: the other arguments of each step, a tuple: a sequence of them, or a function of
            the step's number, which must return the same when it is asked again.
          count: the number at which it ends; by default as many as a sequence has, or without end.
          first: number of the first step, of a training that began elsewhere.
          keep: states, at least 1; one is all that there is if it is damaged.
          check: whether steps are evaluated in the clear, too, from the twin's own results; or,
            where `state` is a function, which of them, by number.
          read: after which steps the key holder decrypts the state, into the step's `outputs`.
          ahead: what `batches` will give for a step, asked by another thread while the one before
            runs; the client encrypts it meanwhile. By default of a sequence, and not of a function.

        Yields:
          Finished steps, in order.

        Raises:
          RunFolderError: no kept state is whole, or a step was run with other arguments.
          RunFolderWarning is given where work is made again.
          Others as `run`, with the number of the step; what it began from is kept.

        Examples:
          >>> import he_backend, hesim, numpy as np
          >>> params = hesim.CKKSParams(
          ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
          ... )
          >>> program = hesim.trace(lambda s, x: (s + x, s * x), np.ones(2), np.ones(2))
          >>> circuit = hesim.compile(program, params, carried={0: 0})
          >>> with he_backend.session(program, circuit=circuit, backend="slots") as session:
          ...     for step in session.steps((np.zeros(2),), [(np.ones(2),)] * 3):
          ...         print(step.number, step.outputs[0], step.outputs[1].round(6))
          0 None [0. 0.]
          1 None [1. 1.]
          2 None [2. 2.]
        """
        return iter(Training(self, state, batches, count, first, keep, check, read, ahead))

    def encrypt_ahead(self, args: Sequence[Any], batch: str) -> None:
        """Have the client encrypt the arguments of the batch that comes after the one that is being
        run, while the server works on that. Where nothing is encrypted nothing is done.

        args: all of its arguments, zeros or anything for carried ones.
        """
        if self._encrypted is not None:
            self._encrypted.encrypt_ahead(batch, twin.unchecked(self.program, args).inputs)

    @property
    def batches(self) -> list[str]:
        """Names of the batches that there is anything of, finished or begun."""
        if not self.options.apart:
            return list(self._local)
        held = self._open() if self._where[0] is not None else self._encrypted
        return [] if held is None else held.setup.folders.batches

    def damaged(self, batch: int | str) -> str | None:
        """What a finished batch left that is gone or damaged, as text; None if all is whole."""
        return self._open().damaged(str(batch)) if self.options.apart else None

    def public(self, batch: int | str) -> Mapping[int, np.ndarray] | None:
        """Public leaves of a batch's result by number; None if nothing is known of the batch."""
        if not self.options.apart:
            left = self._local.get(str(batch))
            return None if left is None else left.public
        return self._open().public(str(batch))

    def _leaves(self, batch: str) -> list[Any]:
        """All leaves of the result of a finished batch."""
        if self.options.apart:
            vectors, public = self._open().read(batch, self.options.ranges or {})
        else:
            vectors, public = self._left_here(batch).read(self.circuit)
        return leaves_of(self.circuit, vectors, public, carried=True)

    def report(
        self, args: Sequence[Any], asked: Asked, reporter: Phases, aim: Aim | None = None
    ) -> Report:
        """What `run` does, its phases told to `reporter`.

        aim: what the Circuit was planned for, if nothing has been run yet and it may be planned
          anew where a level does not hold the values.
        """
        given = self._given(args, asked, reporter)
        self._told = Told(self.options.progress, reporter)
        attempt = self._checked if self.options.apart else self._in_the_clear
        self.circuit, found = with_room(
            *(self.program, self.circuit, aim, given.args, given.exact.inputs),
            lambda circuit: attempt(circuit, given),
            reporter.phase,
        )
        outcome = found if isinstance(found, Outcome) else self._in_processes(given, found)
        follows = asked.after is not None
        evaluating.check_ledger(self.circuit, outcome.spent, follows=follows)
        return self._reports.report(given, outcome)

    @cached_property
    def _reports(self) -> Reports:
        return Reports(self.program, self.circuit, self.options)

    # Before anything is encrypted

    def _given(self, args: Sequence[Any], asked: Asked, reporter: Phases) -> Given:
        """The batch, evaluated in the clear if it is to be checked. Raises as `run`."""
        program, circuit = self.program, self.circuit
        if asked.after is not None:
            if not circuit.carried:
                raise BackendError(
                    f"batch {asked.name!r} is to go on from {asked.after!r}, but the circuit "
                    "carries nothing: hesim.compile(program, params, carried={argument: result})"
                )
            if asked.compare:
                reporter.phase(f"decrypting what batch {asked.after} left")
                args = with_carried(program, circuit, args, self._leaves(asked.after))
            elif not asked.check:
                args = filled(program, circuit, args)
        if not asked.check:
            exact = twin.unchecked(program, args)
            return Given(args, exact, self._public(args), reporter, asked)
        reporter.phase("evaluating the exact twin")
        exact = twin.evaluate(program, args, keep_ops=asked.compare)
        self._check_values(exact)
        for message in exact.outside:
            warnings.warn(str(message), stacklevel=4)
        leaves = tree_util.tree_leaves(exact.outputs)
        public = {k: leaf for k, leaf in enumerate(leaves) if circuit.outputs[k] is None}
        return Given(args, exact, public, reporter, asked)

    def _public(self, args: Sequence[Any]) -> dict[int, np.ndarray]:
        return public_results(self.program, self.program.flatten(args))

    def _check_values(self, exact: twin.Exact) -> None:
        """Raises what is known to go wrong before anything runs: values outside of a polynomial's
        domain, unlike those of the calibration, or too large for the modulus. The first two are
        only noted in `exact.outside` if `outside` is "warn".
        """
        options = self.options
        if exact.outside and options.outside == "error":
            raise exact.outside[0]
        if options.calibration is not None:
            options.calibration.check(self.circuit.params, self.circuit)
            exact.outside.extend(twin.unlike(self.program, exact, options.calibration))
            if exact.outside and options.outside == "error":
                raise exact.outside[0]

    def _operands(self, circuit: Circuit, args: Sequence[Any]) -> list[np.ndarray]:
        """The public operands, in the order of this Circuit."""
        return circuit.publics.evaluate(self.program.flatten(args))

    def _decrypt(self, circuit: Circuit, compare: bool) -> list[int]:
        return evaluating.decrypted(circuit, self.options.sampled if compare else 0)

    def _checked(self, circuit: Circuit, given: Given) -> dict[int, tuple[float, float]]:
        """Ranges of what the client will see, unless a value overflows somewhere. A server cannot
        see a value wrap around; the twin on plain vectors can, beforehand.
        """
        if not given.asked.check:
            return dict(self.options.ranges or {})
        given.reporter.phase("checking for overflow on plain vectors")
        operands = self._operands(circuit, given.args)
        work = operands, self._decrypt(circuit, given.asked.compare), given.reporter
        found, said = evaluating.check_on_slots(circuit, given.exact.inputs, *work)
        if said is not None:
            given.exact.outside.append(ValueRangeError(said))
        return {**found, **(self.options.ranges or {})}

    # Evaluations

    def _in_the_clear(self, circuit: Circuit, given: Given) -> Outcome:
        given.reporter.phase("evaluating on plain vectors")
        after, inputs = given.asked.after, given.exact.inputs
        state = {} if after is None else dict(self._left_here(after).ciphers)
        made = find(self.options.backend).load()
        machine = made.generate(circuit.params, circuit.rotation_steps, circuit.slots)
        outcome = evaluating.in_the_clear(
            *(circuit, machine, inputs, self._operands(circuit, given.args)),
            *(self._decrypt(circuit, given.asked.compare), self.options.ranges, self._told),
            state if circuit.carried else None,
        )
        if circuit.carried:
            left = LeftHere(machine, state, outcome.vectors, given.public)
            self._local[given.asked.name] = left
        return outcome

    def _left_here(self, batch: str) -> LeftHere:
        if batch not in self._local:
            known = ", ".join(self._local) or "none yet"
            raise BackendError(
                f"no batch {batch!r} was run to go on from, but {known}: run it first"
            )
        return self._local[batch]

    def _in_processes(self, given: Given, ranges: Mapping[int, tuple[float, float]]) -> Outcome:
        circuit, held = self.circuit, self._open()
        batch = self._batch(given, ranges)
        done = held.run(batch)
        decrypt = batch.decrypted(held.setup)
        vectors: Mapping[int, np.ndarray] = Vectors(
            decrypt, lambda c: done.vector(c, circuit.slots)
        )
        if self._where[0] is None and not circuit.carried:
            vectors = {c: vectors[c] for c in decrypt}
            held.forget(batch.name)
        return Outcome.of(done, vectors, self._predicted_peak)

    def _batch(self, given: Given, ranges: Mapping[int, tuple[float, float]]) -> processes.Batch:
        """What the processes are told of a batch."""
        circuit, asked = self.circuit, given.asked
        return processes.Batch(
            given.exact.inputs,
            self._operands(circuit, given.args),
            ranges,
            asked.name,
            self._decrypt(circuit, asked.compare),
            asked.after,
            given.public if circuit.carried else {},
        )

    def _open(self) -> processes.Session:
        """The session in processes, in folders that are this one's from now on."""
        if self._encrypted is None:
            options = self.options
            folders: Folders = self._exits.enter_context(processes.temporary_folders(*self._where))
            setup = processes.Setup(
                self.circuit,
                self._decrypt(self.circuit, options.compare),
                folders,
                workers=options.workers,
                clients=options.clients,
                worker_deaths=options.worker_deaths,
                progress=lambda p: self._told(p),
                machine=options.backend,
                durable=self._where[0] is not None,
                several=self._several,
                cluster=options.cluster,
            )
            self._encrypted = self._exits.enter_context(processes.Session(setup))
        return self._encrypted

    @cached_property
    def _predicted_peak(self) -> int:
        circuit, held = self.circuit, self._open().setup
        if held.cluster is not None:
            return 0
        passing = plan(circuit, held.decrypt, held.task_seconds).most_bytes(circuit)
        staying = staying_bytes(circuit.spare_bytes, available()) if self._several else None
        counts = held.workers, held.clients
        return run_bytes(circuit.params, circuit.ledger, *counts, passing, staying)


def session(
    program: Program | Circuit,
    *,
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
) -> Session:
    """Batch after batch of one Program under one set of keys; use it as a context manager.

    Keys are made once, for the first batch that has something to do, and public arguments that are
    the same from batch to batch are encoded once. What depends on others, a padding mask, is
    encoded anew. With a `run_dir` a session goes on after a kill, at whatever point: run the same
    batches again, and those that are finished are read back.

    A plan is not made anew for the values of a batch, since all batches share it: give `compile`,
    or this, a `calibration` whose levels hold the values of all.

    Args:
      program: from `hesim.trace`; or a Circuit that was compiled in this process. A loaded one is
        given as `circuit`, beside the Program.
      params, backend, compare, objective, interactive, circuit, workers, clients, progress, ranges,
        outside, keys, sampled, calibration, cluster: as for `he_backend.run`.
      refresh_price, memory: likewise, in seconds and in bytes.
      run_dir: where the session leaves keys and batches, and finds them again; default temporary.
      client_dir: the client's state, secret key included; default `run_dir` + ".client".
      worker_deaths: how many workers may be killed in a batch before it gives up.

    Raises:
      RunFolderError: another session is in the folders, or they hold one of another program, other
        parameters or other choices.
      BackendError: arguments out of range, or a Circuit of another program.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x, w: x * w, np.ones(2), np.ones(2), encrypted=(0,))
      >>> with he_backend.session(program, params=params, backend="slots") as session:
      ...     for x in ([1.0, 2.0], [3.0, 4.0]):
      ...         session.run(np.array(x), np.array([0.5, 2.0])).outputs
      array([0.5, 4. ])
      array([1.5, 8. ])
    """
    if isinstance(program, Bundle):
        raise BackendError(
            "a bundle runs by itself, without JAX: with he_backend.BundleSession(bundle) as "
            "session: session.run(...)"
        )
    if isinstance(program, Circuit):
        if circuit is not None and circuit is not program:
            raise BackendError("give one circuit, as the first argument or as circuit=")
        circuit, program = program, program.program
        if program is None:
            raise BackendError(
                "a loaded circuit carries no program; give both: "
                "he_backend.session(program, circuit=circuit)"
            )
    need_program(program, "session")
    assert isinstance(program, Program)
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
    if circuit is None:
        asked = {"objective": objective, "interactive": interactive, "memory": memory}
        asked |= {"refresh_price": refresh_price, "calibration": calibration}
        with reporting(progress) as shown:
            circuit = compiled(program, params, asked, shown)
    check_params(circuit, params)
    return Session(program, circuit, options, run_dir, client_dir)
