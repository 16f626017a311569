"""The encoder: against a plain NumPy model, its twin, with padding, as a traced program."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import he_backend
import hesim
from models.config import EncoderConfig, preset
from models.data.batches import Batch
from models.nn.encoder import Model
from models.sites.sites import FitSettings, Sites, fit_ranges, function_of, site_names
from models.train.evaluate import fit_sites

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = EncoderConfig(hidden=8, heads=2, ffn=12, sequence=6, vocabulary=20, pooler=(5, 7))
BERT = {
    "norm_order": "post",
    "biases": True,
    "token_types": 2,
    "positions": "learned",
    "attention": "softmax",
    "activation": "gelu",
    "norm_epsilon": 1e-12,
}
RANGES = {"exp": (-6.0, 0.0), "inv_sqrt": (0.5, 6.0), "tanh": (-2.5, 2.5)}


def random_params(config: EncoderConfig, seed: int = 0):
    """Parameters in which gains, biases and adapters are not at their special initial values."""
    params = Model(config).init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def inputs(config: EncoderConfig, batch: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, config.vocabulary, (batch, config.sequence)).astype(np.int32)
    lengths = rng.integers(2, config.sequence + 1, batch)
    mask = (np.arange(config.sequence) < lengths[:, None]).astype(np.float32)
    return np.where(mask > 0, tokens, config.padding_id), mask


def twin_of(model: Model, degree: int) -> Sites:
    wide = {n: RANGES.get(function_of(n), (-3.0, 3.0)) for n in site_names(model.config)}
    degrees = tuple((f, degree) for f in ("exp", "gelu", "inv_sqrt", "relu", "tanh"))
    return fit_ranges(model.config, wide, FitSettings(degrees=degrees, margin=0.0))


def numpy_model(
    config: EncoderConfig, params, tokens: np.ndarray, mask: np.ndarray, types: np.ndarray | int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """States and logits of the textbook model in float64, nothing folded, nothing skipped."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)

    def norm(x: np.ndarray, affine=None) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)
        return x if affine is None else affine["scale"] * x + affine["bias"]

    def linear(x: np.ndarray, layer) -> np.ndarray:
        y = x @ layer["kernel"]
        if "lora_a" in layer:
            y = y + config.lora_scale * (x @ layer["lora_a"]) @ layer["lora_b"]
        return y + layer.get("bias", 0.0)

    def activation(x: np.ndarray) -> np.ndarray:
        kind = config.activation.removeprefix("glu_")
        if kind == "relu":
            return np.maximum(x, 0)
        if kind == "gelu":
            return x / 2 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
        if kind == "gelu_tanh":
            return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        if kind == "silu":
            return x / (1 + np.exp(-x))
        return x

    x = p["embedding"]["word"][tokens]
    if config.positions == "sinusoidal":
        place = np.arange(config.sequence)[:, None]
        i = np.arange(config.hidden)[None]
        angle = place / 10000 ** (2 * (i // 2) / config.hidden)
        x = x + p["embedding"]["position"] * np.where(i % 2 == 0, np.sin(angle), np.cos(angle))
    elif config.positions == "learned":
        x = x + p["embedding"]["position"]
    if config.token_types:
        x = x + p["embedding"]["token_type"][types]
    x = norm(x, p["embedding"].get("norm"))
    d = config.head_dim
    post = config.norm_order == "post"
    for block in p["blocks"].values():
        y = norm(x, block["attention_norm"]) if "attention_norm" in block and not post else x
        heads = []
        seen = np.broadcast_to(mask[:, None], (len(mask), *(config.sequence,) * 2))
        seen = np.tril(seen) if config.causal else seen
        weight = seen / seen.sum(-1, keepdims=True) if config.attention_mean else seen
        for h in range(config.heads):
            s = slice(h * d, (h + 1) * d)
            q, k, v = (linear(y, block["attention"][n])[..., s] for n in ("query", "key", "value"))
            dot = q @ k.transpose(0, 2, 1) / d**0.5
            kernel = np.exp(-((q[:, :, None] - k[:, None]) ** 2).sum(-1) / (2 * d**0.5))
            if config.attention == "gaussian":
                heads.append((kernel * weight) @ v)
                continue
            score = {
                "softmax": np.exp(dot),
                "gaussian_normalised": kernel,
                "power_softmax": dot**config.attention_power,
            }[config.attention] * (seen / seen.sum(-1, keepdims=True))
            extra = 0.0 if config.attention == "softmax" else config.norm_epsilon
            heads.append(score / (score.sum(-1, keepdims=True) + extra) @ v)
        x = x + linear(np.concatenate(heads, -1), block["attention"]["output"])
        x = norm(x, block["attention_norm"]) if post else x
        y = x if post else norm(x, block["ffn_norm"])
        up = linear(y, block["ffn"]["up"])
        if config.gated:
            half = config.ffn // 2
            inner = up[..., :half] * activation(up[..., half:])
        else:
            inner = activation(up)
        x = x + linear(inner, block["ffn"]["down"])
        x = norm(x, block["ffn_norm"]) if post else x
    x = x if post else norm(x, p["final_norm"])
    rows = mask.sum(-1).astype(int) - 1 if config.causal else 0
    z = x[np.arange(len(mask)), rows]
    for layer in p["pooler"].values():
        z = linear(z, layer)
    return x, linear(np.tanh(z), p["head"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "softmax"},
        {"activation": "gelu", "positions": "learned"},
        {"activation": "glu_bilinear", "positions": "none"},
        {"activation": "glu_gelu", "attention_mean": False},
        {"activation": "relu", "first_norm": True, "layers": 3},
        {"first_norm": True, "lora_rank": 2, "lora_alpha": 3.0},
        BERT,
        {**BERT, "attention": "gaussian", "activation": "glu_silu", "lora_rank": 1},
        {**BERT, "attention": "gaussian_normalised", "causal": True},
        {**BERT, "norm_order": "pre", "positions": "sinusoidal", "activation": "gelu_tanh"},
        {"attention": "gaussian_normalised"},
        {"attention": "power_softmax", "attention_power": 2},
        {"attention": "power_softmax", "causal": True},
        {"causal": True},
        {"causal": True, "attention": "softmax", "first_norm": True, "biases": True},
    ],
)
def test_exact_model_is_the_textbook_one(changes: dict):
    config = SMALL.replace(**changes)
    model, params = Model(config), random_params(config)
    tokens, mask = inputs(config)
    types = (np.arange(config.sequence) >= 3) * np.ones_like(tokens) if config.token_types else None
    states, logits = numpy_model(config, params, tokens, mask, 0 if types is None else types)

    @jax.jit
    def run(params, tokens, mask, types):
        x = model.embed(params, tokens, types)
        return model.hidden_states(params, x, mask)[0], model.encrypted_forward(params, x, mask)

    ours = run(params, tokens, mask, types)
    np.testing.assert_allclose(ours[1], logits, rtol=2e-4, atol=5e-5)
    real = mask > 0
    np.testing.assert_allclose(np.asarray(ours[0])[real], states[real], rtol=2e-4, atol=5e-5)


@pytest.mark.parametrize("changes", [{}, {"first_norm": True}])
def test_polynomial_twin_approaches_the_exact_model(changes: dict):
    config = SMALL.replace(activation="glu_gelu", **changes)
    model, params = Model(config), Model(config).init(jax.random.key(3))
    tokens, mask = inputs(config)
    exact = model.predict(params, tokens, mask)
    errors = [
        float(
            jnp.max(
                jnp.abs(model.with_sites(twin_of(model, d)).predict(params, tokens, mask) - exact)
            )
        )
        for d in (5, 31)
    ]
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] / 10


