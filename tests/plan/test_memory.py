"""The estimate of training memory, beside what autograd really saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.shapes import toy_shape
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from uniattn_pl import apply_architecture
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.losses.response_loss import logits_at
from uniattn_pl.modeling.lora import lora_config
from uniattn_pl.plan import Experts, LayerPlan, costs
from uniattn_pl.plan.training_memory import TrainingMemory, training_memory
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage
from uniattn_pl.training.frozen_weights import halve_frozen
from uniattn_pl.training.objectives.source_maps import trained_for_readers

BATCH, LENGTH = 2, 64
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    # thin experts, as today's models have them, and a dense layer
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "mlp_only_layers": [2]},
    "qwen2_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128},  # and shared ones
}


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def saved_bytes(model: Any, scored: int = 0) -> int:
    """Bytes of the distinct tensors, no parameters, that a forward leaves for its backward.

    Without `scored` tokens it ends at the decoder.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, model.config.vocab_size, (BATCH, LENGTH))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if scored:
            logits_at(model, batch, torch.arange(scored))
        else:
            model.get_decoder()(**batch, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uniattn", {"superblock_size": 3, "num_superblocks": 2}),
        ("cla", {"superblock_size": 2, "num_superblocks": 2}),
        ("llmdrop", {"layers": [3, 5], "compensation": True}),
        ("shortgpt", {"layers": [3, 5], "compensation": True}),
    ],
)
def test_activations_are_what_autograd_saves(
    name: str, options: dict[str, Any], stage: int, dtype: torch.dtype
) -> None:
    if name == "cla" and stage == 1:
        options = {**options, "compensation": True}
    model = apply_architecture(llama(), name, **options).to(dtype)
    # left out: that the lowest trained layer keeps nothing of its input, one number per token and norm, rotary tables
    assert estimated(model, stage, dtype.itemsize) == pytest.approx(saved_bytes(model), rel=0.1)


@pytest.mark.parametrize("mixed", [False, True])
def test_where_stage_1_trains_sources_too_gradients_start_at_the_lowest(*, mixed: bool) -> None:
    model = apply_architecture(llama(), "uniattn", superblock_size=3, num_superblocks=2)
    estimate = estimated(model, 1, 2 if mixed else 4, trains_maps=True)
    without = estimated(model, 1, 2 if mixed else 4)
    freeze_for_stage(model, 1, trained_for_readers(model))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        saved = saved_bytes(model)
    assert estimate == pytest.approx(saved, rel=0.1)
    assert without < 0.9 * saved
    sizes: dict[str, Any] = {"stage": 1, "micro_batch_size": 1, "length": 1, "weight_bytes": 4, "activation_bytes": 4}
    memory = training_memory(model.layer_plan, shape_of(model.config), trains_maps=True, **sizes)  # type: ignore[arg-type]
    assert memory.gradients == sum(p.nbytes for p in model.parameters() if p.requires_grad)


def estimated(
    model: PreTrainedModel, stage: int, activation_bytes: int, scored_fraction: float = 0.0, **options: Any
) -> int:
    """Of activations alone, without logits; the model is made ready to train."""
    freeze_for_stage(model, stage)
    model.train()
    estimate = training_memory(
        model.layer_plan,  # type: ignore[arg-type]
        shape_of(model.config),
        stage=stage,
        micro_batch_size=BATCH,
        length=LENGTH,
        weight_bytes=model.dtype.itemsize,
        activation_bytes=activation_bytes,
        scored_fraction=scored_fraction,
        **options,
    )
    return estimate.activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("family", EXPERTS)
