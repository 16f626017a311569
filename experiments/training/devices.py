"""The devices of a training: the section `devices` that its settings file may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from experiments.training.options import Option
from hesim.errors import ParameterError
from models.sharding import check_hosts, make_mesh, start_hosts

__all__ = ["DEVICES", "ONE_DEVICE", "Devices", "HostsDevices", "devices_of"]

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


class Devices(NamedTuple):
    """How many share the rows of a step (data), and heads and features (tensor)."""

    data: int
    tensor: int

    def mesh(self) -> Mesh | None:
        """The mesh of so many of this host's devices, None for one; ParameterError where there are
        fewer.
        """
        return None if self == ONE_DEVICE else make_mesh(self.data, self.tensor)


class HostsDevices(Devices):
    """Those of several hosts: `coordinator`, `hosts` and `host` as in the file."""

    coordinator: str
    hosts: int
    host: int

    def __new__(cls, data: int, tensor: int, coordinator: str, hosts: int, host: int):
        if hosts < 0 or (hosts and not 0 <= host < hosts):
            raise ParameterError(
                f"[devices] has host = {host} of hosts = {hosts}: they are numbered from 0"
            )
        if (coordinator == "") != (hosts == 0):
            raise ParameterError(
                "[devices] wants the coordinator, address and port of host 0, with hosts above 1, "
                "and neither it nor a number with hosts = 0, where the cluster says all"
            )
        made = super().__new__(cls, data, tensor)
        made.coordinator, made.hosts, made.host = coordinator, hosts, host
        return made

    def mesh(self) -> Mesh:
        """The hosts are joined, before anything else uses JAX, and their devices are one mesh.
        ParameterError where they do not find each other, or have other numbers of devices.
        """
        if self.hosts:
            start_hosts(self.coordinator, self.hosts, self.host)
        else:
            start_hosts()
        return make_mesh(self.data, self.tensor)


ONE_DEVICE = Devices(1, 1)


def devices_of(values: Mapping[str, Mapping[str, Any]]) -> Devices:
    """Those of a file that `read_options` has read; ParameterError where several hosts could not do
    what its section `training` asks for.
    """
    devices, training = values["devices"], values.get("training", {})
    if devices["hosts"] == 1:
        if devices["coordinator"] or devices["host"]:
            raise ParameterError("[devices] names a coordinator or a host, but hosts = 1")
        return Devices(devices["data"], devices["tensor"])
    found = HostsDevices(**devices)
    check_hosts(
        found.hosts,
        seconds=training.get("seconds", 0.0),
        save_seconds=training.get("save_seconds", 0.0),
    )
    return found
