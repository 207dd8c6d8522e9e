"""Cross-entropy on response tokens only, without logits for the tokens nobody scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniattn_pl.errors import UserError

IGNORED = -100
LOSS_CHUNK = 1024
INPUTS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class ScoredTokens:
    """Which hidden states predict a response token, and the token each should predict.

    Attributes:
        positions: indices [N] into the flattened [B * L] hidden states.
        targets: token ids [N].
    """

    positions: Tensor
    targets: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> ScoredTokens:
        """From labels [B, L] in the Hugging Face layout: the state at t predicts label t + 1, -100 is not scored."""
        shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1)  # [B * L]
        positions = (shifted != IGNORED).nonzero().squeeze(-1)  # [N]
        return cls(positions, shifted[positions])


def logits_at(model: nn.Module, batch: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Return the logits [N, vocabulary] of the flattened `positions` [N], never those of other tokens.

    A batch has an `attention_mask`, or `position_ids` that keep the rows of a packed sequence apart.
    The rows are picked by a hook in front of the output embedding, so whatever a family does with
    its logits afterwards (soft-capping, scaling) still happens, and no model code is repeated here.
    """

    def keep_rows(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        return (states.flatten(0, 1)[positions].unsqueeze(0), *args[1:])  # [1, N, d] of [B, L, d]

    handle = model.get_output_embeddings().register_forward_pre_hook(keep_rows)  # type: ignore[operator]
    try:
        output = model(**_inputs(batch), use_cache=False)
    finally:
        handle.remove()
    logits: Tensor = output.logits.squeeze(0)  # [N, vocabulary]
    return logits


def summed_response_loss(
    model: nn.Module, batch: Mapping[str, Any], scored: ScoredTokens, *, chunked: bool = False
) -> Tensor:
    """Return the cross-entropy summed over the scored tokens, in float32 (scalar tensor with a graph).

    Args:
        chunked: hold the logits of `LOSS_CHUNK` tokens at once; the backward pass computes them again.

    Raises:
        UserError: `chunked`, and the family does something with its logits before they are used.
    """
    if chunked and scored.targets.numel():
        return _chunked_loss(model, batch, scored)
    logits = logits_at(model, batch, scored.positions)
    return nn.functional.cross_entropy(logits.float(), scored.targets, reduction="sum")


def _chunked_loss(model: nn.Module, batch: Mapping[str, Any], scored: ScoredTokens) -> Tensor:
    """Let the output embedding give the loss instead of logits, which the family's forward then only passes on.

    (torch's own `linear_cross_entropy` sums in bfloat16 there, which is off by some percent.)
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    given: list[Tensor] = []

    def loss_of(states: Tensor) -> Tensor:
        pieces = zip(
            states.flatten(0, 1)[scored.positions].split(LOSS_CHUNK), scored.targets.split(LOSS_CHUNK), strict=True
        )
        losses = [checkpoint(_piece, head, rows, targets, use_reentrant=False) for rows, targets in pieces]
        given.append(torch.stack(losses).sum())
        return given[0]

    head.forward = loss_of
    try:
        output = model(**_inputs(batch), use_cache=False)
    finally:
        del head.forward
    if output.logits is not given[0]:
        raise UserError(
            f"training.chunked_loss: {type(model).__name__} scales or caps its logits, which needs them in one piece; "
            "set it to false."
        )
    return given[0]


def _piece(head: Any, rows: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy of some rows [n, d] in float32, by the output embedding's own forward."""
    logits: Tensor = type(head).forward(head, rows)
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in INPUTS if name in batch}
