"""Sharding: the same losses on eight devices as on one, how parameters lie, what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from hesim.errors import ParameterError
from models.config import EncoderConfig, preset
from models.encoder import Model
from models.layout import stored, with_halves
from models.sharding import check_config, make_mesh, spec_of, start_hosts
from models.step import initial_state

RUN = Path(__file__).parent / "sharded_run.py"
TRAINING = Path(__file__).parent / "spread_training.py"
EXCHANGED = Path(__file__).parent / "collectives.py"
TOP = Path(__file__).resolve().parents[2]


def start(
    devices: int, *arguments: Any, optimise: bool = False, run: Path = RUN
) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if optimise else "1",
        "PYTHONPATH": os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, str(run), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = child.communicate()
    assert child.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_eight_devices_give_the_losses_of_one():
    single = result(start(1, "small", 1, 1, 10, 16))
    eight = result(start(8, "small", 2, 4, 10, 16))
    assert (single["devices"], eight["devices"]) == (1, 8)
    assert "tensor" in eight["query"]
    assert single["losses"][0] != single["losses"][-1]
    np.testing.assert_allclose(eight["losses"], single["losses"], rtol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        ("full", "lora", "distil"),
        pytest.param(("encrypted",), marks=pytest.mark.slow),
    ],
)
def test_fine_tuning_and_distillation_on_four_devices_are_as_on_one(how, tmp_path):
    for one, four in result(start(4, tmp_path, *how, run=TRAINING)).values():
        assert (one["query"], four["query"]) == ("one device", "P(None, 'tensor')")
        assert len(set(one["losses"])) > 1
        np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-5)


def test_a_gated_block_exchanges_what_a_plain_one_does_and_is_saved_as_stored(tmp_path):
    found = result(start(4, tmp_path, optimise=True, run=EXCHANGED))
    for gated, plain in (("glu_relu", "relu"), ("glu_gelu", "gelu")):
        assert found[gated] == found[plain]
        for kinds in found[gated].values():  # activations and gradients of norms, no weights
            assert set(kinds) == {"all-reduce"}
    same = found["same"]
    assert same["shapes"] and same["checkpoint"]
    assert same["distance"] < 1e-5
    assert same["laid"] == ["(32, 2, 32)", "P(None, None, 'tensor')"]
    assert same["stored"] == ["(32, 64)", "P(None, 'tensor')"]


def test_halves_are_parted_and_joined_to_the_bit():
    model = Model(EncoderConfig(layers=1, hidden=16, ffn=24, biases=True, pooler=(8,)))
    state = initial_state(model.init(jax.random.key(0)), optax.adam(1e-3), jax.random.key(1))
    laid: Any = with_halves(state, 4)
    for tree in (laid.params, laid.optimizer[0].mu):
        up = tree["blocks"][0]["ffn"]["up"]
        assert (up["kernel"].shape, up["bias"].shape) == ((16, 2, 12), (2, 12))
    kernel = state.params["blocks"][0]["ffn"]["up"]["kernel"]
    np.testing.assert_array_equal(
        laid.params["blocks"][0]["ffn"]["up"]["kernel"][:, 1], kernel[:, 12:]
    )
    back = stored(laid)._replace(key=state.key)
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert one.shape == two.shape and bool((one == two).all())
    rows = jax.random.normal(jax.random.key(2), (2, 5, 16))
    mask = np.ones((2, 5), np.float32)
    plain, parted = (model.hidden_states(p, rows, mask)[0] for p in (state.params, laid.params))
    np.testing.assert_allclose(plain, parted, rtol=1e-6, atol=1e-6)
    whole = with_halves(state, 5)  # 12 columns a half
    assert whole.params["blocks"][0]["ffn"]["up"]["kernel"] is kernel


def test_a_plain_up_projection_stays_as_it_is():
    config = EncoderConfig(layers=1, hidden=16, ffn=24, activation="relu", pooler=(8,))
    params = Model(config).init(jax.random.key(0))
    kernel = with_halves(params, 4)["blocks"][0]["ffn"]["up"]["kernel"]
    assert kernel is params["blocks"][0]["ffn"]["up"]["kernel"]


@pytest.mark.slow
def test_the_papers_model_on_eight_devices():
    single = result(start(1, "paper", 1, 1, 10, 8, optimise=True))
    eight = result(start(8, "paper", 2, 4, 10, 8, optimise=True))
    np.testing.assert_allclose(eight["losses"], single["losses"], rtol=1e-5)


@pytest.mark.slow
def test_two_hosts_are_one_mesh():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    hosts = [start(2, "small", 2, 2, 3, 8, address, 2, number) for number in range(2)]
    found = [result(host) for host in hosts]
    single = result(start(1, "small", 1, 1, 3, 8))
    assert [f["devices"] for f in found] == [4, 4]
    for one in found:
        np.testing.assert_allclose(one["losses"], single["losses"], rtol=1e-5)


def test_heads_and_features_are_cut_and_the_rest_is_whole():
    mesh: Any = AbstractMesh((2, 4), ("data", "tensor"))
    shapes = jax.eval_shape(Model(preset("paper")).init, jax.random.key(0))
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="."): spec_of(path, leaf.shape, mesh)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert specs["blocks.0.attention.query.kernel"] == PartitionSpec(None, "tensor")
    assert specs["blocks.1.attention.output.kernel"] == PartitionSpec("tensor", None)
    assert specs["blocks.0.ffn.down.kernel"] == PartitionSpec("tensor", None)
    assert specs["embedding.word"] == PartitionSpec("tensor", None)
    assert specs["blocks.0.ffn_norm.scale"] == PartitionSpec()
    assert specs["head.kernel"] == PartitionSpec()


def test_an_array_that_does_not_divide_is_whole():
    mesh: Any = AbstractMesh((1, 4), ("data", "tensor"))
    path = (jax.tree_util.DictKey("query"), jax.tree_util.DictKey("kernel"))
    assert spec_of(path, (6, 6), mesh) == PartitionSpec()


def test_meshes_and_models_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="no mesh of data=1000"):
        make_mesh(data=1000)
    with pytest.raises(ParameterError, match="at least one"):
        make_mesh(tensor=0)
    mesh: Any = AbstractMesh((1, 4), ("data", "tensor"))
    with pytest.raises(ParameterError, match="heads"):
        check_config(EncoderConfig(heads=2), mesh)
    with pytest.raises(ParameterError, match="coordinator"):
        start_hosts("127.0.0.1:1")