def test_one_site_may_be_polynomial_alone():
    model = Model(SMALL)
    params = model.init(jax.random.key(0))
    tokens, mask = inputs(SMALL)
    exact = model.predict(params, tokens, mask)
    for name, function in twin_of(model, 31).entries:
        if function_of(name) == "relu":
            continue
        mixed = model.with_sites(Sites.of({name: function}))
        np.testing.assert_allclose(mixed.predict(params, tokens, mask), exact, atol=2e-3)


@pytest.mark.parametrize("attention", ["gaussian", "softmax"])
def test_padding_never_changes_a_result(attention: str):
    config = SMALL.replace(attention=attention)
    params = random_params(config)
    tokens, mask = inputs(config)
    other = np.where(mask > 0, tokens, (tokens + 7) % config.vocabulary)
    assert (other != tokens).any()
    model = Model(config)
    np.testing.assert_array_equal(
        model.predict(params, tokens, mask), model.predict(params, other, mask)
    )
    changed = np.where(np.arange(config.sequence) == 1, (tokens + 7) % config.vocabulary, tokens)
    assert not np.allclose(
        model.predict(params, tokens, mask), model.predict(params, changed, mask)
    )


def test_twin_traces_to_polynomial_operations_without_affine_levels():
    model = Model(preset("demo", vocabulary=30, sequence=4, hidden=8, ffn=8, pooler=(4,)))
    twin = model.with_sites(twin_of(model, 7))
    params = model.init(jax.random.key(0))
    tokens, mask = inputs(model.config)
    x = twin.embed(params, tokens)
    program = hesim.trace(twin.encrypted_forward, params, x, mask, encrypted=(1,))
    polynomials = [op.params["poly"] for op in program.ops if op.name == "polynomial"]
    assert len(polynomials) == len(site_names(model.config))
    assert {p.depth for p in polynomials} == {3}
    # q, scores, exp, S V, output | square, 1/sqrt, product, up, relu, gate, down ...
    attention, norm, ffn = 1 + 1 + 3 + 1 + 1, 1 + 3 + 1, 1 + 3 + 1 + 1
    assert (
        program.depth
        == (attention + norm + ffn) + (norm + attention + norm + ffn) + norm + 1 + 3 + 1
    )
    np.testing.assert_allclose(
        jax.jit(program)(params, x, mask), twin.predict(params, tokens, mask), rtol=1e-5, atol=1e-6
    )


