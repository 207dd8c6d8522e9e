"""Log-probabilities of whole responses, and losses of them, without logits of more than `LOSS_CHUNK` tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.losses import row_logits
from uniattn_pl.losses.response_loss import ScoredTokens
from uniattn_pl.losses.row_logits import logits_of_rows, loss_at_head, summed_over_rows

SequenceLoss = Callable[[Tensor], Tensor]
"""Of the log-probability of each sequence [B], summed over its scored tokens: a loss (scalar)."""


@torch.no_grad()
def sequence_logps(model: nn.Module, batch: Mapping[str, Any], scored: ScoredTokens) -> Tensor:
    """The log-probability of each sequence's scored tokens together, float32 [B].

    Args:
        model: as it is, in training mode or not.
        batch: a model's inputs, on its device.
        scored: of the batch, on that device.
    """
    found: list[Tensor] = []

    def of_states(states: Tensor) -> Tensor:
        found.append(_summed(model, states, scored))
        return states.new_zeros(())

    loss_at_head(model, batch, of_states)
    return found[0]


def loss_of_logps(model: nn.Module, batch: Mapping[str, Any], scored: ScoredTokens, loss_of: SequenceLoss) -> Tensor:
    """A loss of what `sequence_logps` gives, any function of it, with the gradient of the whole (scalar tensor).

    The output embedding is computed twice: its logits give the log-probabilities; their gradient of the loss weighs
    the tokens of each sequence as the logits of a piece are there once more (`summed_over_rows`).
    """

    def of_states(states: Tensor) -> Tensor:
        with torch.no_grad():
            logps = _summed(model, states, scored)
        with torch.enable_grad():
            leaf = logps.requires_grad_()
            loss = loss_of(leaf)
            (slopes,) = torch.autograd.grad(loss, leaf)
        of_tokens = slopes.repeat_interleave(states.shape[1])[scored.positions]  # [N]

        def weighed(logits: Tensor, span: slice) -> tuple[Tensor, Tensor]:
            total = (of_tokens[span] * _token_logps(logits, scored.targets[span])).sum()
            return total, total[None]

        linear, _ = summed_over_rows(model, states.flatten(0, 1)[scored.positions], weighed)
        return loss.detach() + (linear - linear.detach())  # no rounding of what is shown

    return loss_at_head(model, batch, of_states)


def _summed(model: nn.Module, states: Tensor, scored: ScoredTokens) -> Tensor:
    """The log-probability of each sequence [B], of last hidden states [B, L, d], piece by piece."""
    rows = states.flatten(0, 1)[scored.positions]
    pieces = zip(rows.split(row_logits.LOSS_CHUNK), scored.targets.split(row_logits.LOSS_CHUNK), strict=True)
    of_tokens = [_token_logps(logits_of_rows(model, piece), targets) for piece, targets in pieces]
    placed = torch.zeros(states.shape[:2].numel(), device=states.device)
    placed[scored.positions] = torch.cat(of_tokens)
    return placed.view(states.shape[:2]).sum(1)


def _token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target [N] by its logits [N, vocabulary], float32."""
    return -nn.functional.cross_entropy(logits.float(), targets, reduction="none")
