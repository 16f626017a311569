"""A coordinator's connection to a cluster that can do its work, or the reason why it cannot.

Imports no JAX.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from distributed import Client, Security

from he_backend.clusters.cluster import Cluster
from he_backend.errors import ClusterError

__all__ = ["connect", "register"]

_SECONDS = 20.0
"""For a scheduler to answer, and for a first worker to be there."""

_AGAIN_SECONDS, _TRIES = 0.2, 10

_ANYWHERE = ("python", "dask", "distributed", "hesim")
"""Packages whose versions are the same everywhere, the scheduler's too: it reads the tasks."""


def connect(cluster: Cluster, library: str | None = None, seconds: float = _SECONDS) -> Client:
    """A client of the cluster, which has at least one worker, all with the versions that are here.

    Args:
      library: distribution that the workers need, for the machine; None if it needs none.
      seconds: for the scheduler to answer, and for the first worker.

    Raises:
      ClusterError: the scheduler does not answer, or does not accept the certificate; it has no
        workers, or one of them another version, or no library.
    """
    security = Security(**cluster.security) if cluster.security else None
    try:
        client = Client(
            cluster.address,
            security=security,
            timeout=seconds,
            set_as_default=False,
            name="hesim",
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {cluster.address} ({_reason(error)}); start one with "
            "`dask scheduler`, mend the address, or give the certificates that it accepts"
        ) from error
    try:
        _need_workers(client, cluster, seconds)
        _check_versions(client, library)
    except BaseException:
        client.close()
        raise
    return client


def _need_workers(client: Client, cluster: Cluster, seconds: float) -> None:
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        raise ClusterError(
            f"the cluster at {cluster.address} has no workers; start some: dask worker "
            f"{cluster.address} --nworkers 2 --nthreads 1"
        ) from error


def _check_versions(client: Client, library: str | None) -> None:
    """Hold what is installed on the scheduler and the workers against what is here."""
    wanted = [*_ANYWHERE, *((library,) if library is not None else ())]
    extra = [name for name in wanted if name not in ("python", "dask", "distributed")]
    found: Any = client.get_versions(packages=extra)
    here = _versions(found["client"])
    there = {f"the worker {name}": (v, wanted) for name, v in found["workers"].items()}
    there["the scheduler"] = (found["scheduler"], list(_ANYWHERE))
    for who, (told, names) in there.items():
        packages = _versions(told)
        differ = [name for name in names if packages.get(name) != here.get(name)]
        if differ:
            raise ClusterError(
                f"{who} has {_listed(packages, differ)}, and here is {_listed(here, differ)}; "
                "install the same versions everywhere, the same lock file for instance"
            )


def _versions(told: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Versions by package; of Python, the first two numbers."""
    found = dict((told or {}).get("packages", {}))
    python = str(found.get("python") or "")
    return {**found, "python": ".".join(python.split(".")[:2])}


def _listed(packages: Mapping[str, str | None], names: list[str]) -> str:
    return ", ".join(f"{name} {packages.get(name) or '(not installed)'}" for name in names)


def _reason(error: BaseException) -> str:
    """The innermost reason, which names what happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".rstrip(": ")


def register(client: Any, plugin: Any, name: str) -> None:
    """Have scheduler or workers, now and later, take a plugin; all are told again where a worker is
    lost meanwhile. Raises what keeps one from taking it.
    """
    for left in reversed(range(_TRIES)):
        try:
            client.register_plugin(plugin, name=name)
            return
        except ClusterError:
            raise
        except OSError:  # Dask's own for a connection that is closed
            if not left:
                raise
            time.sleep(_AGAIN_SECONDS)
