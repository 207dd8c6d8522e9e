"""Preferences: the mean over pairs of what their chosen and rejected responses cost (`losses/preference_loss.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.config.sections.dpo_section import DpoConfig
from uniattn_pl.losses.preference_loss import METRICS, Preferences, pair_metrics, preference_losses
from uniattn_pl.losses.response_loss import ScoredTokens
from uniattn_pl.losses.sequence_logps import loss_of_logps
from uniattn_pl.training.objectives.objective import MicroLoss, Objective

POSITIONS, TARGETS, LENGTHS = "positions", "targets", "lengths"
REFERENCE, PRESENT, PAIRS = "reference", "present", "pairs"


class PreferenceObjective(Objective):
    """The loss of pairs: a micro batch holds B chosen sequences, and behind them the B rejected ones.

    What counts are pairs, so that a step is the mean over those of its global batch; a blank pair is none.

    Args:
        options: which loss.
        reference: log-probabilities by the reference of the chosen and of the rejected response of each row, [2, rows].
    """

    terms = METRICS
    per_token = False

    def __init__(self, options: DpoConfig, reference: Tensor) -> None:
        self.options, self.reference = options, reference

    def tokens_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        scored = ScoredTokens.of(batch["labels"])
        length = batch["labels"].shape[1]
        rows = batch["rows"].view(2, -1)[0]
        lengths = torch.bincount(scored.positions // length, minlength=len(batch["labels"]))
        return {
            POSITIONS: scored.positions,
            TARGETS: scored.targets,
            LENGTHS: lengths.view(2, -1),
            REFERENCE: self.reference[:, rows.clamp_min(0)],
            PRESENT: rows >= 0,
            PAIRS: int((rows >= 0).sum()),
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> MicroLoss:
        present: Tensor = batch[PRESENT]
        shown: list[Tensor] = []

        def of_logps(logps: Tensor) -> Tensor:
            pairs = Preferences(logps.view(2, -1), batch[REFERENCE], batch[LENGTHS])
            shown.append((pair_metrics(pairs, self.options.beta) * present).sum(1))
            return (preference_losses(pairs, self.options) * present).sum()

        total = loss_of_logps(model, batch, ScoredTokens(batch[POSITIONS], batch[TARGETS]), of_logps)
        return MicroLoss(total, batch[PAIRS], shown[0], (batch[PAIRS],) * len(METRICS))
