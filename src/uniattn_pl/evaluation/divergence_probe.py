"""How far a model's next tokens lie from another's on held-out rows: what is lost of it, whatever the labels say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from uniattn_pl.evaluation.evaluation_results import Estimate, Result
from uniattn_pl.losses.response_loss import IGNORED
from uniattn_pl.losses.row_logits import inputs_on, logits_of_rows, loss_at_head, text_mask

PIECE = 256  # tokens whose logits are held at once, of both models
NAME = "divergence"


@torch.no_grad()
def divergence(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batches: Sequence[dict[str, Any]],
    progress: Callable[[int, int], None],
) -> Result:
    """KL(reference | model) of the next token in nats, of all tokens and of responses, and how often both agree on it.

    Args:
        model, reference: language models of the same tokens.
        batches: a model's inputs and labels [B, L], -100 outside of responses.
        progress: called with batches done and in all.
    """
    rows: list[Tensor] = []  # [3, tokens]: divergence, agreement, whether it is of a response
    for done, batch in enumerate(batches, start=1):
        follows = text_mask(batch)[:, 1:].bool()
        wanted = pad(follows, (0, 1), value=False)  # [B, L]: a token of the row comes next
        of_response = (pad(batch["labels"][:, 1:], (0, 1), value=IGNORED) != IGNORED)[wanted]
        figures = _by_token(model, reference, batch, wanted.flatten().nonzero().squeeze(-1).to(model.device))
        both = torch.cat([figures.cpu(), of_response[None].double()])
        rows += [row for row in both.split(wanted.sum(1).tolist(), dim=1) if row.shape[1]]
        progress(done, len(batches))
    responses = [row[:, row[2] > 0] for row in rows]
    estimates = {
        "kl": _of_tokens([row[0] for row in rows]),
        "kl_response": _of_tokens([row[0] for row in responses]),
        "same_token": _of_tokens([row[1] for row in rows]),
    }
    details = [{"row": i, "kl": float(row[0].mean()), "tokens": row.shape[1]} for i, row in enumerate(rows)]
    return Result(NAME, len(rows), estimates, details)


def _of_tokens(rows: Sequence[Tensor]) -> Estimate:
    """Mean over all tokens, with its interval over rows."""
    return Estimate.ratio([(float(row.sum()), len(row)) for row in rows if len(row)])


def _by_token(model: PreTrainedModel, reference: PreTrainedModel, batch: dict[str, Any], positions: Tensor) -> Tensor:
    """Divergence and agreement [2, N] at the flattened positions [N], in float64."""
    inputs = inputs_on(batch, model.device)
    found: list[Tensor] = []

    def of_states(states: Tensor) -> Tensor:
        own = states.flatten(0, 1)[positions]

        def of_reference(others: Tensor) -> Tensor:
            theirs = others.flatten(0, 1)[positions]
            for rows, other_rows in zip(own.split(PIECE), theirs.split(PIECE), strict=True):
                log_q = logits_of_rows(model, rows).double().log_softmax(-1)
                log_p = logits_of_rows(reference, other_rows).double().log_softmax(-1)
                kl = (log_p.exp() * (log_p - log_q)).sum(-1)
                found.append(torch.stack([kl, (log_p.argmax(-1) == log_q.argmax(-1)).double()]))
            return others.new_zeros(())

        return loss_at_head(reference, inputs, of_reference)

    loss_at_head(model, inputs, of_states)
    return torch.cat(found, dim=1)
