"""The response loss in pieces is the loss in one: value, gradients, families that cap their logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import VOCABULARY, converted

from uniattn_pl.losses import row_logits
from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss

PLAN = "uniattn"


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[:, :5] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def loss_and_gradients(model: Any, *, chunked: bool) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    data = batch()
    loss = summed_response_loss(model, data, ScoredTokens.of(data["labels"]), chunked=chunked)
    loss.backward()
    return float(loss), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "granite"])
def test_the_loss_in_pieces_is_the_loss_in_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_logits, "LOSS_CHUNK", 7)
    model = converted(family, PLAN).train()
    largest = 0
    head = model.get_output_embeddings()
    own = type(head).forward

    def watched(self: Any, rows: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        logits = own(self, rows)
        if self is head:
            largest = max(largest, len(logits.flatten(0, -2)))
        return logits

    whole, expected = loss_and_gradients(model, chunked=False)
    monkeypatch.setattr(type(head), "forward", watched)
    pieces, found = loss_and_gradients(model, chunked=True)
    assert largest == 7
    assert pieces == pytest.approx(whole, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
