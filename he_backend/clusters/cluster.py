"""Which Dask cluster a run is spread over, as plain data: an address, and how TLS is done there.

What a caller gives is a scheduler's address, a `distributed.Client`, or a cluster object such as
`distributed.LocalCluster`. The process that coordinates a run connects by itself, so only where the
scheduler listens is taken from these. Imports no JAX, and Dask only where it is needed.
"""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from he_backend.errors import ClusterError

__all__ = ["Cluster"]

_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss)://)?(?:\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):\d{1,5}")

_TLS = ("tls_ca_file", "tls_client_cert", "tls_client_key", "tls_ciphers")
_ANSWER_SECONDS = 10.0
_INSTALL = "install it where this runs: pip install 'hesim[clusters]', or pip install distributed"


@dataclass(frozen=True)
class Cluster:
    """A Dask cluster.

    Attributes:
      address: of its scheduler, such as "tcp://10.0.0.1:8786" or "tls://10.0.0.1:8786".
      security: what of a `distributed.Security` a client needs, by its names: certificates and keys
        as absolute paths or as PEM text, and `require_encryption`. Nothing without TLS.

    Raises:
      ClusterError: the address is none.
    """

    address: str
    security: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.address.startswith("inproc://"):
            raise ClusterError(
                f"the cluster at {self.address} lives in this process, where the secret key's "
                "owner does; give one of processes: LocalCluster(processes=True), or an address"
            )
        if not _ADDRESS.fullmatch(self.address):
            raise ClusterError(
                f"cluster={self.address!r} is no scheduler's address; give one such as "
                "'tcp://10.0.0.1:8786' or 'tls://10.0.0.1:8786', a distributed.Client or a "
                "LocalCluster"
            )

    @classmethod
    def of(cls, given: Any) -> Cluster | None:
        """What a caller gave as `cluster=`: an address, a Client, a cluster object, or this; None
        for None.

        For an address, certificates are those of Dask's own configuration
        (`distributed.comm.tls`), if it has any.

        Raises:
          ClusterError: it is none of these, or Dask's `distributed` is not installed.
        """
        if given is None or isinstance(given, Cluster):
            return given
        need_distributed()
        if isinstance(given, str):
            from distributed import Security

            return cls(given, _fields(Security()))
        scheduler = getattr(given, "scheduler", None)
        address = getattr(given, "scheduler_address", None) or getattr(scheduler, "address", None)
        if not isinstance(address, str):
            raise ClusterError(
                f"cluster={given!r} is neither a scheduler's address, nor a distributed.Client or "
                "a cluster that runs"
            )
        return cls(address, _fields(getattr(given, "security", None)))

    @classmethod
    def reached(cls, given: Any) -> Cluster | None:
        """As `of`, of something that listens. Raises ClusterError if nothing does."""
        found = cls.of(given)
        if found is not None:
            found.need_answer()
        return found

    def need_answer(self) -> None:
        """Raise ClusterError unless something listens at the address."""
        host, _, port = self.address.rpartition("://")[2].rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {self.address} ({error}); start one with "
                "`dask scheduler`, or mend the address"
            ) from error

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Cluster:
        """What `plain` made."""
        return cls(str(plain["address"]), dict(plain["security"]))

    @property
    def plain(self) -> dict[str, Any]:
        """Plain data for JSON. It may hold a private key: only for a link to our own process."""
        return {"address": self.address, "security": dict(self.security)}


def need_distributed() -> None:
    """Raise ClusterError unless Dask's `distributed` is installed for this Python."""
    if importlib.util.find_spec("distributed") is None:
        raise ClusterError(
            f"a cluster needs Dask's distributed, which is not installed; {_INSTALL}"
        )


def _fields(security: Any) -> dict[str, Any]:
    """What of a Security a client needs, by name; nothing of one without certificates."""
    found = {name: getattr(security, name, None) for name in _TLS}
    plain: dict[str, Any] = {
        name: _absolute(name, str(value)) for name, value in found.items() if value
    }
    if getattr(security, "require_encryption", False):
        plain["require_encryption"] = True
    return plain


def _absolute(name: str, value: str) -> str:
    """A path that another process in another folder finds; PEM text as it is."""
    if name == "tls_ciphers" or "\n" in value:
        return value
    return str(Path(value).expanduser().resolve())
