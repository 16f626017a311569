"""BERT checkpoints: a random one against an independent NumPy forward; what is refused; swaps.

The slow tests read real checkpoints from the folders in HESIM_BERT_FOLDERS, separated by colons,
and STS-B from the folder in HESIM_GLUE_DIR.
"""

import functools
import json
import math
import os
import struct

import jax
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import spearmanr

from models.data.batches import Batch
from models.data.datasets import load
from models.errors import CheckpointError, TensorFileError
from models.nn.encoder import Model
from models.recipes.agreement import embeddings
from models.start.convert import convert
from models.weights.bert import Bert, load_bert, read_tensors
from models.weights.folder import load_model
from models.weights.onnx import read_onnx
from models.weights.safetensors import write_safetensors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "sea", "##s", "old", "."]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 7,
    "type_vocab_size": 2,
    "vocab_size": 10,
    "layer_norm_eps": 1e-12,
}


def random_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors as PyTorch names and shapes them: (outputs, inputs)."""
    rng = np.random.default_rng(seed)
    h, f = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], h),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], h),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], h),
    }
    norms = ["embeddings.LayerNorm"]
    linears = {"pooler.dense": (h, h)}
    for i in range(config["num_hidden_layers"]):
        place = f"encoder.layer.{i}"
        norms += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{place}.attention.{name}"] = (h, h)
        linears[f"{place}.intermediate.dense"] = (f, h)
        linears[f"{place}.output.dense"] = (h, f)
    for name in norms:
        shapes |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    out = {n: rng.normal(0, 0.4, s).astype(np.float32) for n, s in shapes.items()}
    for name in norms:
        out[f"{name}.weight"] += 1
    return out


def numpy_bert(tensors, config: dict, ids, mask, types) -> tuple[list[np.ndarray], np.ndarray]:
    """States of BERT (Devlin et al. 2019) in float64, those of the embedding and after each layer,
    and its pooled vector.
    """
    t = {name: np.asarray(tensor, float) for name, tensor in tensors.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        spread = np.sqrt(x.var(-1, keepdims=True) + config["layer_norm_eps"])
        scaled = (x - x.mean(-1, keepdims=True)) / spread
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][ids]
    x = x + t["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
    states = [x]
    heads = config["num_attention_heads"]
    for i in range(config["num_hidden_layers"]):
        place = f"encoder.layer.{i}"
        q, k, v = (
            np.stack(np.split(linear(x, f"{place}.attention.self.{n}"), heads, axis=-1), axis=1)
            for n in ("query", "key", "value")
        )
        scores = np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
        scores = np.exp(np.where(mask[:, None, None] > 0, scores, -np.inf))
        mixed = np.einsum("bhij,bhjd->bhid", scores / scores.sum(-1, keepdims=True), v)
        mixed = np.concatenate(list(np.moveaxis(mixed, 1, 0)), axis=-1)
        update = linear(mixed, f"{place}.attention.output.dense")
        x = norm(x + update, f"{place}.attention.output.LayerNorm")
        inner = linear(x, f"{place}.intermediate.dense")
        inner = inner / 2 * (1 + erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{place}.output.dense"), f"{place}.output.LayerNorm")
        states.append(x)
    pooled = np.tanh(linear(x[:, 0], "pooler.dense")) if "pooler.dense.weight" in t else x[:, 0]
    return states, pooled


def all_states(bert: Bert, ids, mask, types) -> list[np.ndarray]:
    """Our own states as `numpy_bert` lists them. The rows of `embed` still lack the affine part of
    the embedding's LayerNorm, which the first block folds in.
    """
    model, norm = Model(bert.config), bert.params["embedding"]["norm"]
    x = model.embed(bert.params, ids, types)
    outputs = jax.jit(model.layer_outputs)(bert.params, x, mask)
    return [np.asarray(s) for s in (norm["scale"] * x + norm["bias"], *outputs.states)]


def write(folder, tensors, config=None, words=WORDS):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    if words:
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "bert", random_tensors(CONFIG))


def inputs():
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 10, (4, 6)).astype(np.int32)
    mask = (np.arange(6) < np.array([6, 4, 3, 5])[:, None]).astype(np.float32)
    return ids, mask, (np.arange(6) >= 3) * np.ones_like(ids)


def test_hidden_states_are_those_of_an_independent_forward(folder):
    bert = load_bert(folder)
    model, (ids, mask, types) = Model(bert.config), inputs()
    x = model.embed(bert.params, ids, types)
    states, _ = jax.jit(model.hidden_states)(bert.params, x, mask)
    expected, pooled = numpy_bert(random_tensors(CONFIG), CONFIG, ids, mask, types)
    real = mask > 0
    np.testing.assert_allclose(np.asarray(states)[real], expected[-1][real], atol=2e-5)
    for found, wanted in zip(all_states(bert, ids, mask, types), expected, strict=True):
        np.testing.assert_allclose(found[real], wanted[real], atol=2e-5)
    head = bert.params["head"]
    logits = jax.jit(model.encrypted_forward)(bert.params, x, mask)
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], atol=2e-5)
    assert bert.fresh == ("head.bias", "head.kernel")
    assert bert.tokenizer is not None
    assert bert.tokenizer.pieces(["Old seas."]) == [[8, 6, 7, 9]]


def test_wrapped_names_old_norm_names_and_heads_of_pretraining_are_understood(folder, tmp_path):
    wrapped = {}
    for name, tensor in random_tensors(CONFIG).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        wrapped["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    wrapped["cls.predictions.bias"] = np.zeros(10, np.float32)
    wrapped["classifier.weight"] = np.ones((3, 12), np.float32)
    wrapped["classifier.bias"] = np.zeros(3, np.float32)
    wrapped["bert.embeddings.position_ids"] = np.arange(7)[None]
    plain, other = load_bert(folder), load_bert(write(tmp_path / "w", wrapped))
    assert other.config.classes == 3
    assert other.fresh == ()
    assert other.unused == ("cls.predictions.bias", "embeddings.position_ids")
    for part in ("embedding", "blocks", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, plain.params[part], other.params[part])
    fewer = load_bert(tmp_path / "w", classes=1)
    assert fewer.fresh == ("head.bias", "head.kernel")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    tensors = random_tensors(CONFIG)
    del tensors["encoder.layer.1.output.dense.weight"]
    tensors["encoder.layer.0.attention.self.key.weight"] = np.zeros((12, 11), np.float32)
    tensors["encoder.layer.2.output.dense.weight"] = np.zeros((12, 20), np.float32)
    with pytest.raises(CheckpointError) as error:
        load_bert(write(tmp_path / "a", tensors))
    for words in (
        "encoder.layer.1.output.dense.weight is missing",
        "encoder.layer.0.attention.self.key.weight is (12, 11), wanted (12, 12)",
        "encoder.layer.2.output.dense.weight is unexpected",
    ):
        assert words in str(error.value)
    broken = random_tensors(CONFIG)
    broken["pooler.dense.bias"][0] = np.nan
    with pytest.raises(CheckpointError, match=r"pooler\.0\.bias is not finite"):
        load_bert(write(tmp_path / "b", broken))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "mish"}, "unknown activation 'mish'"),
        ({"model_type": "roberta"}, "'roberta' model"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"num_attention_heads": 5}, "multiple of heads"),
        ({"hidden_size": None}, "config.json"),
        ({"hidden_size": "abc"}, "hidden_size is 'abc'"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers is inf"),
        ({"vocab_size": 9}, r"wanted \(9, 12\)"),
    ],
)
def test_other_architectures_are_refused(tmp_path, change, words):
    with pytest.raises(CheckpointError, match=words):
        load_bert(write(tmp_path / "x", random_tensors(CONFIG), CONFIG | change))


def test_incomplete_folders_are_refused(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_bert(tmp_path)
    with pytest.raises(CheckpointError, match="learned positions"):
        load_bert(folder, length=8)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(CheckpointError, match="cased"):
        load_bert(folder)
    for setting, words in (("strip_accents", "accents"), ("tokenize_chinese_chars", "CJK")):
        (folder / "tokenizer_config.json").write_text(json.dumps({setting: False}))
        with pytest.raises(CheckpointError, match=words):
            load_bert(folder)
    (folder / "tokenizer_config.json").unlink()
    vocabulary = (folder / "vocab.txt").read_bytes()
    (folder / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + vocabulary)
    assert load_bert(folder).tokenizer is not None
    (folder / "vocab.txt").write_bytes(vocabulary.replace(b"old", b"Old"))
    with pytest.raises(CheckpointError, match="cased vocabulary .*'Old'"):
        load_bert(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        load_bert(folder)


def test_a_missing_configuration_is_said_with_where_to_take_it_from(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json.*where the model was published"):
        load_bert(folder)


def shards(folder, tensors, index="model.safetensors.index.json"):
    """The folder with its weights in two files, and the places of the tensors."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    places = {n: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, n in enumerate(tensors)}
    for file in set(places.values()):
        write_safetensors(folder / file, {n: tensors[n] for n in tensors if places[n] == file})
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


