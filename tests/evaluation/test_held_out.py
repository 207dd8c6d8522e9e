"""Held-out loss and answer accuracy against transformers' own loss and hand-made answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from uniattn_pl.evaluation.held_out import held_out_metrics


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def batch(prompts: list[int], lengths: list[int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    size = max(lengths)
    tokens = torch.randint(0, 32, (len(lengths), size), generator=generator)
    position = torch.arange(size)
    mask = (position < torch.tensor(lengths)[:, None]).long()
    response = (position >= torch.tensor(prompts)[:, None]) & (mask == 1)
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(~response, -100)}


def test_the_loss_is_the_mean_over_all_response_tokens(model: LlamaForCausalLM) -> None:
    parts = [batch([2, 3], [9, 7]), batch([1], [4])]
    summed = sum(model(**part).loss.item() * int((part["labels"][:, 1:] != -100).sum()) for part in parts)
    metrics = held_out_metrics(model, parts)
    assert metrics.tokens == 7 + 4 + 3
    assert metrics.sequences == 3
    assert metrics.response_loss == pytest.approx(summed / metrics.tokens, rel=1e-6)
    assert metrics.answer_accuracy is None
    rows = metrics.to_dict()["rows"]
    assert [tokens for _, tokens in rows] == [7, 4, 3]
    single = {name: tensor[1:] for name, tensor in parts[0].items()}
    assert rows[1][0] == pytest.approx(held_out_metrics(model, [single]).response_loss * 4, abs=1e-4)


def test_accuracy_compares_the_choices_where_the_response_begins(model: LlamaForCausalLM) -> None:
    part = batch([2, 3, 2], [9, 7, 8])
    with torch.no_grad():
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    best, worst = logits[0, 1].argmax().item(), logits[0, 1].argmin().item()
    second_best, second_worst = logits[1, 2].argmax().item(), logits[1, 2].argmin().item()
    part["choice_ids"] = torch.tensor([[worst, best, -1], [second_best, second_worst, second_worst], [-1, -1, -1]])
    part["answer_index"] = torch.tensor([1, 1, -1])  # right, wrong, no question
    part["answer_position"] = torch.tensor([1, 2, 0])
    assert held_out_metrics(model, [part]).answer_accuracy == 0.5


def test_an_answer_that_training_would_not_score_still_counts(model: LlamaForCausalLM) -> None:
    part = batch([4], [6])
    plain = held_out_metrics(model, [part])
    with torch.no_grad():
        best = model(input_ids=part["input_ids"]).logits[0, 0].argmax().item()
    question = {
        **part,
        "choice_ids": torch.tensor([[best, (best + 1) % 32]]),
        "answer_index": torch.tensor([0]),
        "answer_position": torch.tensor([0]),
    }
    metrics = held_out_metrics(model, [question])
    assert metrics.answer_accuracy == 1.0
    assert (metrics.response_loss, metrics.tokens) == (pytest.approx(plain.response_loss), plain.tokens)


def test_training_mode_is_put_back_and_no_gradient_is_kept(model: LlamaForCausalLM) -> None:
    model.train()
    model.model.layers[0].mlp.register_module("probe", nn.Dropout(0.5))
    held_out_metrics(model, [batch([2], [6])])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_score_is_an_error(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="no response token"):
        held_out_metrics(model, [batch([6], [6])])
