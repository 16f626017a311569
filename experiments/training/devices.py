"""The devices of a training: the section `devices` that its settings file may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from experiments.training.options import Option
from models.sharding import make_mesh

__all__ = ["DEVICES", "ONE_DEVICE", "Devices", "devices_of"]

DEVICES = (
    Option("devices", "data", 1, "Devices over which the rows of a step are spread."),
    Option("devices", "tensor", 1, "Devices over which heads and feed-forward features are."),
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


ONE_DEVICE = Devices(1, 1)


def devices_of(values: Mapping[str, Mapping[str, Any]]) -> Devices:
    """Those of a file that `read_options` has read."""
    return Devices(**values["devices"])
