"""Sharding: the same losses on eight devices as on one, how parameters lie, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from experiments.training import devices
from experiments.training.distil import read_distilling
from experiments.training.pretrain import read_job
from hesim.errors import ParameterError
from models.config import EncoderConfig, preset
from models.nn.encoder import Model
from models.train.gated_halves import stored, with_halves
from models.train.sharding import (
    agreed,
    check_config,
    check_hosts,
    make_mesh,
    spec_of,
    start_hosts,
)
from models.train.step import initial_state

SCRIPTS = Path(__file__).parent.parent / "scripts"
RUN = SCRIPTS / "sharded_run.py"
TRAINING = SCRIPTS.parent / "recipes" / "spread_training.py"
EXCHANGED = SCRIPTS / "collectives.py"
ON_HOSTS = SCRIPTS / "hosts_run.py"
TOP = Path(__file__).resolve().parents[3]


def start(
    devices: int, *arguments: Any, optimise: bool = False, run: Path = RUN
) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    if not optimise:
        flags = f"{flags} {os.environ['XLA_FLAGS']}"
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


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


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
    address = free_address()
    hosts = [start(2, "small", 2, 2, 3, 8, address, 2, number) for number in range(2)]
    found = [result(host) for host in hosts]
    single = result(start(1, "small", 1, 1, 3, 8))
    assert [f["devices"] for f in found] == [4, 4]
    for one in found:
        np.testing.assert_allclose(one["losses"], single["losses"], rtol=1e-5)


HOSTS = """
[model]
layers = 1
hidden = 16
ffn = 16
pooler = [8]
[text]
length = 16
vocabulary = 60
held_out = 0.2
[training]
steps = 8
batch = 16
rate = 2e-2
chunk = 0
log_every = 2
evaluate_every = 4
save_seconds = 0
initial = "random"
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Some files of sentences."""
    folder = tmp_path / "texts"
    folder.mkdir()
    words = np.array(["the", "red", "fox", "sees", "a", "black", "crow", "and", "two", "swans"])
    random = np.random.default_rng(0)
    for part in range(4):
        lines = [" ".join(random.choice(words, 9)) for _ in range(120)]
        (folder / f"{part}.txt").write_text("\n".join(lines))
    return folder


def hosts_of(
    folder: Path, texts: Path, *arguments: str, changes: Mapping[str, str] = MappingProxyType({})
) -> list[subprocess.Popen[str]]:
    """`hosts_run.py` on two hosts of two devices each; changes: in the second one's settings."""
    address = free_address()
    hosts: list[subprocess.Popen[str]] = []
    for number in range(2):
        section = f'data = 2\ntensor = 2\nhosts = 2\ncoordinator = "{address}"\nhost = {number}'
        settings = folder / f"{number}.toml"
        text = f"{HOSTS}[devices]\n{section}\n"
        for old, new in changes.items() if number else ():
            text = text.replace(old, new)
        settings.write_text(text)
        out = folder / f"out{number}"
        hosts.append(start(2, settings, texts, out, *arguments, run=ON_HOSTS))
    return hosts


