"""Every preset's step exports for accelerators that are not here, without float64 or host calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

from hesim.errors import ParameterError
from models.config import PRESETS, EncoderConfig, preset
from models.encrypted.settings import EncryptionSettings
from models.nn.encoder import Model
from models.nn.lora import is_adapter_or_head, partition
from models.recipes.export import export_step, has_float64, pretraining_arguments, task_arguments
from models.recipes.finetune_settings import FineTune
from models.recipes.finetune_step import TaskBatch as Dose
from models.recipes.finetune_step import compiled_step as step_of
from models.recipes.pretrain import Pretraining
from models.sites.sites import FitSettings, fit_ranges
from models.train.optim import AdamHEState
from models.train.step import initial_state


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_fine_tuning_step_of_each_preset(name: str):
    exported = export_step(*task_arguments(preset(name), optax.adamw(1e-3), 8))
    assert exported.platforms == ("tpu", "cuda")
    assert not has_float64(exported)
    assert len(export.deserialize(exported.serialize()).in_avals) == len(exported.in_avals)


@pytest.mark.parametrize(
    ("changes", "shape", "typed"),
    [
        ({}, (4, 32), False),
        ({"token_types": 2}, (4, 32), True),
        ({"token_types": 2, "pairs": "bi-encoder"}, (4, 2, 32), False),
    ],
)
def test_the_batch_is_of_the_form_that_the_model_reads(changes, shape, typed):
    _, (_, batch, _) = arguments = task_arguments(preset("demo", **changes), optax.adamw(1e-3), 4)
    assert batch.tokens.shape == batch.mask.shape == shape
    assert (batch.types is not None) == typed
    assert export_step(*arguments).platforms == ("tpu", "cuda")


DEGREES = tuple((kind, 7) for kind in ("exp", "gelu", "inv_sqrt", "relu", "tanh"))
RANGES = (
    ("exp", (-8.0, 0.0)),
    ("gelu", (-4.0, 4.0)),
    ("inv_sqrt", (0.2, 8.0)),
    ("relu", (-4.0, 4.0)),
    ("tanh", (-5.0, 5.0)),
)
SIMULATED = EncryptionSettings(fit=FitSettings(degrees=DEGREES, ranges=RANGES))


def lora_arguments(config: EncoderConfig, settings: FineTune, rows: int = 4) -> tuple[Any, Any]:
    """The step that `finetune` makes of these settings, and the shapes of its arguments."""
    config, how = settings.adapt(config), settings.encrypted
    model = Model(config)
    if how is not None:
        model = Model(config, fit_ranges(config, {}, how.fit), low_rank=True)
    optimizer, step = step_of(model, settings)
    key = jax.random.key(0)
    trained, frozen = partition(jax.eval_shape(model.init, key), is_adapter_or_head)
    state = jax.eval_shape(lambda p, k: initial_state(p, optimizer, k), trained, key)
    rectangle, number = (rows, config.sequence), jax.ShapeDtypeStruct((), jnp.float32)
    batch = Dose(
        tokens=jax.ShapeDtypeStruct(rectangle, jnp.int32),
        mask=jax.ShapeDtypeStruct(rectangle, jnp.float32),
        targets=jax.ShapeDtypeStruct((rows,), jnp.float32 if config.regression else jnp.int32),
        types=jax.ShapeDtypeStruct(rectangle, jnp.int32) if config.token_types > 1 else None,
        progress=number,
        penalty=number,
    )
    return step, (state, batch, frozen)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_lora_step_of_each_preset_with_adamw_he(name: str):
    step, arguments = lora_arguments(preset(name), FineTune())
    assert isinstance(arguments[0].optimizer[0], AdamHEState)
    exported = export_step(step, arguments)
    assert exported.platforms == ("tpu", "cuda")
    assert not has_float64(exported)
    assert "erf_inv" not in exported.mlir_module()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(EncoderConfig(layers=1, hidden=16, ffn=16, sequence=8, pooler=(8,)), id="2"),
        pytest.param(
            EncoderConfig(layers=1, hidden=16, ffn=16, sequence=8, pooler=(8,), classes=1),
            id="rating",
            marks=pytest.mark.slow,
        ),
        pytest.param(preset("demo"), id="demo", marks=pytest.mark.slow),
    ],
)
def test_the_simulated_lora_step_with_its_noise(config: EncoderConfig):
    step, arguments = lora_arguments(config, FineTune(encrypted=SIMULATED))
    exported = export_step(step, arguments)  # refuses calls to the host
    assert exported.platforms == ("tpu", "cuda")
    assert not has_float64(exported)
    assert "erf_inv" in exported.mlir_module(), "no noise is drawn"


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_pre_training_step_of_each_preset(name: str, precision):
    config = preset(name, lm_head="tied", lora_rank=0)
    activation = config.activation.removeprefix("glu_")
    settings = Pretraining(
        config=config,
        batch=8,
        accumulate=2,
        precision=precision,
        remat=True,
        penalty=1.0,
        targets=((activation, (-4.0, 4.0)),),
    )
    exported = export_step(*pretraining_arguments(settings))
    assert exported.platforms == ("tpu", "cuda")
    assert ("bf16" in exported.mlir_module()) == (precision == "bfloat16")


def test_a_decoders_step_guesses_at_every_place():
    config = preset("tiny", lm_head="tied", causal=True)
    arguments = pretraining_arguments(Pretraining(config=config, batch=4))
    assert arguments[1][1].words.shape == (4, config.sequence)
    assert export_step(*arguments).platforms == ("tpu", "cuda")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_call_to_the_host_is_refused(platform: str):
    step, arguments = task_arguments(preset("demo"), optax.adamw(1e-3), 4)

    def calling(state, *rest):
        after, metrics = step(state, *rest)
        jax.debug.callback(lambda loss: None, metrics["loss"])
        return after, metrics

    with pytest.raises(ParameterError, match="host by debug_callback"):
        export_step(calling, arguments, [platform])


def test_a_step_with_float64_is_refused():
    with jax.enable_x64(True):
        step, arguments = task_arguments(preset("demo"), optax.adamw(1e-3), 4)

        def wide(state, *rest):
            after, metrics = step(state, *rest)
            return after, {**metrics, "wide": metrics["loss"].astype(jnp.float64)}

        with pytest.raises(ParameterError, match="float64"):
            export_step(wide, arguments)