@pytest.mark.parametrize(
    "index",
    [
        "model.safetensors.index.json",
        "model.safetensors.index.fp16.json",
        "model.fp16.safetensors.index.json",
    ],
)
def test_shards_give_the_same_model_as_one_file(folder, index):
    whole = load_bert(folder)
    shards(folder, random_tensors(CONFIG), index)
    jax.tree.map(np.testing.assert_array_equal, whole.params, load_bert(folder).params)


def test_a_variant_of_the_weights_is_read_where_it_is_the_only_one(folder):
    tensors = {n: t.astype(np.float16) for n, t in random_tensors(CONFIG).items()}
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.fp16.safetensors", tensors)
    head = load_bert(folder).params["embedding"]["word"]
    np.testing.assert_array_equal(head, tensors["embeddings.word_embeddings.weight"])
    write_safetensors(folder / "model.int8.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"several variants.*fp16.*int8.*remove all but one"):
        load_bert(folder)


def test_shards_that_do_not_fit_their_index_are_refused(folder):
    tensors = random_tensors(CONFIG)
    places = shards(folder, tensors)
    index = folder / "model.safetensors.index.json"

    def refused(words, **changes):
        index.write_text(json.dumps({"weight_map": places | changes}))
        with pytest.raises(CheckpointError, match=words):
            load_bert(folder)

    second = "model-00002-of-00002.safetensors"
    refused(r"lacks model-00003-of-00003", extra="model-00003-of-00003.safetensors")
    refused(r"disagree on 1 tensors, absent", absent=second)
    refused(r"no file beside it", absent="../model.safetensors")
    write_safetensors(folder / second, {"stray": np.ones(1, np.float32)})
    refused(r"disagree on \d+ tensors")
    for content in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="no index of shards"):
            load_bert(folder)


