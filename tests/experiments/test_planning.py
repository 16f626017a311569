"""`hesim plan`: any model of ours, planned without weights, data or keys."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.cli import main
from experiments.cli.common import REFUSED
from experiments.planning import plan_model
from hesim.params import CKKSParams
from models.config import EncoderConfig, preset
from models.encrypted.forward import forward_circuit
from models.nn.encoder import Model
from models.sites.sites import fit_ranges, site_names
from models.train.checkpoint import sites_to_json
from models.weights.folder import save_model

CONFIG = preset("demo", layers=1, hidden=8, heads=1, ffn=8, sequence=2, pooler=(4,), vocabulary=50)


def saved(folder: Path, config: EncoderConfig, **notes: object) -> str:
    save_model(folder, config, Model(config).init(jax.random.key(0)), None, dict(notes))
    return str(folder)


def test_a_model_is_planned_by_the_shapes_of_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "m", CONFIG)
    with pytest.raises(SystemExit) as done:
        main(["plan", folder, "--batch", "16", "--levels", "4", "--listing"])
    assert not done.value.code
    shown = capsys.readouterr().out
    found = plan_model(folder, 16, ring={"levels": 4})
    ledger = found.circuit.ledger
    assert "CKKSParams(log_n=14, levels=4, " in shown and "program encrypted_forward" in shown
    assert "16 members of the batch side by side" in shown
    for name in ("refresh_rounds", "rotations", "rotation_keys", "key_bytes", "peak_bytes"):
        value = f"{getattr(ledger, name):,}"
        assert re.search(rf"^{name.replace('_', ' ')} +{value}$", shown, re.M), name
    for op in ledger.operations:
        assert re.search(rf"^{op.name} +{re.escape(op.layout)}", shown, re.M), op


def test_a_finetuned_model_brings_its_polynomials_and_its_adapters_are_merged(
    tmp_path: Path,
) -> None:
    config = CONFIG.replace(lora_rank=2)
    sites = fit_ranges(config, dict.fromkeys(site_names(config), (0.5, 1.5)))
    folder = saved(tmp_path / "m", config, sites=sites_to_json(sites), length=1)
    found = plan_model(folder, 4)
    assert found.model.config.lora_rank == 0 and found.model.config.sequence == 1
    assert found.polynomials == "those that it was trained with"
    expected = forward_circuit(found.model, CKKSParams(14, 3, 40, 50, 60), 4)
    np.testing.assert_array_equal(found.circuit.kind, expected.kind)


def test_what_cannot_run_alone_says_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "m", CONFIG)
    with pytest.raises(SystemExit) as done:
        main(["plan", folder, "--batch", "4", "--no-interactive"])
    assert done.value.code == REFUSED
    assert re.search(r"LevelError: the computation needs \d+ levels", capsys.readouterr().err)
