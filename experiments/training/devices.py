"""The devices of a training: the section `devices` that its settings file may have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from experiments.training.options import Option
from hesim.errors import ParameterError
from models.train.sharding import check_hosts, make_mesh, start_hosts

__all__ = ["DEVICES", "ONE_DEVICE", "Devices", "devices_of"]

DEVICES = (
    Option("devices", "data", 1, "Devices over which the rows of a step are spread."),
    Option("devices", "tensor", 1, "Devices over which heads and feed-forward features are."),
    Option(
        "devices",
        "hosts",
        1,
        "Hosts whose devices together are data times tensor. The same command is started on each, "
        "with the same texts and an --out of its own; that of host 0 holds the checkpoints. The "
        "budget must be in steps, and save_seconds 0. 0: as many as the cluster says (Slurm, Open "
        "MPI, Kubernetes, Cloud TPU), which also knows the two following.",
    ),
    Option("devices", "coordinator", "", "Address and port of host 0, such as 10.0.0.1:1234."),
    Option("devices", "host", 0, "Number of this host, from 0; the files of hosts differ by it."),
)


@dataclasses.dataclass(frozen=True)
class Devices:
    """How many share the rows of a step (data), and heads and features (tensor); of `hosts` hosts
    this is number `host`, and host 0 is found at `coordinator`. hosts = 0: the cluster says.

    ParameterError for numbers of hosts that do not go together.
    """

    data: int = 1
    tensor: int = 1
    hosts: int = 1
    coordinator: str = ""
    host: int = 0

    def __post_init__(self) -> None:
        if self.hosts == 1 and (self.coordinator or self.host):
            raise ParameterError("[devices] names a coordinator or a host, but hosts = 1")
        if self.hosts < 0 or (self.hosts and not 0 <= self.host < self.hosts):
            raise ParameterError(
                f"[devices] has host = {self.host} of hosts = {self.hosts}: they are numbered from "
                "0"
            )
        if self.hosts != 1 and (self.coordinator == "") != (self.hosts == 0):
            raise ParameterError(
                "[devices] wants the coordinator, address and port of host 0, with hosts above 1, "
                "and neither it nor a number with hosts = 0, where the cluster says all"
            )

    def mesh(self) -> Mesh | None:
        """The mesh of so many devices, None for one. Several hosts are joined, before anything else
        uses JAX, and their devices are one mesh. ParameterError where there are fewer, or hosts do
        not find each other.
        """
        if self.hosts > 1:
            start_hosts(self.coordinator, self.hosts, self.host)
        elif self.hosts == 0:
            start_hosts()
        return None if self == ONE_DEVICE else make_mesh(self.data, self.tensor)


ONE_DEVICE = Devices()


def devices_of(values: Mapping[str, Mapping[str, Any]]) -> Devices:
    """Those of a file that `read_options` has read; ParameterError where several hosts could not do
    what its section `training` asks for.
    """
    found, training = Devices(**values["devices"]), values.get("training", {})
    check_hosts(
        found.hosts,
        seconds=training.get("seconds", 0.0),
        save_seconds=training.get("save_seconds", 0.0),
    )
    return found
