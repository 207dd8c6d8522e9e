"""Frozen matrices in bfloat16 under mixed precision: half the bytes, and not a bit of difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.trainers import fit
from tests.training.test_module import SIZES, batches
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.training.callbacks.release import ReleaseTrainingState
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage
from uniattn_pl.training.frozen_weights import HalvedLinear, halve_frozen, restore_frozen
from uniattn_pl.training.lightning_module import PostTrainingModule

CPU = torch.device("cpu")
STEEP = StageConfig(learning_rate=0.01, warmup_ratio=0.0)


def from_bfloat16(**options: Any) -> PreTrainedModel:
    """A converted float32 model whose weights come from bfloat16 files; W_c is not zero."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **options)).bfloat16().float()
    apply_architecture(model, "uniattn", superblock_size=2, num_superblocks=1)
    w_c = model.get_parameter("model.layers.3.self_attn.w_c.weight")
    nn.init.normal_(w_c, std=0.1)
    return model


def trained(folder: Path, device: str, *, halves: bool) -> tuple[PreTrainedModel, torch.Tensor]:
    module = PostTrainingModule(from_bfloat16().to(device), stage=1, options=STEEP, halves_frozen=halves)
    fit(module, batches(3), folder, steps=3, precision="bf16-mixed", device=device)
    assert module.step_loss is not None
    return module.hosted, module.step_loss


def test_stage_1_trains_the_same_weights_with_half_of_the_frozen_bytes(tmp_path: Path, device: str) -> None:
    plain, loss = trained(tmp_path, device, halves=False)
    halved, same_loss = trained(tmp_path, device, halves=True)
    assert loss == same_loss
    linear = [module.weight for module in halved.modules() if isinstance(module, nn.Linear)]
    assert sum(w.dtype == torch.bfloat16 for w in linear) == len(linear) - 1, "all but W_c"
    restore_frozen(halved)
    assert all(type(module) is not HalvedLinear for module in halved.modules())
    for (name, weight), (_, other) in zip(plain.named_parameters(), halved.named_parameters(), strict=True):
        assert torch.equal(weight, other), name
        assert weight.dtype == other.dtype


def test_a_halved_model_computes_the_same_in_full_precision() -> None:
    model, tokens = from_bfloat16().eval(), batches(1)[0]["input_ids"]
    freeze_for_stage(model, 1)
    with torch.no_grad():
        before = model(tokens).logits
        assert halve_frozen(model, CPU) > 0
        assert torch.equal(model(tokens).logits, before)


def test_what_bfloat16_does_not_hold_and_what_trains_stays() -> None:
    model = from_bfloat16()
    freeze_for_stage(model, 1)
    fitted = model.model.layers[3].self_attn.o_proj
    fitted.weight.data[0, 0] = 1 + 2**-20
    halve_frozen(model, CPU)
    assert fitted.weight.dtype == torch.float32
    assert fitted.weight[0, 0] == 1 + 2**-20
    assert model.get_parameter("model.layers.3.self_attn.w_c.weight").dtype == torch.float32
    assert model.model.layers[3].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_stay_in_float32(tied: bool) -> None:
    model = from_bfloat16(tie_word_embeddings=tied)
    freeze_for_stage(model, 1)
    halve_frozen(model, CPU)
    assert model.get_input_embeddings().weight.dtype == torch.float32  # type: ignore[operator]
    assert (model.lm_head.weight.dtype == torch.float32) == tied


def test_gradients_and_optimizer_state_are_gone_before_lightning_moves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[int, int]] = []
    teardown = pl.strategies.Strategy.teardown

    def look(strategy: Any) -> None:
        gradients = [p.grad for p in strategy.lightning_module.parameters() if p.grad is not None]
        held.append((len(gradients), sum(len(optimizer.state) for optimizer in strategy.optimizers)))
        teardown(strategy)

    monkeypatch.setattr(pl.strategies.Strategy, "teardown", look)
    for callbacks in ([], [ReleaseTrainingState()]):
        module = PostTrainingModule(from_bfloat16(), stage=2, options=STEEP)
        fit(module, batches(2), tmp_path, steps=2, callbacks=callbacks)
    assert held[0][1] > 0
    assert held[1] == (0, 0)
