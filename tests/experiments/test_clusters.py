"""Commands that are told of a cluster: what is none is refused before anything else is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import main
from experiments.cli.common import REFUSED
from he_backend.clusters.cluster import Cluster
from he_backend.errors import ClusterError

COMMANDS = {
    "validate": ("validate", "runs/no-such-model"),
    "encrypted-finetune": ("encrypted-finetune", "--task", "reviews"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1:1"])
def test_a_cluster_that_is_none_is_refused_at_once(
    command: str, address: str, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("he_backend.clusters.cluster.need_distributed", lambda: None)
    monkeypatch.setattr(Cluster, "of", classmethod(_of))
    with pytest.raises(SystemExit) as done:
        main([*COMMANDS[command], "--cluster", address])
    assert done.value.code == REFUSED
    said = " ".join(capsys.readouterr().err.split())
    assert address in said and ("scheduler" in said)
    assert not list(tmp_path.iterdir())


def _of(cls: type[Cluster], given: str) -> Cluster:
    """As where Dask is installed."""
    return cls(given)


def test_what_is_no_address_is_an_error_of_the_backend() -> None:
    with pytest.raises(ClusterError, match="scheduler's address"):
        Cluster("nowhere")