def test_exact_model_is_refused_by_the_tracer_at_a_line_of_the_caller():
    model = Model(SMALL)
    params = model.init(jax.random.key(0))
    tokens, mask = inputs(SMALL)
    with pytest.raises(hesim.NotHomomorphicError):
        hesim.trace(
            model.encrypted_forward, params, model.embed(params, tokens), mask, encrypted=(1,)
        )


def test_gradient_of_encrypted_adapters_traces():
    from models.nn.lora import combine, is_adapter, partition
    from models.objectives.losses import squared_error

    config = SMALL.replace(lora_rank=2, activation="glu_bilinear")
    model = Model(config, low_rank=True)
    model = model.with_sites(twin_of(model, 5))
    adapters, frozen = partition(random_params(config), is_adapter)
    tokens, mask = inputs(config)

    def loss(adapters, frozen, x, mask, targets):
        return squared_error(model.encrypted_forward(combine(adapters, frozen), x, mask), targets)

    arguments = (
        adapters,
        frozen,
        model.embed(frozen, tokens),
        mask,
        jnp.eye(2)[jnp.array([0, 1, 1])],
    )
    program = hesim.trace(jax.grad(loss), *arguments, encrypted=(0, 2, 4))
    exact, found = jax.jit(jax.grad(loss))(*arguments), jax.jit(program)(*arguments)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(exact))


def test_dropout_draws_from_the_key_and_keeps_rows_normalised():
    model = Model(SMALL)
    params = model.init(jax.random.key(0))
    tokens, _ = inputs(SMALL)
    a, b = (model.embed(params, tokens, dropout=0.3, key=jax.random.key(s)) for s in (0, 1))
    assert not np.allclose(a, b)
    np.testing.assert_allclose(jnp.var(a, axis=-1), 1.0, atol=1e-2)
    np.testing.assert_allclose(jnp.mean(a, axis=-1), 0.0, atol=1e-5)


