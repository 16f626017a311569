"""Commands that are told of a cluster: what is none is refused before anything else is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from experiments.cli.common import REFUSED
from experiments.console import Display
from experiments.validation.run import run_validation
from experiments.validation.settings import Validation
from he_backend.clusters.cluster import Cluster
from he_backend.errors import ClusterError
from models.weights.folder import load_model, save_model
from tests.experiments.conftest import write_encoder

COMMANDS = {
    "validate": ("validate", "runs/no-such-model"),
    "encrypted-finetune": ("encrypted-finetune", "--task", "reviews"),
    "study tradeoff": ("study", "tradeoff", "--task", "reviews"),
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


@pytest.mark.slow
def test_a_validation_on_a_cluster_gives_what_one_here_gives(glue: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    bare = write_encoder(tmp_path / "bare", glue, heads=1, pooler=(4,))
    saved, folder = load_model(bare), tmp_path / "tuned"
    notes = {"task": "glue/SST-2", "length": 8, "buckets": [8], "sites": "", "encrypted": ""}
    save_model(folder, saved.config, saved.params, saved.tokenizer, notes)
    asked = Validation(
        str(folder), sentences=2, length=8, backend="slots", compare="none", data_dir=str(glue)
    )
    here, _ = run_validation(asked, tmp_path / "here", display=Display(quiet=True))
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "processes": False}
    with distributed.LocalCluster(n_workers=2, protocol="tcp://", **options) as cluster:
        there, _ = run_validation(
            asked, tmp_path / "there", display=Display(quiet=True), cluster=cluster
        )
    np.testing.assert_allclose(there.encrypted, here.encrypted, atol=1e-9)
    assert there.broken == here.broken
