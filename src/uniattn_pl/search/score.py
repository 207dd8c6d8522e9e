"""What a search judges plans by: the distance of their next tokens from the original's, or the loss on the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from uniattn_pl.architectures.measurement_protocol import KL
from uniattn_pl.calibration.layers import Batch, replaced_layers
from uniattn_pl.config.sections.distillation_section import FORWARD_KL
from uniattn_pl.losses.divergence import TopLogits, log_probabilities, summed_divergence
from uniattn_pl.losses.response_loss import ScoredTokens, logits_at, summed_response_loss

KEPT_LOGITS = 1024
"""Of the original's logits per token; the others count together (12 bytes each, a hundredth of a vocabulary)."""
PIECE = 256
"""Tokens whose logits are held at once."""


class Score(Protocol):
    """A number per plan, of the hidden states [B, L, d] that leave its last layer; less is better."""

    def of(self, model: PreTrainedModel, last: Mapping[int, torch.Tensor]) -> float:
        """The mean over the scored tokens of all batches; `last` by the number of a batch."""


class LabelLoss:
    """Mean cross-entropy (nats) of the labelled tokens.

    Args:
        batches: by their number; labels [B, L] other than -100 count.
    """

    def __init__(self, batches: Mapping[int, Batch]) -> None:
        self.batches = batches

    @torch.no_grad()
    def of(self, model: PreTrainedModel, last: Mapping[int, torch.Tensor]) -> float:
        """By the model's own norm and head on the given hidden states."""
        total, count = 0.0, 0
        for number, batch in self.batches.items():
            scored = ScoredTokens.of(batch["labels"])
            with replaced_layers(model, lambda _, hidden=last[number], **__: hidden):
                total += float(summed_response_loss(model, batch, scored))
            count += scored.targets.numel()
        return total / max(count, 1)


class OriginalDivergence:
    """Mean KL(original | plan) in nats of the next token, at every token that is not padding, prompts too.

    One token tells more than by its label alone: the whole distribution counts. Of the original's logits the largest
    `KEPT_LOGITS` are kept (all, where the vocabulary is no larger); the others count as one token.

    Args:
        original: the stock model.
        batches: by their number.
        last: hidden states [B, L, d] that leave the original's last layer, by the number of their batch.
    """

    def __init__(
        self, original: PreTrainedModel, batches: Mapping[int, Batch], last: Mapping[int, torch.Tensor]
    ) -> None:
        self.batches = batches
        self.kept = {number: kept_outputs(original, batch, last[number]) for number, batch in batches.items()}

    @torch.no_grad()
    def of(self, model: PreTrainedModel, last: Mapping[int, torch.Tensor]) -> float:
        """By the model's own norm and head on the given hidden states."""
        total, count = 0.0, 0
        for number, batch in self.batches.items():
            total += sum(map(float, divergence_pieces(model, batch, last[number], self.kept[number])))
            count += int(batch["attention_mask"].sum())
        return total / max(count, 1)


def make_score(
    name: str, original: PreTrainedModel, batches: Mapping[int, Batch], last: Mapping[int, torch.Tensor]
) -> Score:
    """One of `architectures.measurement_protocol.SCORES`; arguments as of `OriginalDivergence`."""
    return OriginalDivergence(original, batches, last) if name == KL else LabelLoss(batches)


@torch.no_grad()
def kept_outputs(original: PreTrainedModel, batch: Batch, last: torch.Tensor) -> list[TopLogits]:
    """What is kept of the original's next tokens, piece by piece as `divergence_pieces` takes it."""
    with replaced_layers(original, lambda _, **__: last):
        return [TopLogits.of(logits_at(original, batch, piece), KEPT_LOGITS) for piece in _pieces(batch)]


def divergence_pieces(
    model: PreTrainedModel, batch: Batch, last: torch.Tensor, kept: Sequence[TopLogits]
) -> Iterator[torch.Tensor]:
    """KL(original | model) summed over `PIECE` tokens at a time, with a graph to `last` [B, L, d] if that has one."""
    with replaced_layers(model, lambda _, **__: last):
        for piece, original in zip(_pieces(batch), kept, strict=True):
            yield summed_divergence(log_probabilities(logits_at(model, batch, piece)), original, FORWARD_KL)


def _pieces(batch: Batch) -> tuple[torch.Tensor, ...]:
    """Indices into the flattened [B * L] tokens that are not padding."""
    return batch["attention_mask"].flatten().nonzero().squeeze(-1).split(PIECE)