def test_more_tokens_than_learned_positions_are_refused(folder):
    bert = load_bert(folder, length=4)
    assert bert.config.sequence == 4
    with pytest.raises(ValueError, match="4 positions"):
        Model(bert.config).embed(bert.params, np.ones((1, 5), np.int32))


def test_conversion_keeps_the_weights_and_notes_what_it_swapped(folder, tmp_path):
    done = convert(
        folder, out=tmp_path / "he", attention="gaussian", activation="relu", lora_rank=2, length=6
    )
    assert done.swapped == {
        "attention": ("softmax", "gaussian"),
        "activation": ("gelu", "relu"),
        "attention_mean": (False, True),
        "lora_rank": (0, 2),
    }
    assert {n for n in done.fresh if "lora" not in n} == {"head.bias", "head.kernel"}
    bert, saved = load_bert(folder, length=6), load_model(tmp_path / "he")
    assert saved.config == done.config
    np.testing.assert_array_equal(
        saved.params["blocks"][1]["attention"]["query"]["kernel"],
        bert.params["blocks"][1]["attention"]["query"]["kernel"],
    )
    assert saved.notes["swapped"]["attention"] == ["softmax", "gaussian"]
    ids, mask, types = inputs()
    logits = jax.jit(Model(saved.config).predict)(saved.params, ids, mask, types)
    assert np.isfinite(logits).all()
    with pytest.raises(CheckpointError, match="already exists"):
        convert(folder, out=tmp_path / "he")


