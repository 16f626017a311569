"""The evaluator's owner: has the model and evaluation keys, and sees ciphertexts only."""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from he_backend.clusters.cluster import Cluster
from he_backend.errors import BackendError, ProtocolError
from he_backend.machines.table import DEFAULT_MACHINE, find_for_two_owners
from he_backend.owners import wire
from he_backend.owners.addresses import Address
from he_backend.owners.certificates import Certificates
from he_backend.owners.door import Door, Visitor, refuse
from he_backend.owners.folder import claimed
from he_backend.owners.keysets import KeySet
from he_backend.owners.service import Service, Settings
from he_backend.processes.store import storing
from hesim.bundles import versions
from hesim.bundles.bundle import Bundle

__all__ = ["Evaluator"]

_LEAVE_SECONDS = 30.0
_LOG_BYTES = 1 << 24
"""Of the log, of which two older parts are kept: strangers must not fill the disk."""

_BUSY_SECONDS = 3.0


class Evaluator:
    """Serves a bundle to one key holder at a time; a context manager.

    It listens from the start and serves in `serve`. Key sets are kept in its folder, and so are
    tasks of batches that were interrupted.

    Args:
      bundle: whole, from `hesim.bundle` or `hesim.load`.
      address: "unix:PATH", for this user's processes alone, or "HOST:PORT" over TLS; port 0 takes a
        free one.
      folder: where it keeps its state; made if absent.
      certificates: folder with own.crt, own.key and peer.crt, for TLS; see `hesim certificates`.
      backend: "pyfhel", or "slots", which encrypts nothing.
      workers: processes that evaluate.
      idle_seconds: a key holder that is silent for so many seconds is shown out.
      cluster: of Dask, whose workers evaluate instead, as for `he_backend.run`.

    Attributes:
      address: where it listens, as text.

    Raises:
      BackendError: an address or certificates that cannot be used; a part of a bundle only.
      RunFolderError: the folder is another bundle's, or in use.
      ClusterError: the cluster does not answer.
      BundleError: the bundle was made with another version of the machine's library.

    Examples:
      >>> import he_backend, hesim, numpy as np, tempfile, threading
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
      >>> bundle, place = hesim.bundle(circuit, np.array([-1.0, 1.0])), tempfile.mkdtemp()
      >>> at = {"backend": "slots"}  # "pyfhel" encrypts
      >>> with he_backend.Evaluator(bundle, f"unix:{place}/s", place + "/model", **at) as evaluator:
      ...     threading.Thread(target=evaluator.serve).start()
      ...     half = bundle.for_key_holder()
      ...     with he_backend.connect(half, evaluator.address, place + "/data", **at) as session:
      ...         print(session.run(np.array([0.5, -1.0])))
      [0.25 1.  ]
    """

    def __init__(
        self,
        bundle: Bundle,
        address: str,
        folder: str | os.PathLike[str],
        *,
        certificates: str | os.PathLike[str] | None = None,
        backend: str = DEFAULT_MACHINE,
        workers: int = 2,
        idle_seconds: float = 600.0,
        cluster: Any = None,
    ):
        if bundle.operands is None:
            raise BackendError(
                "this is the key holder's part of a bundle, which cannot be evaluated: serve the "
                "whole one"
            )
        versions.check(bundle.versions, backend if find_for_two_owners(backend).encrypts else None)
        self.bundle = bundle
        self.folder = Path(folder).resolve()
        self.settings = Settings(
            backend, workers, idle_seconds=idle_seconds, cluster=Cluster.reached(cluster)
        )
        self._held = contextlib.ExitStack()
        self._held.enter_context(claimed(self.folder, bundle, backend))
        self.log = _log_in(self.folder, self._held)
        self._lock = threading.Condition()
        self._service: Service | None = None
        where = Address.parse(address)
        try:
            pair = None if where.local else _certificates(certificates)
            self._door = Door(where, pair, self._take, self.log)
        except BaseException:
            self._held.close()
            raise
        self.address = str(self._door.address)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        with self._lock:
            self._lock.wait_for(lambda: self._service is None, _LEAVE_SECONDS)
        self._held.close()

    def serve(self) -> None:
        """Serve key holders one after another, until `close`."""
        self.log.info("serving %s at %s", self.bundle, self.address)
        self._door.serve()
        self._end_service()

    def close(self) -> None:
        """Have `serve` return, and end the visit of whoever is there; finished tasks are kept."""
        self._door.close()
        self._end_service()

    def _end_service(self) -> None:
        with self._lock:
            if self._service is not None:
                self._service.end()

    def _take(self, visitor: Visitor, header: dict[str, Any]) -> None:
        if header.get("role") == "link":
            self._join(visitor, header)
            return
        expected = wire.hello(self.bundle.evaluated, self.settings.machine, "")
        wrong = [name for name in wire.said(header, expected) if name != "keys"]
        if wrong or not wire.is_digest(header.get("keys")):
            refuse(
                visitor, f"its hello has another {', '.join(wrong) or 'form of its keys'}", self.log
            )
            return
        keys = KeySet(self.folder, visitor.peer, header["keys"], self.bundle, self.settings.machine)
        service = Service(visitor, keys, self.settings, self.log)
        with self._lock:
            # A link that broke a moment ago may still be cleared away.
            self._lock.wait_for(lambda: self._service is None, _BUSY_SECONDS)
            busy = self._service is not None
            if not busy:
                self._service = service
        if busy:
            refuse(visitor, "somebody else is being served", self.log)
            return
        try:
            service.run()
        finally:
            with self._lock:
                self._service = None
                self._lock.notify_all()

    def _join(self, visitor: Visitor, header: dict[str, Any]) -> None:
        """A link of a client of the key holder that is here."""
        service = self._service
        token = header.get("token")
        known = (
            service is not None
            and service.visitor.peer == visitor.peer
            and isinstance(token, str)
            and token.isascii()
            and hmac.compare_digest(token, service.token)
            and not wire.said(header, wire.link_hello(token))
        )
        if not known or service is None:
            refuse(visitor, "it is no client link of the key holder that is here", self.log)
            return
        try:
            service.join(visitor)
        except (ProtocolError, OSError) as error:
            refuse(visitor, str(error), self.log)


def _log_in(folder: Path, held: contextlib.ExitStack) -> logging.Logger:
    """A log of this evaluator's own, in its folder; it goes where the package's does, too. It is
    closed with `held`.
    """
    log = logging.Logger("he_backend.owners", logging.INFO)
    log.parent = logging.getLogger("he_backend.owners")
    path = folder / "evaluator.log"
    with storing(path):
        handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2)
        path.chmod(0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    held.callback(handler.close)
    held.callback(log.removeHandler, handler)
    return log


def _certificates(folder: str | os.PathLike[str] | None) -> Certificates:
    if folder is None:
        raise BackendError(
            "another host is spoken to over TLS only: name a folder of certificates, which `hesim "
            "certificates` makes for a try-out, or take an address unix:PATH"
        )
    return Certificates(folder)
