"""Learning from preferences, through the module: against TRL's figures, by hand, and however a step is divided."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import stock
from tests.tiny_seq2seq import FAMILIES as SEQ2SEQ
from tests.tiny_seq2seq import stock_seq2seq
from tests.trainers import fit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from uniattn_pl.config.sections.dpo_section import DpoConfig
from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.losses import row_logits
from uniattn_pl.losses.preference_loss import Preferences, pair_metrics, preference_losses
from uniattn_pl.losses.response_loss import ScoredTokens
from uniattn_pl.losses.sequence_logps import sequence_logps
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.objectives.preference_objective import PreferenceObjective

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/preferences_trl/recorded.json").read_text())
OPTIONS = StageConfig(learning_rate=0.05, schedule="constant", warmup_ratio=0.0)


def by_rule(phase: float) -> PreTrainedModel:
    """The Llama of the fixture, whose weights are a rule."""
    made = LlamaForCausalLM(LlamaConfig(**RECORDED["config"]))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(made.named_parameters())):
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(0.7 * steps + number + phase).view(parameter.shape)
            parameter.copy_(1 + 0.1 * wave if "norm" in name else 0.3 * wave)
    return made


def recorded_batch() -> dict[str, Tensor]:
    batch = {name: torch.tensor(value) for name, value in RECORDED["batch"].items()}
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    pairs = len(labels) // 2
    return {**batch, "labels": labels, "rows": torch.arange(pairs).repeat(2)}


def reference_of(batch: dict[str, Tensor]) -> Tensor:
    return sequence_logps(by_rule(0.5), batch, ScoredTokens.of(batch["labels"])).view(2, -1)


def part_of(batch: dict[str, Tensor], pairs: list[int]) -> dict[str, Tensor]:
    half = len(batch["rows"]) // 2
    return {name: tensor[[*pairs, *(half + pair for pair in pairs)]] for name, tensor in batch.items()}


def module(options: DpoConfig, reference: Tensor) -> PostTrainingModule:
    objective = PreferenceObjective(options, reference)
    return PostTrainingModule(by_rule(0.0), stage=2, options=OPTIONS, objective=objective, max_grad_norm=1e6)


@pytest.mark.parametrize("recorded", RECORDED["losses"], ids=lambda found: f"{found['loss_type']} {found['beta']}")
def test_loss_gradients_and_rewards_are_trls(recorded: dict[str, Any], tmp_path: Path) -> None:
    options = DpoConfig(recorded["beta"], recorded["loss_type"], recorded.get("label_smoothing", 0.0))
    batch = recorded_batch()
    found = module(options, reference_of(batch))
    fit(found, [part_of(batch, [2]), part_of(batch, [0, 1])], tmp_path, steps=1, accumulate_grad_batches=2)
    assert found.step_loss is not None
    assert found.grad_norm is not None
    assert float(found.step_loss) == pytest.approx(recorded["loss"], rel=1e-5, abs=1e-5)
    assert float(found.grad_norm) == pytest.approx(recorded["grad_norm"], rel=1e-5)
    for name, value in found.step_terms.items():
        assert float(value) == pytest.approx(recorded["metrics"][name], rel=1e-6, abs=1e-5), name


def test_the_losses_of_a_pair_are_those_computed_by_hand() -> None:
    # rewards of the pair at beta 0.5: (-2 + 3) / 2 = 0.5 and (-7 + 5) / 2 = -1, so that the margin is 1.5
    pair = Preferences(torch.tensor([[-2.0], [-7.0]]), torch.tensor([[-3.0], [-5.0]]), torch.tensor([[2], [4]]))
    expected = {
        "sigmoid": math.log(1 + math.exp(-1.5)),
        "hinge": 0.0,
        "ipo": (1 / 2 - -2 / 4 - 1) ** 2,  # per token, beside 1 / (2 beta) = 1
        "robust": (0.75 * math.log(1 + math.exp(-1.5)) - 0.25 * math.log(1 + math.exp(1.5))) / 0.5,
    }
    for kind, loss in expected.items():
        found = preference_losses(pair, DpoConfig(0.5, kind, 0.25 if kind == "robust" else 0.0))
        assert found.tolist() == pytest.approx([loss], abs=1e-6), kind
    assert pair_metrics(pair, 0.5).flatten().tolist() == [0.5, -1.0, 1.0, 1.5, -2.0, -7.0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5", "bart"])
def test_in_pieces_loss_and_gradients_are_those_of_whole_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are capped, and a decoder beside an encoder, among them."""
    model = (stock_seq2seq if family in SEQ2SEQ else stock)(family)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 6, 8, 5])[:, None]).long()
    labels = ids.masked_fill((mask == 0) | (torch.arange(9) < 3), -100)
    batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
    if family in SEQ2SEQ:
        batch = {"input_ids": ids.flip(0), "attention_mask": mask.flip(0)}
        batch |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    whole = model(**batch, use_cache=False).logits.float().log_softmax(-1)[:, :-1]
    of_tokens = whole.gather(-1, labels[:, 1:, None].clamp_min(0)).squeeze(-1) * (labels[:, 1:] != -100)
    logps = of_tokens.sum(1).view(2, -1)
    reference, lengths = logps.detach() + torch.tensor([[1.0, -2.0], [0.5, 1.0]]), (labels[:, 1:] != -100).sum(1)
    options = DpoConfig(0.5, "sigmoid")
    expected = preference_losses(Preferences(logps, reference, lengths.view(2, -1)), options).sum()
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)

    monkeypatch.setattr(row_logits, "LOSS_CHUNK", 5)
    objective = PreferenceObjective(options, reference)
    batch |= {"labels": labels, "rows": torch.tensor([0, 1, 0, 1])}
    found = objective.loss(model, {**batch, **objective.tokens_of(batch)})
    ours = torch.autograd.grad(found.total, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(found.total.detach(), expected.detach())
    for (name, _), own, theirs in zip(model.named_parameters(), ours, gradients, strict=True):
        assert (own is None) == (theirs is None), name
        if own is not None and theirs is not None:
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_a_blank_pair_teaches_nothing() -> None:
    batch = recorded_batch()
    objective = PreferenceObjective(DpoConfig(), reference_of(batch))
    blank = {name: tensor.clone() for name, tensor in batch.items()}
    half = len(blank["rows"]) // 2
    for sequence in (1, half + 1):
        blank["labels"][sequence], blank["rows"][sequence] = -100, -1
    without = part_of(batch, [0, 2])
    losses = [objective.loss(by_rule(0.0), {**b, **objective.tokens_of(b)}) for b in (blank, without)]
    assert [loss.tokens for loss in losses] == [2, 2]
    torch.testing.assert_close(losses[0].total, losses[1].total)
    torch.testing.assert_close(losses[0].sums, losses[1].sums)