def test_an_unswapped_conversion_is_the_same_function_and_a_new_pooler_is_fresh(folder):
    bert = load_bert(folder)
    same = convert(folder, attention="softmax")
    jax.tree.map(np.testing.assert_array_equal, same.params, bert.params)
    assert same.swapped == {}
    other = convert(folder, pooler=(3, 8), layers=1)
    assert set(other.fresh) == {
        f"{place}.{part}"
        for place in ("pooler.0", "pooler.1", "head")
        for part in ("kernel", "bias")
    }
    assert any(n.startswith("blocks.1.") for n in other.dropped)


@pytest.mark.parametrize(
    "options", [{"attention": "linear"}, {"activation": "glu_relu"}, {"layers": 3}, {"layers": 0}]
)
def test_impossible_swaps_are_refused(folder, options):
    with pytest.raises(CheckpointError):
        convert(folder, **options)


def field(number: int, value: bytes | int) -> bytes:
    """One protobuf field: a whole number or bytes (lengths below 2^14)."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    """An ONNX file as PyTorch exports it: matrices transposed under made-up names."""
    graph = b""
    for n, (name, tensor) in enumerate(tensors.items()):
        stored = name
        if tensor.ndim == 2 and "embeddings" not in name:
            tensor, stored = np.ascontiguousarray(tensor.T), f"onnx::MatMul_{n}"
            place = "/" + name.removesuffix(".weight").replace(".", "/") + "/MatMul"
            node = b"".join(field(1, i) for i in (b"x", stored.encode())) + field(2, b"y")
            graph += field(1, node + field(3, place.encode()) + field(4, b"MatMul"))
        dims = b"".join(field(1, d) for d in tensor.shape)
        body = dims + field(2, 1) + field(8, stored.encode()) + field(9, tensor.tobytes())
        graph += field(5, body)
    return field(1, 8) + field(7, graph)


def test_onnx_gives_the_same_model_as_safetensors(folder, tmp_path):
    tensors = {
        n: t for n, t in random_tensors(CONFIG).items() if "layer.1" not in n and "pooler" not in n
    }
    one = CONFIG | {"num_hidden_layers": 1}
    ours = load_bert(write(tmp_path / "s", tensors, one))
    other = write(tmp_path / "o", {}, one)
    (other / "model.safetensors").unlink()
    (other / "model.onnx").write_bytes(onnx_bytes(tensors))
    theirs = load_bert(other)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert (
        ours.fresh
        == theirs.fresh
        == ("head.bias", "head.kernel", "pooler.0.bias", "pooler.0.kernel")
    )
    content = onnx_bytes(tensors)
    for broken in (content[:-3], b"", b"\xff" * 40, struct.pack("<Q", 3)):
        (other / "model.onnx").write_bytes(broken)
        with pytest.raises(TensorFileError):
            read_onnx(other / "model.onnx")


def varied_sentences(count: int) -> list[str]:
    """Different English sentences of 2 to 30 words, some with names, numbers, accents, capitals,
    punctuation, or words that no vocabulary holds.
    """
    random = np.random.default_rng(0)

    def one(words: str) -> str:
        return str(random.choice(words.split()))

    def thing() -> str:
        kind = one("old small red silent expensive Portuguese well-known half-finished naïve")
        return f"the {kind} " + one("ship teacher theory café river engine Königsberg contract cat")

    def clause() -> str:
        act = one("carried examined forgot sold wouldn't-touch rebuilt overtook loved")
        return f"{thing()} {act} {thing()}"

    ends = (".", "!", "?", "...", "; so they say.", " (1984).", " at 7:45 p.m.", "", ' -- "why?"')
    found: list[str] = []
    while len(found) < count:
        parts = [clause() for _ in range(int(random.integers(0, 4)))]
        joined = f" {one('and but because while')} ".join(parts) or one("Yes Never Zürich ☃ 42 Hm")
        extra = one("today slowly $3,000 antidisestablishmentarianism 日本 xqzvk e-mail don't")
        text = f"{joined} {extra}{random.choice(ends)}"
        text = text.upper() if random.random() < 0.1 else text[0].upper() + text[1:]
        if text not in found:
            found.append(text)
    return found


REAL = pytest.mark.skipif("HESIM_BERT_FOLDERS" not in os.environ, reason="no HESIM_BERT_FOLDERS")


def real_folders() -> list[str]:
    return [name for name in os.environ.get("HESIM_BERT_FOLDERS", "").split(":") if name]


@functools.cache
def raw(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The content of a folder's config.json, and its tensors."""
    with open(os.path.join(name, "config.json")) as file:
        return json.load(file), read_tensors(name)


