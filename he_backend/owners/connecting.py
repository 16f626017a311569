"""The key holder's owner: has the data and the secret key, and needs neither model nor JAX."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from he_backend.errors import BackendError
from he_backend.evaluating import check_ledger
from he_backend.machines.table import DEFAULT_MACHINE, find_for_two_owners
from he_backend.owners.addresses import Address
from he_backend.owners.certificates import Certificates
from he_backend.owners.folder import claimed
from he_backend.owners.remote import Contact, RemoteSession
from he_backend.processes.folders import Folders
from he_backend.processes.job import Batch, Setup
from he_backend.processes.messages import Progress
from he_backend.processes.session import temporary_folders
from he_backend.telling import telling
from hesim.bundles import versions
from hesim.bundles.bundle import Bundle

__all__ = ["Connection", "connect"]


class Connection:
    """A key holder's session at an evaluator's; a context manager, made by `connect`.

    Args:
      bundle: the key holder's part. session: with the evaluator. held: what leaving it closes.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
      >>> half = hesim.bundle(circuit, np.ones(2)).for_key_holder()
      >>> with he_backend.connect(half, "unix:/called/at/the/first/batch") as connection:
      ...     connection.done("monday")
      False
    """

    def __init__(self, bundle: Bundle, session: RemoteSession, held: contextlib.ExitStack):
        self.bundle = bundle
        self._session = session
        self._held = held
        self._count = 0

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    def run(
        self, *args: Any, batch: int | str | None = None, after: int | str | None = None
    ) -> Any:
        """Encrypt the arguments, have them evaluated, and decrypt the result.

        A batch that is finished is read back; one that was interrupted goes on.

        Args:
          args: those that are encrypted or were left open when the bundle was made. Open ones reach
            the evaluator in the clear.
          batch: its name, or number; by default batches are numbered from 0 in the order of calls.
          after: a batch whose carried results, still encrypted and at the evaluator's, are the
            carried arguments of this one: None may stand for these. It keeps the last few.

        Returns:
          The result: NumPy arrays, float64, in dicts, lists and tuples. None stands for what is
          carried; `read` decrypts it.

        Raises:
          BundleError: arguments of another form.
          ValueRangeError: values unlike those of the bundle's examples, before or after.
          EvaluatorGoneError, EvaluatorRefusedError: about the other side.
          LedgerMismatchError: it spent something else than the Circuit's ledger says.
          RunFolderError: a batch of this name had other arguments; the folder cannot be used.
        """
        leaves = self.bundle.arguments(*args, follows=after is not None)
        name = str(self._count if batch is None else batch)
        opened = [
            np.asarray(x, np.float64)
            for x, leaf in zip(leaves, self.bundle.leaves, strict=True)
            if not leaf.encrypted
        ]
        before = None if after is None else str(after)
        ranges = self.bundle.ranges
        held = Batch(self.bundle.secret(leaves), opened, ranges, name, after=before)
        found = self._session.run(held)
        check_ledger(self.bundle.circuit, found.spent, follows=after is not None)
        self._count += batch is None
        slots = self.bundle.circuit.slots
        return self.bundle.outputs({c: found.vector(c, slots) for c in self.bundle.returned})

    def read(self, batch: int | str) -> Any:
        """The result of a finished batch with what is carried, which the evaluator brings and the
        key holder decrypts.

        Raises:
          RunFolderError: there is no such batch, or it is not finished.
          EvaluatorGoneError, EvaluatorRefusedError: about the other side; it keeps the last few.
          ValueRangeError: values that it cannot have left.
        """
        vectors, _ = self._session.read(str(batch), self.bundle.ranges)
        return self.bundle.outputs(vectors)

    def done(self, batch: int | str) -> bool:
        """Whether the batch of this name is finished. RunFolderError if none can have it."""
        return self._session.done(str(batch))


def connect(
    bundle: Bundle,
    address: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    certificates: str | os.PathLike[str] | None = None,
    backend: str = DEFAULT_MACHINE,
    clients: int = 2,
    progress: bool | Callable[[Progress], None] | None = None,
) -> Connection:
    """Connect a key holder with an evaluator, on this host or another.

    Keys are made where there are none, and brought to the evaluator unless it has them. The secret
    key, inputs and results stay in the folder.

    Args:
      bundle: the part for the key holder, from `Bundle.for_key_holder` or `hesim.load`.
      address: "unix:PATH" or "HOST:PORT", where the evaluator listens.
      folder: of keys, inputs and results, made for its owner only if absent; the same one goes on
        from there. A temporary one by default, removed at the end.
      certificates: folder with own.crt, own.key and peer.crt, for TLS.
      backend: as the evaluator's.
      clients: processes that encrypt, refresh and decrypt.
      progress: True for a bar; or a function, called as by `he_backend.run`.

    Returns:
      A Connection; enter it, `with connect(...) as session`. Nobody is called before the first
      batch.

    Raises:
      BackendError: an address or certificates that cannot be used.
      BundleError: the bundle was made with another version of the machine's library.
      RunFolderError: the folder is another bundle's, or in use.

    Examples:
      >>> import he_backend, hesim, numpy as np, tempfile
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
      >>> half = hesim.bundle(circuit, np.ones(2)).for_key_holder()
      >>> with he_backend.connect(half, "unix:/nobody/listens/here") as session:
      ...     session.run(np.ones(2))
      Traceback (most recent call last):
          ...
      he_backend.errors.EvaluatorGoneError: no evaluator answers at unix:/nobody/listens/here ...
    """
    half, where = bundle.for_key_holder(), Address.parse(address)
    versions.check(half.versions, backend if find_for_two_owners(backend).encrypts else None)
    if not where.local and certificates is None:
        raise BackendError(
            "another host is spoken to over TLS only: name a folder of certificates, which `hesim "
            "certificates` makes for a try-out, or take an address unix:PATH"
        )
    pair = None if where.local or certificates is None else Certificates(certificates)
    with contextlib.ExitStack() as held:
        if folder is None:
            folders = held.enter_context(temporary_folders(None, None))
        else:
            home = Path(folder).resolve()
            held.enter_context(claimed(home, half, backend))
            folders = Folders.of(home / "evaluation", home / "own")
        setup = Setup(
            half.circuit,
            half.returned,
            folders,
            workers=1,
            clients=clients,
            machine=backend,
            progress=held.enter_context(telling(progress)),
        )
        session = RemoteSession(setup, Contact(where, pair, half.evaluated))
        held.enter_context(session)
        return Connection(half, session, held.pop_all())
