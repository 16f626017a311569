"""Every preset's step exports for accelerators that are not here, without float64 or host calls."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

from hesim.errors import ParameterError
from models.config import PRESETS, preset
from models.export import export_step, has_float64, pretraining_arguments, task_arguments
from models.pretrain import Pretraining


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
        ({"token_types": 2, "pairs": "apart"}, (4, 2, 32), False),
    ],
)
def test_the_batch_is_of_the_form_that_the_model_reads(changes, shape, typed):
    _, (_, batch, _) = arguments = task_arguments(preset("demo", **changes), optax.adamw(1e-3), 4)
    assert batch.tokens.shape == batch.mask.shape == shape
    assert (batch.types is not None) == typed
    assert export_step(*arguments).platforms == ("tpu", "cuda")


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
