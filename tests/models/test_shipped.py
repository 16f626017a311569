"""Pre-trained models: what comes back, what starts fresh, what is refused, what is shipped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.checkpoint import CheckpointError
from models.config import EncoderConfig
from models.encoder import Model
from models.shipped import SHIPPED, load_pretrained, rounded, shipped_names
from models.tokens import Tokenizer
from models.weights import save_model

TOKENIZER = Tokenizer.train(
    ["a small boat on the old sea", "the captain said no more"], min_count=1
)
CONFIG = EncoderConfig(
    layers=1,
    hidden=16,
    heads=2,
    ffn=16,
    sequence=8,
    vocabulary=TOKENIZER.size,
    pooler=(8,),
    lm_head="tied",
)


@pytest.fixture
def saved(tmp_path):
    model = Model(CONFIG)
    params = model.init(jax.random.key(3))
    stored = rounded(params)
    save_model(tmp_path / "m", CONFIG, stored, TOKENIZER, {"steps": 7})
    return tmp_path / "m", params, stored


def test_what_was_saved_comes_back_rounded_as_said(saved):
    folder, params, stored = saved
    found = load_pretrained(folder)
    assert found.notes == {"steps": 7}
    assert found.tokenizer.vocabulary == TOKENIZER.vocabulary
    assert found.model.config == CONFIG
    np.testing.assert_array_equal(found.params["embedding"]["word"], stored["embedding"]["word"])
    kernel = params["blocks"][0]["attention"]["query"]["kernel"]
    back = found.params["blocks"][0]["attention"]["query"]["kernel"]
    assert 0 < float(jnp.max(jnp.abs(back - kernel))) < 0.01 * float(jnp.max(jnp.abs(kernel)))
    assert back.dtype == jnp.float32


def test_the_parts_of_a_task_start_fresh(saved):
    folder, params, stored = saved
    one = load_pretrained(folder, classes=5, lora_rank=2, lm_head="none", key=jax.random.key(1))
    two = load_pretrained(folder, classes=5, lora_rank=2, lm_head="none", key=jax.random.key(2))
    assert one.params["head"]["kernel"].shape == (8, 5)
    assert (one.params["head"]["kernel"] != two.params["head"]["kernel"]).any()
    assert "lora_a" in one.params["blocks"][0]["attention"]["query"]
    np.testing.assert_array_equal(
        one.params["blocks"][0]["ffn"]["up"]["kernel"], stored["blocks"][0]["ffn"]["up"]["kernel"]
    )


def test_another_shape_a_damaged_file_and_no_folder_are_refused(saved):
    folder = saved[0]
    with pytest.raises(CheckpointError, match="embedding.word is"):
        load_pretrained(folder, vocabulary=CONFIG.vocabulary + 1)
    with pytest.raises(CheckpointError, match="changed"):
        load_pretrained(folder, no_such_field=1)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="no saved model"):
        load_pretrained(folder)
    with pytest.raises(CheckpointError, match="no pre-trained model"):
        load_pretrained("no-such-model")


def test_the_shipped_weights_are_small_enough_to_commit():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) < 10e6
    for name in shipped_names():
        assert (SHIPPED / name / "README.md").is_file()
