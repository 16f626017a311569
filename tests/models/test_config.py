"""Configurations: what they refuse, their JSON, the presets' sizes."""

from typing import Any

import jax
import pytest

from experiments.training.finetune_settings import TaskSettings
from models.config import PRESETS, EncoderConfig, preset
from models.nn.encoder import Model
from models.nn.lora import count, is_adapter_or_head, partition
from models.recipes.finetune_settings import FineTune
from models.train.fingerprint import described, differing


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden": 10, "heads": 3},
        {"ffn": 7},
        {"layers": 0},
        {"attention": "linear"},
        {"activation": "swish"},
        {"positions": "rotary"},
        {"pooler": ()},
        {"lora_targets": ("queries",)},
        {"norm_order": "both"},
        {"attention": "power_softmax", "attention_power": 3},
        {"lm_head": "shared"},
        {"token_types": -1},
        {"norm_epsilon": 0.0},
        {"norm_epsilon": float("inf")},
        {"initial_std": float("nan")},
        {"lora_alpha": float("inf")},
        {"layers": 2.0},
        {"sequence": "8"},
        {"lora_rank": 65},
    ],
)
def test_impossible_shapes_are_refused(bad: dict):
    with pytest.raises(ValueError):
        EncoderConfig(**bad)


def test_lists_are_taken_as_tuples():
    listed = EncoderConfig(pooler=[8], lora_targets=["query"])  # pyright: ignore[reportArgumentType]
    assert hash(listed) == hash(EncoderConfig(pooler=(8,), lora_targets=("query",)))
    settings = FineTune(adapted=["value"], buckets=[8, 16])  # pyright: ignore[reportArgumentType]
    assert hash(settings) == hash(FineTune(adapted=("value",), buckets=(8, 16)))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_round_trip(name: str):
    assert EncoderConfig.from_json(preset(name).to_json()) == preset(name)


def test_configurations_of_before_and_after_are_told_apart():
    assert EncoderConfig.from_json('{"hidden": 32, "pooler": [8]}') == EncoderConfig(
        hidden=32, pooler=(8,)
    )
    with pytest.raises(ValueError, match="gate"):
        EncoderConfig.from_json('{"gate": true}')
    with pytest.raises(ValueError, match="object"):
        EncoderConfig.from_json("[1]")


@pytest.mark.parametrize(("former", "now"), [("joint", "cross-encoder"), ("apart", "bi-encoder")])
def test_former_names_of_values_are_read(former: Any, now: Any):
    written = EncoderConfig(pairs=now).to_json()
    assert EncoderConfig.from_json(written.replace(now, former)) == EncoderConfig(pairs=now)
    assert FineTune(pairs=former) == FineTune(pairs=now)
    assert TaskSettings(pairs=former).fine_tune("lora").pairs == now
    stored = {**described(FineTune(pairs=now)), "pairs": former}
    assert differing(stored, FineTune(pairs=now)) == []
    other = FineTune(pairs="bi-encoder" if former == "joint" else "cross-encoder")
    assert differing(stored, other)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="demo"):
        preset("huge")


def test_paper_trains_fifteen_matrices():
    shapes = jax.eval_shape(Model(preset("paper")).init, jax.random.key(0))
    trained, frozen = partition(shapes, is_adapter_or_head)
    assert len(jax.tree.leaves(trained)) == 15
    # Adapters: 2 layers, q k v, A and B of 768 x 2; head: 768 x 32, 32 x 1024, 1024 x 2.
    assert count(trained) == 2 * 3 * 2 * 768 * 2 + 768 * 32 + 32 * 1024 + 1024 * 2
    words = 32768 * 768
    block = 4 * 768**2 + 768 * 3072 + 1536 * 768 + 4 * 768
    assert count(frozen) == words + 1 + 2 * 768 + 2 * block + 2 * 768


def test_bert_has_the_published_size():
    shapes = jax.eval_shape(Model(preset("bert")).init, jax.random.key(0))
    # Devlin et al. 2019: 110 million; embeddings, 12 blocks, pooler, head.
    embedding = (30522 + 512 + 2) * 768 + 2 * 768
    block = 4 * (768**2 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert embedding + 12 * block + 768**2 + 768 == 109_482_240
    assert count(shapes) == 109_482_240 + 768 * 2 + 2
