"""Held-out quality at the milestones of a fit: the original, the converted model, and after each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import nn

from uniattn_pl.evaluation.held_out import HeldOut, held_out_metrics
from uniattn_pl.evaluation.held_out_preferences import HeldOutPreferences
from uniattn_pl.resilience import ranks
from uniattn_pl.tracking.metric_names import HELD_OUT
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext


class Milestones:
    """Measures models on the same held-out rows, all ranks together.

    Args:
        experiment: whose validation rows are taken.
        context: where the measurements are logged and printed.

    Attributes:
        judge: measures held-out pairs, too, from where there is a reference on.
    """

    def __init__(self, experiment: Experiment, context: FitContext) -> None:
        self.experiment, self.context = experiment, context
        self.judge: Callable[[nn.Module], HeldOutPreferences] | None = None

    @cached_property
    def validation(self) -> list[dict[str, torch.Tensor]]:
        """The held-out batches every milestone is measured on: the part of this rank; as many on each."""
        options, cluster = self.experiment.config.evaluation, self.context.cluster
        return self.experiment.data.validation_batches(
            options.num_samples, options.batch_size, rank=cluster.rank, world_size=cluster.world_size
        )

    def score(self, model: nn.Module) -> HeldOut:
        """Held-out quality of a model; of plain text its perplexity, too."""
        cluster = self.context.cluster
        scores = held_out_metrics(model, self.validation, device=cluster.device, sums=cluster.sums)
        # ranks have batches in turn; one after another they are the same on any number of ranks
        scores = replace(scores, rows=tuple(chain.from_iterable(zip(*ranks.gather(scores.rows), strict=True))))
        scores = scores.of_plain_text() if self.experiment.data.plain_text else scores
        return scores if self.judge is None else replace(scores, preferences=self.judge(model))

    def measure(self, name: str, model: nn.Module, *, step: int | None = None) -> dict[str, Any]:
        """Measure the model, log and print it; returns {name: metrics} for the manifest.

        Args:
            name: of the milestone, a key of `fit_result.LABELS`.
            model: measured as it is.
            step: optimizer steps of the fit so far, for the points of the fit's own `val/` curve.
        """
        metrics = self.score(model)
        # what comes before training are numbers to compare with, what comes behind a step a point of the one curve
        curve = (f"{name}/", 0) if step is None else (HELD_OUT, step)
        self.context.tracking.log_metrics(metrics.named(curve[0]), curve[1])
        accuracy = "" if metrics.answer_accuracy is None else f", answer accuracy {metrics.answer_accuracy:.1%}"
        perplexity = "" if metrics.perplexity is None else f", perplexity {metrics.perplexity:.2f}"
        loss = "held-out response loss" if metrics.perplexity is None else "held-out loss"
        line = f"{name}: {loss} {metrics.response_loss:.4f}{perplexity}{accuracy}"
        if metrics.preferences is not None:
            line += f", dpo loss {metrics.preferences.loss:.4f}, rewards right {metrics.preferences.accuracy:.1%}"
        self.context.console.print(line, highlight=False)
        return {name: metrics.to_dict()}
