"""Runs a Circuit encrypted: machines, a client that holds the secret key, a server that does not.

Names load on first use, so that a worker can import a machine without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesim.lazy import attach

_HOMES = {
    "BackendError": "he_backend.errors",
    "BlobError": "he_backend.errors",
    "BundleSession": "he_backend.bundled",
    "CircuitError": "he_backend.errors",
    "ClientRefusedError": "he_backend.errors",
    "ClusterError": "he_backend.errors",
    "Connection": "he_backend.owners.connecting",
    "DomainError": "he_backend.errors",
    "EncodeError": "he_backend.errors",
    "Evaluator": "he_backend.owners.evaluator",
    "EvaluatorGoneError": "he_backend.errors",
    "EvaluatorRefusedError": "he_backend.errors",
    "LedgerMismatchError": "he_backend.errors",
    "MissingRotationKey": "he_backend.errors",
    "Network": "he_backend.scaling",
    "OpRecord": "he_backend.report.report",
    "Progress": "he_backend.processes.messages",
    "ProtocolError": "he_backend.errors",
    "Report": "he_backend.report.report",
    "RunFolderError": "he_backend.errors",
    "RunFolderWarning": "he_backend.errors",
    "Scaling": "he_backend.scaling",
    "Session": "he_backend.sessions",
    "Step": "he_backend.steps",
    "StorageError": "he_backend.errors",
    "ValueRangeError": "he_backend.errors",
    "WorkerDied": "he_backend.errors",
    "connect": "he_backend.owners.connecting",
    "expected_scaling": "he_backend.scaling",
    "expected_seconds": "he_backend.expected",
    "run": "he_backend.run",
    "session": "he_backend.sessions",
}

__all__ = [
    "BackendError",
    "BlobError",
    "BundleSession",
    "CircuitError",
    "ClientRefusedError",
    "ClusterError",
    "Connection",
    "DomainError",
    "EncodeError",
    "Evaluator",
    "EvaluatorGoneError",
    "EvaluatorRefusedError",
    "LedgerMismatchError",
    "MissingRotationKey",
    "Network",
    "OpRecord",
    "Progress",
    "ProtocolError",
    "Report",
    "RunFolderError",
    "RunFolderWarning",
    "Scaling",
    "Session",
    "Step",
    "StorageError",
    "ValueRangeError",
    "WorkerDied",
    "connect",
    "expected_scaling",
    "expected_seconds",
    "run",
    "session",
]

if TYPE_CHECKING:
    from he_backend.bundled import BundleSession
    from he_backend.errors import (
        BackendError,
        BlobError,
        CircuitError,
        ClientRefusedError,
        ClusterError,
        DomainError,
        EncodeError,
        EvaluatorGoneError,
        EvaluatorRefusedError,
        LedgerMismatchError,
        MissingRotationKey,
        ProtocolError,
        RunFolderError,
        RunFolderWarning,
        StorageError,
        ValueRangeError,
        WorkerDied,
    )
    from he_backend.expected import expected_seconds
    from he_backend.owners.connecting import Connection, connect
    from he_backend.owners.evaluator import Evaluator
    from he_backend.processes.messages import Progress
    from he_backend.report.report import OpRecord, Report
    from he_backend.run import run
    from he_backend.scaling import Network, Scaling, expected_scaling
    from he_backend.sessions import Session, session
    from he_backend.steps import Step

__getattr__, __dir__ = attach(__name__, _HOMES)
