"""The estimate of training memory, beside what autograd really saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.shapes import toy_shape
from transformers import LlamaConfig, LlamaForCausalLM

from uniattn_pl import apply_architecture
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.plan import LayerPlan, costs
from uniattn_pl.plan.training_memory import TrainingMemory, training_memory
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage

BATCH, LENGTH = 2, 64


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def saved_bytes(model: Any) -> int:
    """Bytes of the distinct tensors, no parameters, that the forward of a decoder leaves for its backward."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, model.config.vocab_size, (BATCH, LENGTH))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uniattn", {"superblock_size": 3, "num_superblocks": 2}),
        ("cla", {"superblock_size": 2, "num_superblocks": 2}),
        ("llmdrop", {"layers": [3, 5], "compensation": True}),
    ],
)
def test_activations_are_what_autograd_saves(
    name: str, options: dict[str, Any], stage: int, dtype: torch.dtype
) -> None:
    if name == "cla" and stage == 1:
        options = {**options, "compensation": True}
    model = apply_architecture(llama(), name, **options).to(dtype)
    freeze_for_stage(model, stage)
    model.train()
    estimate = training_memory(
        model.layer_plan,  # type: ignore[arg-type]
        shape_of(model.config),
        stage=stage,
        micro_batch_size=BATCH,
        length=LENGTH,
        weight_bytes=dtype.itemsize,
        activation_bytes=dtype.itemsize,
        scored_fraction=0.0,
    )
    # left out: that the lowest trained layer keeps nothing of its input, one number per token and norm, rotary tables
    assert estimate.activations == pytest.approx(saved_bytes(model), rel=0.1)


def memory(stage: int, devices: int = 1, **options: Any) -> TrainingMemory:
    plan = LayerPlan.unmodified(4).reuse([3], 2, compensated=True)
    sizes = {"micro_batch_size": 2, "length": 16, "weight_bytes": 4, "activation_bytes": 2, **options}
    return training_memory(plan, toy_shape(4), stage=stage, num_devices=devices, **sizes)


def test_stage_1_holds_gradients_and_optimizer_states_of_w_c_only() -> None:
    assert memory(1).gradients == toy_shape(4).hidden_size ** 2 * 4
    assert memory(1).optimizer == 2 * memory(1).gradients
    plan = LayerPlan.unmodified(4).reuse([3], 2, compensated=True)
    assert memory(2).gradients == memory(2).weights == costs.parameters(plan, toy_shape(4)) * 4
    assert memory(1).activations < memory(2).activations


def test_sharing_weights_divides_them_and_gathers_some() -> None:
    alone, shared = memory(2), memory(2, devices=4)
    assert shared.weights == alone.weights // 4
    assert shared.optimizer == alone.optimizer // 4
    assert shared.gathered > 0 == alone.gathered
    assert alone.total == sum(vars(alone).values())


def test_checkpointing_and_low_rank_updates_need_less() -> None:
    assert memory(2, gradient_checkpointing=True).activations < memory(2).activations
    assert memory(2, lora_rank=2).optimizer < memory(2).optimizer
    assert memory(2, lora_rank=2).optimizer > memory(1).optimizer