def of_the_graph(path: str, ids: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]):
    """The output of that shape of an ONNX file, run by onnxruntime or, without it, by the NumPy
    evaluator of the onnx package: neither knows how this package names or turns its tensors.
    """
    feed = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
    try:
        from onnxruntime import InferenceSession  # pyright: ignore[reportMissingImports]

        outputs = InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        outputs = ReferenceEvaluator(path).run(None, feed)
    return next(np.asarray(out) for out in outputs if np.shape(out) == shape)


@pytest.mark.slow
@REAL
@pytest.mark.parametrize("name", real_folders())
def test_real_checkpoints_match_their_references(name: str):
    """Every hidden state of 100 sentences within 1e-4 of an independent forward, and the last one
    within as much of what an ONNX file computes itself.
    """
    bert = load_bert(name)
    assert bert.tokenizer is not None
    ids, mask, types, _ = bert.tokenizer.encode(varied_sentences(100), length=48)
    lengths = mask.sum(axis=1)
    assert lengths.min() < 6 and lengths.max() > 30 and (ids == bert.tokenizer.unk_id).any()
    states, real = all_states(bert, ids, mask, types), mask > 0
    config, tensors = raw(name)
    expected, _ = numpy_bert(tensors, config, ids, mask, types)
    errors = [
        float(np.abs(found[real] - wanted[real]).max())
        for found, wanted in zip(states, expected, strict=True)
    ]
    exports = [file for file in os.listdir(name) if file.endswith(".onnx")]
    if exports:
        graph = of_the_graph(os.path.join(name, exports[0]), ids, mask, states[-1].shape)
        errors.append(float(np.abs(states[-1][real] - graph[real]).max()))
    print(f"{name}: largest differences {', '.join(f'{error:.1e}' for error in errors)}")
    assert max(errors) < 1e-4


@pytest.mark.slow
@REAL
@pytest.mark.skipif("HESIM_GLUE_DIR" not in os.environ, reason="HESIM_GLUE_DIR names no folder")
@pytest.mark.parametrize("name", real_folders())
def test_real_checkpoints_embed_sentences_as_their_references_do(name: str):
    """Spearman correlation of the cosine of mean-pooled states with the ratings of the first 300
    pairs of STS-B's dev file.
    """
    bert = load_bert(name)
    assert bert.tokenizer is not None
    test = load("glue/STS-B").test
    assert test.pairs is not None
    ratings, config, tensors = test.labels[:300], *raw(name)
    ours, reference = [], []
    for texts in (test.texts[:300], test.pairs[:300]):
        ids, mask, types, _ = bert.tokenizer.encode(texts, length=64)
        batch = Batch(ids, mask, np.zeros(300, np.float32))
        ours.append(embeddings(Model(bert.config), bert.params, batch))
        states, _ = numpy_bert(tensors, config, ids, mask, types)
        pooled = (states[-1] * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        reference.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
    found, wanted = (
        float(np.asarray(spearmanr((first * second).sum(1), ratings))[0])
        for first, second in (ours, reference)
    )
    print(f"{name}: Spearman {found:.4f}, of the reference {wanted:.4f}")
    assert wanted > 0.8 and abs(found - wanted) < 1e-3
