"""The errors that the backend raises, each saying what is wrong, where, and what to do next."""

from __future__ import annotations

from typing import Any

from hesim.circuit.plain.errors import (
    BackendError,
    BlobError,
    CircuitError,
    EncodeError,
    MissingRotationKey,
    ValueRangeError,
)

__all__ = [
    "BackendError",
    "BlobError",
    "CircuitError",
    "ClientGoneError",
    "ClientRefusedError",
    "ClusterError",
    "DomainError",
    "EncodeError",
    "EvaluatorGoneError",
    "EvaluatorRefusedError",
    "LedgerMismatchError",
    "MissingRotationKey",
    "PeerGoneError",
    "ProtocolError",
    "RunFolderError",
    "StorageError",
    "ValueRangeError",
    "WorkerDied",
]


class DomainError(BackendError, ValueError):
    """A polynomial is fed a value outside the interval on which it was fitted.

    Examples:
      >>> import approx, he_backend, hesim, numpy as np
      >>> exp = approx.fit("exp", (-1, 1), degree=3)
      >>> params = hesim.CKKSParams(
      ...     log_n=13, levels=3, scale_bits=30, first_bits=40, special_bits=50
      ... )
      >>> program = hesim.trace(lambda x: exp(x), np.zeros(2))
      >>> he_backend.run(program, np.array([0.5, 2.0]), params=params, backend="slots")
      Traceback (most recent call last):
          ...
      he_backend.errors.DomainError: ...
    """


class ProtocolError(BackendError):
    """A message between processes that breaks the protocol, or a peer that went away.

    Examples:
      >>> import socket
      >>> from he_backend.processes.messages import receive
      >>> here, there = socket.socketpair()
      >>> there.sendall(b"no message of ours")
      >>> receive(here)
      Traceback (most recent call last):
          ...
      he_backend.errors.ProtocolError: the bytes are not a message of this protocol
    """


class PeerGoneError(ProtocolError):
    """The process at the other end of a link has closed it, or has ended."""


class ClientRefusedError(BackendError):
    """The client ended the exchange. The server learns this and no more.

    Examples:
      >>> import he_backend
      >>> error = he_backend.ClientRefusedError("the client ended the exchange")
      >>> str(error.at("mul", "model.py:12"))
      '`mul` at model.py:12: the client ended the exchange'
    """


class ClientGoneError(ClientRefusedError):
    """A client's process ended, or closed its link, in the middle of the exchange."""


class EvaluatorGoneError(BackendError, ConnectionError):
    """The evaluator of another owner does not answer, or went away in the middle of a batch.

    Examples:
      >>> import he_backend
      >>> issubclass(he_backend.EvaluatorGoneError, ConnectionError)  # the same command goes on
      True
    """


class EvaluatorRefusedError(BackendError, PermissionError):
    """The evaluator of another owner refuses a key holder, and does not say why.

    Examples:
      >>> import he_backend
      >>> issubclass(he_backend.EvaluatorRefusedError, PermissionError)  # its own log says why
      True
    """


class ClusterError(BackendError, ConnectionError):
    """A Dask cluster that a run cannot use: it does not answer, has no workers, other versions than
    the caller or no library for the machine; or Dask's `distributed` is not installed.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x: x * x, np.ones(2))
      >>> he_backend.run(program, np.ones(2), params=params, cluster="nowhere")
      Traceback (most recent call last):
          ...
      he_backend.errors.ClusterError: ...
    """


class WorkerDied(BackendError):
    """Workers were killed more often than the limit allows.

    Examples:
      >>> import he_backend
      >>> issubclass(he_backend.WorkerDied, he_backend.BackendError)  # the same call goes on
      True
    """


class LedgerMismatchError(BackendError):
    """A run spent other operations than the Circuit's ledger says.

    Examples:
      >>> import he_backend
      >>> issubclass(he_backend.LedgerMismatchError, he_backend.BackendError)  # a fault: report it
      True
    """


class RunFolderError(BackendError):
    """A run folder that belongs to another computation, or cannot be used.

    Examples:
      >>> import he_backend, hesim, numpy as np, tempfile
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program, folder = hesim.trace(lambda x: x * x, np.ones(2)), tempfile.mkdtemp()
      >>> he_backend.run(
      ...     program, np.ones(2), params=params, run_dir=folder, client_dir=folder + "/mine")
      Traceback (most recent call last):
          ...
      he_backend.errors.RunFolderError: the client's folder ... and the server's ... must be apart
    """


class StorageError(RunFolderError, OSError):
    """A file that the system refuses to write: the disk is full, or nobody may write there.

    The run that it ended goes on from its folder once there is room.

    Examples:
      >>> import he_backend
      >>> issubclass(he_backend.StorageError, (he_backend.RunFolderError, OSError))
      True
    """


class RunFolderWarning(UserWarning):
    """Work of earlier attempts, or keys, that a run cannot use and replaces.

    Examples:
      >>> import he_backend, warnings
      >>> with warnings.catch_warnings():  # lost work is to end the run
      ...     warnings.simplefilter("error", he_backend.RunFolderWarning)
    """


_KINDS = {name: globals()[name] for name in __all__}


def need_count(name: str, value: object, least: int = 1) -> None:
    """Raise BackendError unless an argument of this name is a whole number, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BackendError(f"{name}={value!r} must be a whole number, at least {least}")


def to_message(error: Exception) -> dict[str, Any]:
    """`error` as plain data for another process; foreign classes keep their name in the text."""
    kind = type(error).__name__
    known = kind in _KINDS
    text = Exception.__str__(error) if known else f"{kind}: {error}"
    return {
        "kind": kind if known else "BackendError",
        "text": text,
        "operation": getattr(error, "operation", ""),
        "source": getattr(error, "source", ""),
        "step": getattr(error, "step", 0),
        "rows": list(getattr(error, "rows", ())),
    }


def from_message(message: dict) -> BackendError:
    """The error that `to_message` described."""
    cls = _KINDS.get(str(message.get("kind")), BackendError)
    text = str(message.get("text"))
    error = cls(text, int(message.get("step", 0))) if cls is MissingRotationKey else cls(text)
    error.rows = tuple(int(row) for row in message.get("rows", ()))
    return error.at(str(message.get("operation", "")), str(message.get("source", "")))
