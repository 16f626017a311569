"""Bundles run encrypted by one caller, who has data and model, on this host: no JAX."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from he_backend.clusters.cluster import Cluster
from he_backend.errors import BackendError
from he_backend.evaluating import check_ledger
from he_backend.local import run_local, twin_ranges
from he_backend.machines.table import DEFAULT_MACHINE, find
from he_backend.processes.job import Batch, Setup
from he_backend.processes.messages import Progress
from he_backend.processes.session import Session, temporary_folders
from he_backend.refreshed import check_refreshed
from he_backend.telling import telling
from hesim.bundles import versions
from hesim.bundles.bundle import Bundle
from hesim.circuit.plain.contents import slot_ranges

__all__ = ["BundleSession"]


class BundleSession:
    """Runs a bundle batch after batch under one set of keys; a context manager. Needs no JAX.

    Each batch is run on plain vectors first, by which a value that overflows is noticed, and what
    is decrypted is held against. Values that leave the ranges of the bundle's examples are refused.

    Args:
      bundle: whole, from `hesim.bundle` or `hesim.load`.
      backend: "pyfhel" (encrypted, client and server processes), or "slots" (plain vectors).
      run_dir, client_dir: folders of server and client, by which an interrupted batch goes on;
        temporary ones by default.
      workers, clients: processes that evaluate, and that hold the key.
      progress: True for a bar; or a function, called as by `he_backend.run`.
      cluster: of Dask, whose workers evaluate, as for `he_backend.run`.

    Raises:
      BackendError: a part of a bundle only, or an unknown backend.
      BundleError: the bundle was made with another version of the machine's library.
      RunFolderError: the folders are of another computation, or cannot be used.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
      >>> bundle = hesim.bundle(circuit, np.array([-1.0, 1.0]))  # elsewhere: hesim.load(folder)
      >>> with he_backend.BundleSession(bundle, backend="slots") as session:
      ...     session.run(np.array([0.5, -1.0]))
      array([0.25, 1.  ])
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = DEFAULT_MACHINE,
        run_dir: str | os.PathLike[str] | None = None,
        client_dir: str | os.PathLike[str] | None = None,
        workers: int = 2,
        clients: int = 2,
        progress: bool | Callable[[Progress], None] | None = None,
        cluster: Any = None,
    ):
        if bundle.operands is None:
            raise BackendError(
                "this is the key holder's part of a bundle: run the whole one, or connect to an "
                "evaluator that has it, with he_backend.connect"
            )
        self.bundle = bundle
        self._row = find(backend)
        self._row.python()
        versions.check(bundle.versions, backend if self._row.encrypts else None)
        self._folders = run_dir, client_dir
        self._options: dict[str, Any] = {
            "machine": backend,
            "workers": workers,
            "clients": clients,
            "durable": run_dir is not None,
            "cluster": Cluster.of(cluster),
        }
        self._progress = progress
        self._held = contextlib.ExitStack()
        self._session: Session | None = None
        self._count = 0

    def __enter__(self) -> BundleSession:
        if self._apart:
            with contextlib.ExitStack() as held:
                folders = held.enter_context(temporary_folders(*self._folders))
                bundle = self.bundle
                setup = Setup(
                    bundle.circuit,
                    bundle.decrypted,
                    folders,
                    several=True,
                    progress=held.enter_context(telling(self._progress)),
                    **self._options,
                )
                self._session = held.enter_context(Session(setup))
                self._held = held.pop_all()
        return self

    @property
    def _apart(self) -> bool:
        """Whether it runs in processes apart from the caller's, encrypted or not."""
        return self._row.encrypts or self._options["cluster"] is not None

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)
        self._session = None

    def run(self, *args: Any, batch: int | str | None = None) -> Any:
        """The function's result: NumPy arrays, float64, in dicts, lists and tuples.

        Args:
          args: those that are encrypted or were left open when the bundle was made.
          batch: its name, or number; by default batches are numbered from 0. With a run_dir, one
            that is finished is read back, one that was interrupted goes on.

        Raises:
          BundleError: arguments of another form.
          ValueRangeError: values unlike the bundle's examples, or that overflow.
          RunFolderError: a batch of this name had other arguments.
          LedgerMismatchError: the run spent something else than the Circuit's ledger says.
          BackendError: whatever a process reports, with operation and source.
        """
        bundle = self.bundle
        leaves = bundle.arguments(*args)
        inputs, operands = bundle.secret(leaves), bundle.filled(leaves)
        circuit = bundle.circuit
        if not self._apart:
            steps = circuit.rotation_steps
            machine = self._row.load().generate(circuit.params, steps, circuit.slots)
            vectors, spent = run_local(circuit, machine, inputs, operands, bundle.decrypted)
            check_ledger(circuit, spent)
            return bundle.outputs(vectors)
        if self._session is None:
            raise BackendError("the session is not open; enter it: with session as s: s.run(...)")
        met = slot_ranges(circuit, inputs, operands)
        check_refreshed(circuit, met)
        ranges = twin_ranges(met)
        name = str(self._count if batch is None else batch)
        found = self._session.run(Batch(inputs, operands, ranges, name))
        check_ledger(circuit, found.spent)
        self._count += batch is None
        return bundle.outputs({c: found.vector(c, circuit.slots) for c in bundle.decrypted})