@pytest.mark.parametrize("lm_head", ["tied", "own"])
def test_states_and_words_are_the_textbook_ones(lm_head: Literal["tied", "own"]):
    config = SMALL.replace(first_norm=True, lm_head=lm_head)
    model, params = Model(config), random_params(config)
    tokens, mask = inputs(config)
    states, values = model.hidden_states(params, model.embed(params, tokens), mask)
    norm = params["final_norm"]
    np.testing.assert_allclose(
        jnp.mean((states - norm["bias"]) / norm["scale"], axis=-1), 0.0, atol=1e-5
    )
    assert set(values) == set(site_names(config)) - {"pooler.tanh"}
    logits = model.word_logits(params, states)
    assert logits.shape == (3, config.sequence, config.vocabulary)
    kernel = (
        params["embedding"]["word"].T
        if lm_head == "tied"
        else params["lm_head"]["linear"]["kernel"]
    )
    np.testing.assert_allclose(
        logits, states @ kernel + params["lm_head"]["bias"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("norm_order", ["pre", "post"])
@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_states_and_pooled_path_agree(pooling, norm_order):
    config = SMALL.replace(first_norm=True, pooling=pooling, norm_order=norm_order)
    model, params = Model(config), random_params(config)
    tokens, mask = inputs(config)
    mask[1, 3:] = 0
    states, _ = model.hidden_states(params, model.embed(params, tokens), mask)
    z = states[:, 0]
    if pooling == "mean":
        z = jnp.stack([row[real > 0].mean(axis=0) for row, real in zip(states, mask)])
    for layer in params["pooler"].values():
        z = z @ layer["kernel"]
    np.testing.assert_allclose(
        jnp.tanh(z) @ params["head"]["kernel"],
        model.predict(params, tokens, mask),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_mean_pooled_twin_can_be_encrypted():
    config = SMALL.replace(first_norm=True, pooling="mean")
    model, params = Model(config), random_params(config)
    twin = model.with_sites(twin_of(model, 31))
    tokens, mask = inputs(config)
    x = twin.embed(params, tokens)
    hesim.trace(twin.encrypted_forward, params, x, mask, encrypted=(1,))
    logits = twin.layer_outputs(params, x, mask).logits
    np.testing.assert_allclose(
        logits, twin.encrypted_forward(params, x, mask), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("pooling", "norm_order"), [("token", "pre"), ("mean", "post")])
def test_pairs_read_apart_are_two_sentences_compared(pooling, norm_order):
    config = SMALL.replace(
        first_norm=True, pooling=pooling, norm_order=norm_order, pairs="bi-encoder"
    )
    model, params = Model(config), random_params(config)
    tokens, mask = (x.reshape(2, 2, -1) for x in inputs(config, 4))
    mask[1, 1, 3:] = 0
    states, _ = jax.jit(model.hidden_states)(params, model.embed(params, tokens), mask)
    flat = mask.reshape(4, -1)
    pooled = states[:, 0]
    if pooling == "mean":
        pooled = jnp.stack([r[m > 0].mean(axis=0) for r, m in zip(states, flat, strict=True)])
    u, v = pooled[0::2], pooled[1::2]
    z = jnp.concatenate([u * v, (u - v) ** 2], axis=-1)
    for layer in params["pooler"].values():
        z = z @ layer["kernel"]
    found = model.predict(params, tokens, mask)
    np.testing.assert_allclose(jnp.tanh(z) @ params["head"]["kernel"], found, rtol=1e-4, atol=1e-5)
    swapped = model.predict(params, tokens[:, ::-1], mask[:, ::-1])
    np.testing.assert_allclose(swapped, found, rtol=1e-4, atol=1e-5)
    alone = Model(config.replace(pairs="cross-encoder"))
    np.testing.assert_allclose(
        states,
        jax.jit(alone.hidden_states)(params, alone.embed(params, tokens.reshape(4, -1)), flat)[0],
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"reads rows \(batch, 2, tokens, hidden\)"):
        model.predict(params, tokens[:, 0], mask[:, 0])


def test_a_twin_that_reads_pairs_apart_compiles_to_a_circuit():
    config = EncoderConfig(
        layers=1,
        hidden=8,
        heads=2,
        ffn=8,
        sequence=4,
        vocabulary=16,
        pooling="mean",
        pairs="bi-encoder",
    )
    model, params = Model(config), random_params(config)
    tokens, mask = (x.reshape(8, 2, -1) for x in inputs(config, 16))
    data = Batch(tokens, mask, np.zeros(8, np.int32))
    degrees = (("exp", 7), ("inv_sqrt", 7), ("relu", 7), ("tanh", 7))
    twin = model.with_sites(fit_sites(model, params, data, FitSettings(degrees=degrees)))
    arguments = (params, np.asarray(twin.embed(params, tokens[:2])), mask[:2])
    program = hesim.trace(twin.encrypted_forward, *arguments, encrypted=(1,))
    circuit = hesim.compile(program, hesim.CKKSParams(13, 6, 40, 50, 60, security=None))
    report = he_backend.run(program, *arguments, circuit=circuit, backend="slots")
    np.testing.assert_allclose(
        report.outputs, jax.jit(twin.encrypted_forward)(*arguments), rtol=1e-4, atol=1e-5
    )


def test_twin_has_the_states_of_the_exact_model():
    config = SMALL.replace(activation="glu_gelu", first_norm=True)
    model, params = Model(config), Model(config).init(jax.random.key(3))
    twin = model.with_sites(twin_of(model, 31))
    tokens, mask = inputs(config)
    exact, _ = jax.jit(model.hidden_states)(params, model.embed(params, tokens), mask)
    ours, _ = jax.jit(twin.hidden_states)(params, twin.embed(params, tokens), mask)
    np.testing.assert_allclose(ours, exact, atol=1e-3)


def test_words_need_a_head():
    model = Model(SMALL)
    with pytest.raises(ValueError, match="lm_head"):
        model.word_logits(model.init(jax.random.key(0)), jnp.zeros((1, 8)))
