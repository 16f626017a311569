"""A model's folder: what comes back, and what is refused."""

import re

import jax
import numpy as np
import pytest

from models.config import EncoderConfig
from models.data.tokenizer import Tokenizer
from models.errors import CheckpointError, TensorFileError
from models.nn.encoder import Model
from models.weights.folder import flatten, load_model, save_model, unflatten
from models.weights.safetensors import read_safetensors, write_safetensors

CONFIG = EncoderConfig(
    layers=1, hidden=8, heads=2, ffn=8, sequence=4, vocabulary=15, pooler=(4,), lm_head="own"
)


def params_of(config: EncoderConfig = CONFIG):
    return Model(config).init(jax.random.key(0))


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    tokenizer = Tokenizer.train(["one two", "two one"], min_count=1)
    params = params_of()
    save_model(tmp_path / "model", CONFIG, params, tokenizer, {"steps": 3})
    found = load_model(tmp_path / "model")
    assert found.config == CONFIG
    assert found.notes == {"steps": 3}
    assert found.tokenizer is not None and found.tokenizer.vocabulary == tokenizer.vocabulary
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    with pytest.raises(CheckpointError, match="already exists"):
        save_model(tmp_path / "model", CONFIG, params)


def test_other_names_shapes_and_numbers_are_refused(tmp_path):
    good = {name: np.asarray(leaf) for name, leaf in flatten(params_of()).items()}
    bad = dict(good)
    del bad["head.kernel"]
    bad["pooler.0.kernel"] = np.zeros((8, 5), np.float32)
    bad["tail"] = np.zeros(1, np.float32)
    save_model(tmp_path / "bad", CONFIG, unflatten(bad))
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "bad")
    for words in ("head.kernel is missing", "tail is unexpected", "(8, 5), wanted (8, 4)"):
        assert words in str(error.value)
    infinite = good | {"final_norm.bias": np.full(8, np.inf, np.float32)}
    save_model(tmp_path / "infinite", CONFIG, unflatten(infinite))
    with pytest.raises(CheckpointError, match=r"final_norm\.bias is not finite"):
        load_model(tmp_path / "infinite")
    with pytest.raises(CheckpointError, match="no saved model"):
        load_model(tmp_path / "nowhere")


def test_what_a_folder_is_instead_is_said(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="not finished"):
        load_model(run)
    save_model(run / "model", CONFIG, params_of())
    with pytest.raises(CheckpointError, match=re.escape(f"there is one in {run / 'model'}")):
        load_model(run)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"hidden_act": "gelu"}')
    with pytest.raises(CheckpointError, match="hesim convert"):
        load_model(tmp_path / "bert")
    (run / "model" / "notes.json").write_text("3")
    with pytest.raises(CheckpointError, match=r"notes\.json holds no object"):
        load_model(run / "model")


def test_a_vocabulary_beyond_the_embedding_is_refused(tmp_path):
    words = Tokenizer.train(["alpha beta gamma delta epsilon"], min_count=1)
    assert words.size > CONFIG.vocabulary
    save_model(tmp_path / "m", CONFIG, params_of(), words)
    with pytest.raises(CheckpointError, match=f"tokenizer has {words.size} tokens, the model 15"):
        load_model(tmp_path / "m")


def test_names_and_trees_are_inverse():
    params = params_of()
    again = unflatten(flatten(params))
    assert jax.tree.structure(again) == jax.tree.structure(params)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8", "bool"])
def test_tensor_file_keeps_types_shapes_and_bits(tmp_path, dtype):
    array = np.asarray(jax.random.normal(jax.random.key(1), (3, 2))).astype(jax.numpy.dtype(dtype))
    tensors = {"a": array, "scalar": array[0, 0], "empty": array[:0], "view": array.T}
    write_safetensors(tmp_path / "x", tensors)
    found = read_safetensors(tmp_path / "x")
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].shape == tensor.shape


def test_damaged_tensor_files_are_refused(tmp_path):
    path = tmp_path / "x"
    write_safetensors(path, {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.int64)})
    content = path.read_bytes()
    cases = {
        "cut off": content[:-1],
        "header alone": content[:4],
        "another format": b"\xff" * 64,
        "a header of another form": content.replace(b'"dtype"', b'"dtypo"', 1),
        "an unknown type": content.replace(b"F32", b"F33", 1),
        "a wrong shape": content.replace(b"[6]", b"[7]", 1),
        "one tensor over another": content.replace(b"[16,40]", b"[8, 32]", 1),
    }
    for what, broken in cases.items():
        assert broken != content, what
        path.write_bytes(broken)
        with pytest.raises(TensorFileError, match=f"{path}.*fetch it again"):
            read_safetensors(path)
    with pytest.raises(TensorFileError, match="cannot write.*complex"):
        write_safetensors(path, {"a": np.zeros(2, np.complex256)})
    with pytest.raises(TensorFileError, match="cannot read"):
        read_safetensors(tmp_path / "nothing")
