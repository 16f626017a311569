"""Pre-trained models: what comes back, what starts fresh, what is refused, what is shipped."""

from __future__ import annotations

import re
import socket
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.config import EncoderConfig
from models.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from models.errors import CheckpointError, FreshParametersWarning
from models.nn.encoder import Model
from models.nn.lora import count, is_adapter_or_head
from models.objectives.mlm import Masking
from models.sites.sites import met_ranges, site_names
from models.weights.folder import save_model
from models.weights.shipped import SHIPPED, PretrainedModel, load_pretrained, rounded, shipped_names

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
    assert found.notes == {"steps": 7, "started_fresh": []}
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


def test_adapters_of_a_start_are_added_to_its_matrices(tmp_path):
    config = CONFIG.replace(lora_rank=2, lora_alpha=3.0)
    params = Model(config).init(jax.random.key(3))
    query = params["blocks"][0]["attention"]["query"]
    query["lora_b"] = jax.random.normal(jax.random.key(4), query["lora_b"].shape)
    save_model(tmp_path / "m", config, params, TOKENIZER)
    for rank in (0, 4):
        found = load_pretrained(tmp_path / "m", lora_rank=rank)
        projected = found.params["blocks"][0]["attention"]["query"]
        np.testing.assert_allclose(
            projected["kernel"],
            query["kernel"] + 1.5 * query["lora_a"] @ query["lora_b"],
            rtol=1e-5,
            atol=1e-7,
        )
        if rank:
            assert not projected["lora_b"].any()


def tuned(folder, notes):
    """A model whose adapters, pooler and head were trained, as a folder."""
    config = CONFIG.replace(lora_rank=2, lora_alpha=3.0)
    params = jax.tree.map(lambda leaf: leaf + 0.25, Model(config).init(jax.random.key(5)))
    save_model(folder, config, params, TOKENIZER, notes)
    return config, params


def test_a_finetuned_model_keeps_its_head_and_adapters(tmp_path, recwarn):
    config, params = tuned(tmp_path / "m", {"task": "glue/RTE"})
    for classes in (None, config.classes):
        changes: dict[str, Any] = {} if classes is None else {"classes": classes}
        found = load_pretrained(tmp_path / "m", key=jax.random.key(9), **changes)
        jax.tree.map(np.testing.assert_array_equal, found.params, params)
    merged = load_pretrained(tmp_path / "m", lora_rank=0)
    ids = np.ones((2, 4), np.int32)
    mask = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(
        merged.model.predict(merged.params, ids, mask),
        Model(config).predict(params, ids, mask),
        rtol=2e-5,
        atol=1e-6,
    )
    assert not recwarn.list


def test_what_another_task_replaces_is_said(tmp_path):
    config, params = tuned(tmp_path / "m", {"task": "glue/RTE"})
    with pytest.warns(
        FreshParametersWarning, match=rf"head.*random numbers \(classes {config.classes} -> 5\)"
    ):
        found = load_pretrained(tmp_path / "m", classes=5)
    fresh = found.notes["started_fresh"]
    assert {name.partition(".")[0] for name in fresh} >= {"pooler", "head"}
    assert all(is_adapter_or_head(tuple(name.split("."))) for name in fresh)
    query = params["blocks"][0]["attention"]["query"]
    np.testing.assert_allclose(
        found.params["blocks"][0]["attention"]["query"]["kernel"],
        query["kernel"] + 1.5 * query["lora_a"] @ query["lora_b"],
        rtol=1e-5,
        atol=1e-7,
    )


def test_fresh_parts_may_be_asked_for(tmp_path, recwarn):
    _, params = tuned(tmp_path / "m", {"task": "glue/RTE"})
    found = load_pretrained(tmp_path / "m", fresh=True)
    assert (found.params["head"]["kernel"] != params["head"]["kernel"]).any()
    assert not found.params["blocks"][0]["attention"]["query"]["lora_b"].any()
    assert not recwarn.list


@pytest.mark.parametrize(
    "notes", [{"corpus_digest": "0"}, {"fresh": ["head.kernel", "pooler.0.kernel"]}]
)
def test_parts_that_no_training_touched_start_fresh(tmp_path, notes, recwarn):
    _, params = tuned(tmp_path / "m", notes)
    one, two = (load_pretrained(tmp_path / "m", key=jax.random.key(k)) for k in (1, 2))
    assert (one.params["head"]["kernel"] != params["head"]["kernel"]).any()
    assert (one.params["head"]["kernel"] != two.params["head"]["kernel"]).any()
    assert not recwarn.list


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
    with pytest.raises(CheckpointError, match="no pre-trained model ''"):
        load_pretrained("")


SHIPPED_NAMES = ("tiny-gaussian", "tiny-softmax")

HELD_OUT = (
    "The old man walked slowly down the road to the village, and nobody asked where he had been.",
    "She opened the letter with trembling hands, read it twice, and said nothing to her brother.",
    "During the war the city was destroyed, but the bridge was rebuilt within ten years.",
    "The government promised to lower taxes on small businesses and to build more schools.",
    "When the temperature of a gas rises, its molecules move faster and the pressure increases.",
    "A cell divides into two new cells, each of which contains the same number of chromosomes.",
    "He was born in London in 1856 and moved to the United States with his parents.",
    "The river rises in the mountains and flows through three states before it reaches the sea.",
    "In the first half of the season the team won seven games and lost only two of them.",
    "I do not believe that the people of this country will ever give up their freedom.",
    "Prices fall when the supply of a good is greater than the demand for it.",
    "The captain looked at the dark clouds and told his men to bring the boat to the shore.",
)
"""Written for this test, so no model has seen them."""


