"""Cross-entropy on response tokens only, without logits for the tokens nobody scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

IGNORED = -100
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
        shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1)
        positions = (shifted != IGNORED).nonzero().squeeze(-1)
        return cls(positions, shifted[positions])


def logits_at(model: nn.Module, batch: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Return the logits [N, vocabulary] of the flattened `positions` [N], never those of other tokens.

    A batch has an `attention_mask`, or `position_ids` that keep the rows of a packed sequence apart.
    The rows are picked by a hook in front of the output embedding, so whatever a family does with
    its logits afterwards (soft-capping, scaling) still happens, and no model code is repeated here.
    """

    def keep_rows(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        return (states.flatten(0, 1)[positions].unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep_rows)  # type: ignore[operator]
    try:
        output = model(**{name: batch[name] for name in INPUTS if name in batch}, use_cache=False)
    finally:
        handle.remove()
    logits: Tensor = output.logits.squeeze(0)
    return logits


def summed_response_loss(model: nn.Module, batch: Mapping[str, Any], scored: ScoredTokens) -> Tensor:
    """Return the cross-entropy summed over the scored tokens, in float32 (scalar tensor with a graph)."""
    logits = logits_at(model, batch, scored.positions)
    return nn.functional.cross_entropy(logits.float(), scored.targets, reduction="sum")