def test_activations_of_experts_are_those_of_a_tokens_own(family: str, stage: int, dtype: torch.dtype) -> None:
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | EXPERTS[family]))
    model = apply_architecture(stock, "uniattn", superblock_size=3, num_superblocks=2).to(dtype)
    assert estimated(model, stage, dtype.itemsize) == pytest.approx(saved_bytes(model), rel=0.1)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uniattn", {"superblock_size": 3, "num_superblocks": 2}),
        ("cla", {"superblock_size": 2, "num_superblocks": 2, "compensation": True}),
        ("llmdrop", {"layers": [3, 5], "compensation": True}),
    ],
)
def test_mixed_precision_keeps_casts_of_frozen_matrices_too(name: str, options: dict[str, Any], stage: int) -> None:
    model = apply_architecture(llama(), name, **options)
    estimate = estimated(model, stage, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert estimate == pytest.approx(saved_bytes(model), rel=0.1)


def test_halved_frozen_matrices_need_no_casts() -> None:
    model = apply_architecture(llama().bfloat16().float(), "uniattn", superblock_size=3, num_superblocks=2)
    whole, estimate = estimated(model, 1, 2), estimated(model, 1, 2, frozen_bytes=2)
    before = sum(p.nbytes for p in model.parameters())
    halve_frozen(model, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert estimate == pytest.approx(saved_bytes(model), rel=0.1)
    assert estimate < 0.75 * whole
    sizes: dict[str, Any] = {"stage": 1, "micro_batch_size": 1, "length": 1, "weight_bytes": 4, "activation_bytes": 2}
    memory = training_memory(model.layer_plan, shape_of(model.config), frozen_bytes=2, **sizes)  # type: ignore[arg-type]
    assert memory.weights == sum(p.nbytes for p in model.parameters()) < 0.6 * before


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("halves", [True, False])
def test_a_large_output_embedding_is_cast_unless_it_is_halved(tied: bool, halves: bool) -> None:
    sizes = {**SIZES, "vocab_size": 4096, "tie_word_embeddings": tied}
    model = apply_architecture(
        LlamaForCausalLM(LlamaConfig(**sizes)).bfloat16().float(), "uniattn", superblock_size=3, num_superblocks=2
    )
    frozen_bytes = 2 if halves else None
    estimate = estimated(model, 1, 2, frozen_bytes=frozen_bytes, scored_fraction=1 / (BATCH * LENGTH))
    if halves:
        halve_frozen(model, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert estimate == pytest.approx(saved_bytes(model, scored=1), rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "mixed"])
def test_activations_of_low_rank_updates_are_what_autograd_saves(precision: str) -> None:
    from peft import get_peft_model

    model = apply_architecture(llama(), "uniattn", superblock_size=3, num_superblocks=2)
    model = model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    plan, shape, weight_bytes = model.layer_plan, shape_of(model.config), model.dtype.itemsize
    adapted: Any = get_peft_model(
        model, lora_config(model, rank=4, refitted=[], lora_alpha=8, lora_dropout=0.0), autocast_adapter_dtype=False
    )
    estimate = training_memory(
        plan,  # type: ignore[arg-type]
        shape,
        stage=2,
        micro_batch_size=BATCH,
        length=LENGTH,
        weight_bytes=weight_bytes,
        activation_bytes=4 if precision == "float32" else 2,
        scored_fraction=0.0,
        lora_rank=4,
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        assert estimate.activations == pytest.approx(saved_bytes(adapted.train()), rel=0.1)


@pytest.mark.parametrize("stage", [1, 2])
def test_experts_have_no_part_in_mixed_precision(stage: int) -> None:
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SIZES | EXPERTS["mixtral"]))
    model = apply_architecture(stock, "uniattn", superblock_size=3, num_superblocks=2)
    estimate = estimated(model, stage, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert estimate == pytest.approx(saved_bytes(model), rel=0.1)


def test_weights_gradients_and_states_are_those_of_all_experts() -> None:
    dense, routed = toy_shape(4), toy_shape(4)
    routed = replace(routed, layers=tuple(replace(layer, experts=Experts(8, 2, 192)) for layer in dense.layers))
    plan = LayerPlan.unmodified(4).reuse([3], 2, compensated=True)
    sizes = {"micro_batch_size": 2, "length": 16, "weight_bytes": 4, "activation_bytes": 4}
    without, with_experts = (training_memory(plan, shape, stage=2, **sizes) for shape in (dense, routed))
    more = 4 * 8 * 192 * 4
    assert with_experts.weights - without.weights == with_experts.gradients - without.gradients == more
    assert with_experts.optimizer - without.optimizer == 2 * more


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