@pytest.fixture(scope="module", params=SHIPPED_NAMES)
def shipped(request) -> tuple[str, PretrainedModel]:
    """A model that comes with the package, loaded where no connection can be made."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("a shipped model needs no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refused)
        patch.setattr(socket, "create_connection", refused)
        return request.param, load_pretrained(request.param)


def test_both_models_are_shipped_small_and_with_one_vocabulary():
    assert shipped_names() == SHIPPED_NAMES
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) < 10e6
    one, two = (load_pretrained(name) for name in SHIPPED_NAMES)
    assert one.tokenizer.vocabulary == two.tokenizer.vocabulary
    assert one.tokenizer.size == one.model.config.vocabulary == 8192
    attentions = [found.model.config.attention for found in (one, two)]
    assert attentions == ["gaussian", "softmax"]
    assert one.model.config.replace(attention="softmax") == two.model.config.replace(
        attention_mean=one.model.config.attention_mean
    )


def hidden_word_losses(found: PretrainedModel, *, alone: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nats that each word of the sentences costs where it is hidden, and the words (n,). alone: all
    the other words of its sentence are hidden too.
    """
    model, params, tokenizer, _ = found
    encoded = tokenizer.encode(HELD_OUT, length=32)
    assert not encoded.truncated.any() and not (encoded.ids == tokenizer.unk_id).any()
    is_word = encoded.ids >= len(SPECIAL_TOKENS)
    rows, places = np.nonzero(is_word)
    number = np.arange(len(rows))
    ids, words = encoded.ids[rows], encoded.ids[rows, places]
    ids[number, places] = tokenizer.mask_id
    if alone:
        ids[is_word[rows]] = tokenizer.mask_id
    x = model.embed(params, ids)
    states, _ = jax.jit(model.hidden_states)(params, x, encoded.mask[rows])
    logits = model.word_logits(params, states[number, places])
    return -np.asarray(jax.nn.log_softmax(logits))[number, words], words


def test_a_shipped_model_guesses_hidden_words_from_their_neighbours(shipped):
    """The words' own entropy is what the best guess by frequency alone would cost, one that knew
    how often each word occurs in these very sentences.
    """
    losses, words = hidden_word_losses(shipped[1], alone=False)
    shares = np.bincount(words)[words] / len(words)
    entropy = float(-np.log(shares).mean())
    assert len(words) > 200 and entropy < 0.55 * np.log(8192)
    assert losses.mean() < 0.8 * entropy
    without = hidden_word_losses(shipped[1], alone=True)[0]
    assert losses.mean() < without.mean() - 2.0


def test_a_models_card_says_what_its_notes_say(shipped):
    name, found = shipped
    card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    notes, config = found.notes, found.model.config

    def said(pattern: str) -> list[float]:
        match = re.search(pattern.replace("#", r"([\d,]+(?:\.\d+)?)"), card)
        assert match is not None, f"the card says nothing like {pattern!r}"
        return [float(number.replace(",", "")) for number in match.groups()]

    assert card.startswith(f"# {name}\n") and f"{config.attention} attention" in card
    shape = [config.layers, config.hidden, config.heads]
    assert said("# layers, # features and # heads") == shape
    assert said("# parameters") == [notes["parameters"]] == [count(found.params)]
    assert said("# tokens to train on; vocabulary of #") == [notes["corpus_tokens"], 8192]
    steps, rows, length, tokens, times = said("# steps of # rows of # tokens: # tokens, # times")
    assert (steps, rows, tokens) == (notes["steps"], notes["rows"], notes["tokens"])
    assert tokens == steps * rows * length
    assert times == pytest.approx(tokens / notes["corpus_tokens"], abs=0.005)
    assert said(r"- # seconds") == [notes["seconds"]] and notes["seconds"] < 3 * 3600
    measured = [notes["held_out_loss"], notes["held_out_accuracy"]]
    assert said(r"this model \| # \| #") == pytest.approx(measured, abs=5e-5)
    before = notes["held_out_loss_before_rounding"]
    assert said(r"before rounding \| #") == pytest.approx([before], abs=5e-5)
    baseline = notes["held_out_loss_by_word_frequency"]
    assert said(r"word frequency alone \| #") == pytest.approx([baseline], abs=5e-5)
    assert notes["held_out_loss"] < 0.6 * baseline < 0.6 * np.log(8192)
    table = re.findall(r"^\| ([\w.]+\.\w+) \| (\S+) \| (\S+) \|$", card, flags=re.MULTILINE)
    ranges = {site: (float(low), float(high)) for site, low, high in table}
    encoder = {site for site in site_names(config) if not site.startswith("pooler")}
    assert ranges.keys() == notes["ranges_met"].keys() == encoder
    for site, pair in ranges.items():
        assert pair == pytest.approx(notes["ranges_met"][site], rel=5e-3)


def test_the_ranges_of_a_card_are_those_of_the_weights(shipped):
    """Two packed rows with hidden words, as in pre-training, meet most of each range and hardly
    leave it.
    """
    model, params, tokenizer, notes = shipped[1]
    words = np.concatenate(tokenizer.pieces(HELD_OUT))
    half = words[: len(words) // 2 * 2].reshape(2, -1).astype(np.int32)
    rows = np.concatenate([np.full((2, 1), tokenizer.cls_id, np.int32), half], axis=1)
    batch = Masking.of(tokenizer).apply(rows, np.random.default_rng(0))
    _, values = model.hidden_states(params, model.embed(params, batch.tokens), batch.mask)
    for site, (low, high) in met_ranges(values, model.units()).items():
        least, most = notes["ranges_met"][site]
        room = 0.1 * (most - least)
        assert least - room < float(low) and float(high) < most + room, site
        assert float(high) - float(low) > 0.25 * (most - least), site
