"""Checkpoints: what is saved comes back to the bit, and another model's is refused by name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.config import EncoderConfig
from models.errors import CheckpointError
from models.nn.encoder import Model
from models.recipes.finetune_settings import FineTune
from models.sites.sites import fit_ranges, function_of, site_names
from models.train.checkpoint import Checkpoints, sites_from_json, sites_to_json
from models.train.fingerprint import described
from models.train.step import initial_state

CONFIG = EncoderConfig(layers=1, hidden=8, heads=2, ffn=8, sequence=4, vocabulary=9, pooler=(4,))


def state_of(config: EncoderConfig, seed: int):
    key = jax.random.key(seed)
    return initial_state(Model(config).init(key), optax.adam(1e-3), key)


def test_round_trip_with_notes(tmp_path):
    saved = state_of(CONFIG, 5)
    with Checkpoints(tmp_path) as store:
        assert store.latest is None
        store.save(3, saved, {"config": CONFIG, "history": [{"loss": 0.1}]})
    with Checkpoints(tmp_path) as store:
        found = store.restore(state_of(CONFIG, 0))
        assert store.latest == 3
        assert store.notes()["config"] == described(CONFIG)
        assert store.notes()["history"] == [{"loss": 0.1}]
    jax.tree.map(np.testing.assert_array_equal, found.params, saved.params)
    assert jnp.array_equal(jax.random.key_data(found.key), jax.random.key_data(saved.key))
    assert jax.tree.structure(found) == jax.tree.structure(saved)


def test_what_cannot_be_written_is_said_and_the_one_before_remains(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device")

    with Checkpoints(tmp_path) as store:
        store.save(1, {"x": jnp.ones(2)})
        monkeypatch.setattr(store._manager, "save", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            store.save(2, {"x": jnp.ones(2)})
        assert store.latest == 1 and float(store.restore({"x": jnp.zeros(2)})["x"][0]) == 1


@pytest.mark.parametrize("file", ["notes/metadata", "state/manifest.ocdbt", "state/_METADATA"])
def test_a_damaged_checkpoint_is_named(tmp_path, file: str):
    with Checkpoints(tmp_path) as store:
        store.save(1, {"x": jnp.ones(2)}, {"a": 1})
    (tmp_path / "1" / file).write_bytes(b"x")
    with (
        Checkpoints(tmp_path) as store,
        pytest.raises(CheckpointError, match=r"1 is damaged .* remove it"),
    ):
        store.resume({"x": jnp.zeros(2)}, {"a": 1})


def largest(folder):
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("cut", [True, False])
def test_arrays_that_cannot_be_read_are_named(tmp_path, cut: bool):
    tree = {"x": jax.random.normal(jax.random.key(0), (64, 64))}
    with Checkpoints(tmp_path) as store:
        store.save(1, tree)
    file = largest(tmp_path / "1" / "state")
    content = file.read_bytes()
    file.unlink()
    if cut:
        file.write_bytes(content[: len(content) // 2])
    with Checkpoints(tmp_path) as store, pytest.raises(CheckpointError, match="1 is damaged"):
        store.restore(tree)


def test_no_changed_bit_of_a_state_is_taken(tmp_path):
    """Most of the file is the array's numbers, where the format itself notices nothing."""
    tree = {"x": jax.random.normal(jax.random.key(0), (64, 64)), "y": jnp.ones(3)}
    with Checkpoints(tmp_path) as store:
        store.save(1, tree, {"a": 1})
        assert store.notes() == {"a": 1}
    file = largest(tmp_path / "1" / "state")
    content = file.read_bytes()
    for place in (len(content) // 4, len(content) // 3, len(content) // 2):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with Checkpoints(tmp_path) as store, pytest.raises(CheckpointError, match="damaged"):
            store.restore(tree)
    file.write_bytes(content)
    with Checkpoints(tmp_path) as store:
        assert (store.restore(tree)["x"] == tree["x"]).all()


def test_a_setting_that_is_new_stops_no_training_at_its_default(tmp_path):
    """The checkpoint of a version that did not know it, whose settings were one text."""
    given = FineTune(batch=16)
    fields = described(given)
    del fields["remat"]
    with Checkpoints(tmp_path) as store:
        store.save(1, {"x": jnp.ones(2)}, {"settings": json.dumps(fields)})
        assert store.resume({"x": jnp.zeros(2)}, {"settings": given})[0]["x"].sum() == 2
        with pytest.raises(CheckpointError, match="settings.remat is new and true"):
            store.resume({"x": jnp.zeros(2)}, {"settings": FineTune(batch=16, remat=True)})


@pytest.mark.parametrize("text", [False, True])
def test_another_training_is_refused_with_what_differs(tmp_path, text: bool):
    given = FineTune(batch=32, learning_rate=0.1)
    fields = described(given)
    del fields["remat"], fields["epochs"]  # an older version did not know them
    old = {"settings": json.dumps(fields | {"gone": 1}) if text else fields | {"gone": 1}}
    new = {"settings": dataclasses.replace(given, batch=64, epochs=2), "data": "b"}
    with Checkpoints(tmp_path) as store:
        store.save(1, {"x": jnp.ones(2)}, old | {"data": "a"})
        with pytest.raises(CheckpointError) as raised:
            store.resume({"x": jnp.zeros(2)}, new, "fine-tuning")
    said = str(raised.value)
    assert "holds another fine-tuning (settings.gone was 1 and there is no such setting" in said
    assert (
        "settings.epochs is new and 2, settings.batch is 32 there and 64 here, other data)" in said
    )


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as store:
        for step in range(4):
            store.save(step, {"x": jnp.full((2,), step)})
        assert float(store.restore({"x": jnp.zeros(2, jnp.int32)})["x"][0]) == 3
        with pytest.raises(CheckpointError):
            store.restore({"x": jnp.zeros(2, jnp.int32)}, step=0)


def test_another_model_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as store:
        store.save(1, state_of(CONFIG, 0))
        with pytest.raises(CheckpointError, match="kernel"):
            store.restore(state_of(CONFIG.replace(ffn=12), 0))


def test_empty_folder(tmp_path):
    with Checkpoints(tmp_path) as store, pytest.raises(CheckpointError, match="no checkpoint"):
        store.restore({"x": jnp.zeros(2)})


def test_sites_keep_every_bit():
    table = {"exp": (-5.0, 0.0), "inv_sqrt": (0.5, 3.1), "relu": (-2.0, 2.0), "tanh": (-1.0, 1.0)}
    sites = fit_ranges(CONFIG, {n: table[function_of(n)] for n in site_names(CONFIG)})
    assert sites_from_json(sites_to_json(sites)) == sites
