"""How a model judges held-out pairs: the loss of their preferences, and how often the better one has the reward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.config.sections.dpo_section import DpoConfig
from uniattn_pl.losses.preference_loss import METRICS, Preferences, pair_metrics, preference_losses
from uniattn_pl.losses.response_loss import IGNORED, ScoredTokens
from uniattn_pl.losses.row_logits import inputs_on
from uniattn_pl.losses.sequence_logps import sequence_logps

LOSS, ACCURACY = "dpo_loss", "rewards/accuracies"


@dataclass(frozen=True)
class HeldOutPreferences:
    """Means over held-out pairs.

    Attributes:
        loss: of a pair, as configured.
        metrics: what `METRICS` names.
        pairs: how many there were.
    """

    loss: float
    metrics: dict[str, float]
    pairs: int

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose chosen response has the larger reward."""
        return self.metrics[ACCURACY]

    def named(self, prefix: str) -> dict[str, float]:
        """The means for a logger, each with `prefix`."""
        return {f"{prefix}{name}": value for name, value in {LOSS: self.loss, **self.metrics}.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@torch.no_grad()
def held_out_preferences(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    reference: Tensor,
    options: DpoConfig,
    *,
    device: torch.device,
    sums: Callable[[Sequence[float]], Sequence[float]] | None = None,
) -> HeldOutPreferences:
    """Score `model` on pairs; its training mode is put back afterwards.

    Args:
        model: a language model.
        batches: as `data.preference_pairs.PairCollator` makes them, on the CPU.
        reference: log-probabilities of the chosen and the rejected response of each row [2, rows] by the reference.
        options: which loss.
        device: where the model computes.
        sums: adds numbers up over ranks that have a part of the batches each, all as many.

    Raises:
        ValueError: there is no pair.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(2 + len(METRICS), dtype=torch.float64)
    try:
        for batch in batches:
            totals += _score(pair_logps(model, batch, device), batch, reference, options)
    finally:
        model.train(was_training)
    pairs, loss, *shown = totals.tolist() if sums is None else sums(totals.tolist())
    if not pairs:
        raise ValueError("there is no held-out pair to score.")
    return HeldOutPreferences(loss / pairs, {n: v / pairs for n, v in zip(METRICS, shown, strict=True)}, int(pairs))


def pair_logps(model: nn.Module, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """Log-probabilities of the chosen and the rejected responses of a batch of B pairs by a model, float32 [2, B]."""
    scored = ScoredTokens.of(batch["labels"])
    on_device = ScoredTokens(scored.positions.to(device), scored.targets.to(device))
    return sequence_logps(model, inputs_on(batch, device), on_device).view(2, -1).cpu()


def _score(logps: Tensor, batch: dict[str, Tensor], reference: Tensor, options: DpoConfig) -> Tensor:
    """Pairs, their summed loss and their summed `METRICS`, float64."""
    rows = batch["rows"].view(2, -1)[0]
    present = rows >= 0
    lengths = (batch["labels"][:, 1:] != IGNORED).sum(1).view(2, -1)
    pairs = Preferences(logps, reference[:, rows.clamp_min(0)], lengths)
    losses = preference_losses(pairs, options)
    values = torch.cat([torch.ones_like(losses)[None], losses[None], pair_metrics(pairs, options.beta)])
    return (values.double() * present).sum(1)