@pytest.mark.slow
def test_pretraining_on_two_hosts_is_as_on_one_and_goes_on_to_the_bit(tmp_path, texts):
    found = [result(host) for host in hosts_of(tmp_path, texts)]
    (tmp_path / "one.toml").write_text(HOSTS)
    single = result(start(1, tmp_path / "one.toml", texts, tmp_path / "one", run=ON_HOSTS))
    assert single["devices"] == [1, 1] and len(single["losses"]) == 4
    assert [one["kept"] for one in found] == [["2", "4"], []]  # the first host's, for both
    for one in found:
        assert one["devices"] == [2, 4]
        assert one["steps"] == [8, 4, 8] and one["up"] == single["up"] == [16, 16]
        assert one["parts"] == one["whole"] == found[0]["whole"]
        np.testing.assert_allclose(one["losses"], single["losses"], rtol=1e-5)
        np.testing.assert_allclose(one["held_out"], single["held_out"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", [("full", "lora", "distil"), ("encrypted",)])
def test_fine_tuning_and_distillation_on_two_hosts_are_as_on_one_device(how, tmp_path):
    address = free_address()
    hosts = [start(2, tmp_path / f"{i}", *how, address, i, run=TRAINING) for i in range(2)]
    found = [result(host) for host in hosts]
    for name in how:
        (one, four), (_, other) = (host[name] for host in found)
        assert len(set(one["losses"])) > 1
        np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-5)
        assert four["digest"] == other["digest"] != one["digest"]


@pytest.mark.slow
def test_hosts_with_other_settings_are_told_what_differs(tmp_path, texts):
    hosts = hosts_of(tmp_path, texts, changes={"rate = 2e-2": "rate = 3e-2"})
    for host, told in zip(hosts, ("another host says", "settings.rate is 0.02 there and 0.03")):
        out, err = host.communicate(timeout=300)
        assert host.returncode and told in err, (out, err[-2000:])


@pytest.mark.slow
def test_a_host_that_is_stopped_stops_all_at_the_same_step(tmp_path, texts):
    one, other = (result(host) for host in hosts_of(tmp_path, texts, "asked"))
    assert one == other and 0 < one["step"] < 8 and not one["finished"]
    kept = [int(path.name) for path in (tmp_path / "out0" / "checkpoints").iterdir()]
    assert max(kept) == one["step"]


@pytest.mark.slow
def test_a_host_that_is_stopped_alone_is_told(tmp_path, texts):
    left, alone = hosts_of(tmp_path, texts, "alone")
    try:
        assert "stopped alone" in result(alone)["error"]
    finally:
        left.kill()
        left.communicate()


def test_questions_and_clocks_of_several_hosts():
    assert agreed(lambda: True)() and not agreed(lambda: False)()
    check_hosts(1, seconds=5.0, save_seconds=180.0)
    check_hosts(2, seconds=0.0, save_seconds=0.0)
    with pytest.raises(ParameterError, match="seconds = 0"):
        check_hosts(2, seconds=5.0, save_seconds=0.0)
    with pytest.raises(ParameterError, match="save_seconds = 0"):
        check_hosts(2, seconds=0.0, save_seconds=180.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Device:
    process_index: int


def test_a_host_without_a_device_is_refused():
    found = [Device(number // 2) for number in range(4)]
    with pytest.raises(ParameterError, match="hosts without a device"):
        make_mesh(2, 1, found)
    assert make_mesh(2, 2, found).shape == {"data": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("hosts = 2", "wants the coordinator"),
        ('hosts = 0\ncoordinator = "a:1"', "wants the coordinator"),
        ('hosts = 2\ncoordinator = "a:1"\nhost = 2', "numbered from 0"),
        ('coordinator = "a:1"', "hosts = 1"),
        ('hosts = 2\ncoordinator = "a:1"\n[training]\nsave_seconds = 9.0', "save_seconds = 0"),
        ('hosts = 2\ncoordinator = "a:1"\n[training]\nsteps = 2\nseconds = 9.0', "set steps"),
    ],
)
def test_hosts_in_a_settings_file_that_cannot_work_together(section, told, tmp_path):
    (tmp_path / "s.toml").write_text(f"[devices]\n{section}\n")
    for read in (read_job, read_distilling):
        with pytest.raises(ParameterError, match=told):
            read(tmp_path / "s.toml")


def test_hosts_in_a_settings_file_are_joined_with_what_it_says(tmp_path, monkeypatch):
    joined: list[tuple[Any, ...]] = []
    monkeypatch.setattr(devices, "start_hosts", lambda *given: joined.append(given))
    path = tmp_path / "s.toml"
    path.write_text(
        '[training]\nsave_seconds = 0\n[devices]\nhosts = 3\ncoordinator = "a:1"\nhost = 2\n'
    )
    mesh = read_job(path).devices.mesh()
    path.write_text("[training]\nsave_seconds = 0\n[devices]\nhosts = 0\n")
    read_distilling(path).devices.mesh()
    assert joined == [("a:1", 3, 2), ()]
    assert mesh is not None and mesh.shape == {"data": 1, "tensor": 1}


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
