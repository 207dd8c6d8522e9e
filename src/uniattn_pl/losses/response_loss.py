"""Cross-entropy on response tokens only, without logits for the tokens nobody scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from uniattn_pl.losses.row_logits import forward_inputs, loss_at_head, summed_over_rows

IGNORED = -100


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
        output = model(**forward_inputs(batch))
    finally:
        handle.remove()
    logits: Tensor = output.logits.squeeze(0)  # [N, vocabulary]
    return logits


def summed_response_loss(
    model: nn.Module, batch: Mapping[str, Any], scored: ScoredTokens, *, chunked: bool = False
) -> Tensor:
    """Return the cross-entropy summed over the scored tokens, in float32 (scalar tensor with a graph).

    Args:
        chunked: hold the logits of `LOSS_CHUNK` tokens at once.
    """
    if chunked:
        return _loss_in_pieces(model, batch, scored)
    logits = logits_at(model, batch, scored.positions)
    return nn.functional.cross_entropy(logits.float(), scored.targets, reduction="sum")


def _loss_in_pieces(model: nn.Module, batch: Mapping[str, Any], scored: ScoredTokens) -> Tensor:
    """The same, where the output embedding would give the logits of all tokens.

    (torch's own `linear_cross_entropy` sums in bfloat16 there, which is off by some percent.)
    """

    def loss_of(logits: Tensor, span: slice) -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(logits.float(), scored.targets[span], reduction="sum")
        return loss, loss[None]

    def of_states(states: Tensor) -> Tensor:
        return summed_over_rows(model, states.flatten(0, 1)[scored.positions], loss_of)[0]

    return loss_at_head(model, batch, of_states)
