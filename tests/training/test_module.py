"""The module's loss, gradients and schedule against plain PyTorch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.trainers import fit
from torch.utils.data import DataLoader
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss
from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.schedule import WarmupDecay

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def converted() -> PreTrainedModel:
    return apply_architecture(llama(), "uniattn", superblock_size=2, num_superblocks=1)


def batches(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Right-padded micro batches whose numbers of response tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        tokens = torch.randint(0, 32, (2, 10), generator=generator)
        mask = torch.ones_like(tokens)
        mask[1, 6 + i % 3 :] = 0
        labels = tokens.masked_fill(mask == 0, -100)
        labels[:, : 2 + i % 4] = -100
        made.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return made


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_loss_is_the_models_own_also_with_capped_logits(softcap: float | None) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=softcap)
    model, batch = Gemma2ForCausalLM(config).eval(), batches(1)[0]
    scored = ScoredTokens.of(batch["labels"])
    mean = summed_response_loss(model, batch, scored) / len(scored.targets)
    torch.testing.assert_close(mean, model(**batch).loss)
    torch.testing.assert_close(model(**batch).loss, mean)  # no hook is left behind


def test_accumulation_weights_every_response_token_of_the_step_alike(tmp_path: Path) -> None:
    data, options = batches(3), StageConfig(learning_rate=0.05, schedule="constant", warmup_ratio=0.0)
    module = PostTrainingModule(converted(), stage=2, options=options, max_grad_norm=0.5)
    fit(module, data, tmp_path, steps=1, accumulate_grad_batches=3)

    reference = converted()
    together = {key: torch.cat([batch[key] for batch in data]) for key in data[0]}
    loss = reference(**together, use_cache=False).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    torch.optim.AdamW(reference.parameters(), lr=0.05, weight_decay=0.0).step()

    assert module.step_loss is not None
    assert module.grad_norm is not None
    torch.testing.assert_close(module.step_loss, loss.detach())
    torch.testing.assert_close(module.grad_norm, norm)
    for (name, ours), theirs in zip(module.hosted.named_parameters(), reference.parameters(), strict=True):
        # AdamW's first step is lr * sign: entries with a gradient near 0 may differ, so compare most of them
        close = torch.isclose(ours, theirs, atol=1e-4).float().mean()
        assert close > 0.98, name


def test_stage_1_trains_only_the_compensations(tmp_path: Path) -> None:
    module = PostTrainingModule(converted, stage=1, options=StageConfig(learning_rate=0.01))
    fit(module, batches(2), tmp_path, steps=2)
    trained, start = module.hosted.state_dict(), converted().state_dict()
    changed = {name for name in start if not torch.equal(trained[name], start[name])}
    assert changed == {"model.layers.3.self_attn.w_c.weight"}


def test_validation_reports_the_mean_per_response_token(tmp_path: Path) -> None:
    data = batches(3)
    module = PostTrainingModule(converted(), stage=2, options=StageConfig())
    module.configure_model()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (result,) = trainer.validate(module, DataLoader(data, batch_size=None), verbose=False)
    together = {key: torch.cat([batch[key] for batch in data]) for key in data[0]}
    expected = converted()(**together, use_cache=False).loss.item()
    assert result["val/response_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_the_schedule_warms_up_and_decays_over_the_stages_steps(kind: str, factors: list[float]) -> None:
    schedule = WarmupDecay(total_steps=6, warmup_ratio=0.3, kind=kind)
    assert [schedule(step) for step in range(6)] == pytest.approx(factors, abs=1e-4)


def test_the_optimizer_follows_the_schedule_over_this_stages_steps(tmp_path: Path) -> None:
    rates: list[float] = []

    class Spy(PostTrainingModule):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            rates.append(optimizer.param_groups[0]["lr"])
            super().on_before_optimizer_step(optimizer)

    options = StageConfig(learning_rate=0.1, warmup_ratio=0.5, schedule="linear")
    fit(Spy(converted(), stage=2, options=options), batches(8), tmp_path, steps=4, accumulate_grad_batches=2)
    assert rates == pytest.approx([0.1 * WarmupDecay(4, 0.5, "linear")(step) for step in range(4)])
