"""Held-out response loss and answer accuracy, from one forward per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.evaluation.held_out_preferences import HeldOutPreferences
from uniattn_pl.losses.response_loss import IGNORED, logits_at
from uniattn_pl.losses.row_logits import inputs_on


@dataclass(frozen=True)
class HeldOut:
    """Scores of a model on held-out rows.

    Attributes:
        response_loss: mean cross-entropy per response token, nats.
        answer_accuracy: fraction of rows with choices whose right choice scores highest; None without such rows.
        tokens: response tokens scored.
        sequences: rows scored.
        perplexity: exp of the loss, where what is held out is plain text; else None.
        preferences: of held-out pairs, in a fit that learns preferences.
        rows: summed loss and response tokens of each row, batch by batch: what two models are compared by.
    """

    response_loss: float
    answer_accuracy: float | None
    tokens: int
    sequences: int
    perplexity: float | None = None
    preferences: HeldOutPreferences | None = None
    rows: tuple[tuple[tuple[float, int], ...], ...] = ()

    @property
    def watched(self) -> float:
        """By what stages end early and leave their best weights: the loss of preferences, where they are learned."""
        return self.response_loss if self.preferences is None else self.preferences.loss

    def of_plain_text(self) -> HeldOut:
        """The same with its perplexity."""
        return replace(self, perplexity=float(torch.tensor(self.response_loss, dtype=torch.float64).exp()))

    def named(self, prefix: str) -> dict[str, float]:
        """The metrics for a logger, each with `prefix`; accuracy and perplexity only where there is one."""
        metrics = {f"{prefix}response_loss": self.response_loss}
        if self.answer_accuracy is not None:
            metrics[f"{prefix}answer_accuracy"] = self.answer_accuracy
        if self.perplexity is not None:
            metrics[f"{prefix}perplexity"] = self.perplexity
        return metrics if self.preferences is None else metrics | self.preferences.named(prefix)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; all rows in one list, those without a response token left out."""
        rows = [[round(loss, 4), tokens] for batch in self.rows for loss, tokens in batch if tokens]
        return {**asdict(replace(self, rows=())), "rows": rows}


@torch.no_grad()
def held_out_metrics(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    *,
    device: torch.device | None = None,
    sums: Callable[[Sequence[float]], Sequence[float]] | None = None,
) -> HeldOut:
    """Score `model` on validation batches; its training mode is put back afterwards.

    Only the logits that are scored are computed, never [B, L, vocabulary].

    Args:
        model: a language model, on any device.
        batches: dicts of a model's inputs, labels [B, L] (-100 where not scored; of the decoder's tokens, where there
            is an encoder) and, for rows with choices, choice_ids [B, C] (-1 pads), answer_index [B] (-1: none),
            answer_position [B].
        device: where the model computes; default: where its parameters are.
        sums: adds numbers up over ranks that have a part of the batches each, all as many.

    Raises:
        ValueError: no batch has a response token.
    """
    was_training = model.training
    model.eval()
    device = device or next(model.parameters()).device
    totals, rows = [0.0] * 5, []
    try:
        for batch in batches:
            parts, of_rows = _score(model, batch, device)
            totals = [total + part for total, part in zip(totals, parts, strict=True)]
            rows.append(of_rows)
    finally:
        model.train(was_training)
    loss, tokens, right, questions, sequences = totals if sums is None else sums(totals)
    if tokens == 0:
        raise ValueError("the held-out batches contain no response token to score.")
    accuracy = right / questions if questions else None
    return HeldOut(loss / tokens, accuracy, int(tokens), int(sequences), rows=tuple(rows))


@torch.no_grad()
def token_losses(model: nn.Module, batch: dict[str, Any], *, device: torch.device) -> Tensor:
    """Cross-entropy of every response token of a batch, nats [N], float64 on the CPU: what tells two models apart.

    Args:
        model: a language model; its training mode is put back afterwards.
        batch: a model's inputs and labels [B, L].
        device: where the model computes.
    """
    was_training = model.training
    model.eval()
    try:
        targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
        positions = (targets != IGNORED).nonzero().squeeze(-1)  # [N] of [B * L]
        logits = logits_at(model, inputs_on(batch, device), positions.to(device)).float()
        losses = nn.functional.cross_entropy(logits, targets[positions].to(device), reduction="none")
    finally:
        model.train(was_training)
    return losses.double().cpu()


def _score(
    model: nn.Module, batch: dict[str, Any], device: torch.device
) -> tuple[tuple[float, int, int, int, int], tuple[tuple[float, int], ...]]:
    """Summed loss, response tokens, right answers, questions and scored rows of one batch; loss and tokens of rows."""
    labels: Tensor = batch["labels"]
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    is_needed = targets != IGNORED
    questions = _questions(batch)
    if questions is not None:
        is_needed[questions, batch["answer_position"][questions]] = True
    positions = is_needed.flatten().nonzero().squeeze(-1)  # [N] of [B * L]
    logits = logits_at(model, inputs_on(batch, device), positions.to(device)).float()
    scored = targets.flatten()[positions]  # [N]
    losses = nn.functional.cross_entropy(logits, scored.to(device), ignore_index=IGNORED, reduction="none")
    right = 0 if questions is None else _right_answers(logits, positions, batch, questions)
    num_questions = 0 if questions is None else len(questions)
    rows = int((labels != IGNORED).any(dim=1).sum())
    counts = (targets != IGNORED).sum(1)  # [B]
    sums = torch.zeros(len(labels), dtype=torch.float64)
    sums.index_add_(0, positions // labels.shape[1], losses.double().cpu())
    of_rows = tuple(zip(sums.tolist(), counts.tolist(), strict=True))
    return (float(losses.sum()), int((scored != IGNORED).sum()), right, num_questions, rows), of_rows


def _questions(batch: dict[str, Any]) -> Tensor | None:
    """Rows [Q] of the batch that have choices and a right one, or None."""
    if "answer_index" not in batch:
        return None
    rows: Tensor = (batch["answer_index"] >= 0).nonzero().squeeze(-1)
    return rows if len(rows) else None


def _right_answers(logits: Tensor, positions: Tensor, batch: dict[str, Any], questions: Tensor) -> int:
    """How many of the `questions` have their right choice's first token scored highest among the choices."""
    length = batch["labels"].shape[1]
    flat = questions * length + batch["answer_position"][questions]
    at_answer = logits[torch.searchsorted(positions, flat).to(logits.device)]
    choices = batch["choice_ids"][questions].to(logits.device)
    scores = at_answer.gather(1, choices.clamp_min(0)).masked_fill(choices < 0, float("-inf"))
    return int((scores.argmax(1) == batch["answer_index"][questions].to(logits.device)).sum())
