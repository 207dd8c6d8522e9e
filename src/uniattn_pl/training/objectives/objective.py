"""What a training step asks of whatever is minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss


@dataclass(frozen=True)
class MicroLoss:
    """The loss of one micro batch, summed over its tokens.

    Attributes:
        total: what is minimised (scalar tensor with a graph).
        tokens: how many it is summed over; a step minimises the mean over those of its global batch.
        sums, counts: [k] of each of the objective's `terms`, without a graph, and of the tokens that bring one.
    """

    total: Tensor
    tokens: int
    sums: Tensor
    counts: tuple[int, ...]


class Objective:
    """Gives the loss of a micro batch; all it knows of a step is sums, so that batches and ranks divide as they like.

    Attributes:
        terms: names of what the loss is made of, by which each is logged.
        per_token: the loss is in nats per token, so that one that is far beyond guessing has exploded.
    """

    terms: tuple[str, ...] = ()
    per_token = True

    def begin(self, model: nn.Module, shard: Callable[[nn.Module], None] | None) -> None:
        """Learn, before the first step, what trains, and how other models are sharded like it (None: not at all)."""

    def trained_besides(self, model: nn.Module) -> list[nn.Parameter]:
        """Parameters that stage 1 trains besides W_c."""
        return []

    def tokens_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Find, while the batch is on the CPU, the tokens that count; what is returned goes with the batch."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> MicroLoss:
        """The loss of a batch as `tokens_of` completed it."""
        raise NotImplementedError

    def settle(self, loss: Tensor, means: Mapping[str, Tensor]) -> Tensor:
        """Hear what a step has minimised, and each term's mean; returns the loss that is shown and judged by.

        Both are equal on all ranks. The loss may end stage 1 early, or stop a fit that has exploded.
        """
        return loss

    def state(self) -> dict[str, float]:
        """What a resumed stage must know again."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take back what `state` gave."""

    def end(self) -> None:
        """Give back memory, and the model as it was set up, behind the last step."""


class LabelObjective(Objective):
    """The cross-entropy of response tokens.

    Args:
        chunked: compute logits and loss in pieces.
    """

    def __init__(self, *, chunked: bool = False) -> None:
        self.chunked = chunked

    def tokens_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        scored = ScoredTokens.of(batch["labels"])
        return {"positions": scored.positions, "targets": scored.targets}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> MicroLoss:
        scored = ScoredTokens(batch["positions"], batch["targets"])
        total = summed_response_loss(model, batch, scored, chunked=self.chunked)
        return MicroLoss(total, scored.targets.numel(), torch.zeros(0), ())
