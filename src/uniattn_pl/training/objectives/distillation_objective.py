"""Distillation: the mean over distilled tokens of label loss, divergence of logits and error of hidden states.

    L = (1 / N) sum_t [ w_labels CE_t + w_logits D(p_t, q_t) + w_hidden s mean_l err(h_l,t, h'_l,t) ]

over the N distilled tokens of a step's global batch; CE_t counts where t predicts a response token. Hidden states are
compared at the size of the other terms (NVIDIA ModelOpt): s is their sum over that of the hidden error, both of the
step before, so that it is the same however a step is divided among micro batches and ranks; 1 in the first step, and
where there are no other terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.config.sections.distillation_section import DistillationConfig, TermWeights
from uniattn_pl.losses.divergence import TopLogits, cosine_error, relative_error, summed_divergence
from uniattn_pl.losses.response_loss import IGNORED
from uniattn_pl.losses.row_logits import PieceLoss, logits_of_rows, loss_at_head, summed_over_rows
from uniattn_pl.training.objectives.distilled_tokens import distilled_positions, row_spans
from uniattn_pl.training.objectives.objective import MicroLoss, Objective
from uniattn_pl.training.objectives.teacher import Teacher, watched_layers
from uniattn_pl.training.objectives.teacher_cache import TeacherCache

LABELS, LOGITS, HIDDEN = "label_loss", "logit_divergence", "hidden_error"
POSITIONS, TARGETS, SPANS = "distilled_positions", "distilled_targets", "row_spans"
# Beyond it hidden states differ by rounding alone.
LARGEST_SCALE = 1e5
ERRORS = {"relative": relative_error, "cosine": cosine_error}


class DistillationObjective(Objective):
    """Learns from a teacher, live or by what was kept of it.

    The teacher runs where the student has reached its output embedding, up to its own; there both turn `LOSS_CHUNK`
    rows at once into logits. So there are never whole logits of either, also where the models are sharded.

    Args:
        options: the teacher's section of the config.
        weights: of the terms in this stage.
        teacher: the model that is learned from.
        cache: keeps what it says; then it runs for what is not kept yet only.
    """

    def __init__(
        self,
        options: DistillationConfig,
        weights: TermWeights,
        teacher: Teacher,
        cache: TeacherCache | None = None,
    ) -> None:
        self.options, self.weights, self.teacher, self.cache = options, weights, teacher, cache
        self.hidden_layers = tuple(options.hidden_layers) if weights.hidden else ()
        self.terms = (LABELS, *((LOGITS,) if weights.logits else ()), *((HIDDEN,) if self.hidden_layers else ()))
        self.hidden_scale = 1.0

    def begin(self, shard: Callable[[nn.Module], None] | None) -> None:
        self.teacher.shard = shard

    def tokens_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        positions, targets = distilled_positions(batch, self.options.tokens)
        return {POSITIONS: positions, TARGETS: targets, SPANS: row_spans(batch) if self.cache is not None else []}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> MicroLoss:
        positions, targets = batch[POSITIONS], batch[TARGETS]
        kept = None
        if self.cache is not None:
            kept = self.cache.logits_of(batch, batch[SPANS], positions, lambda: self.teacher.beside(model))
        sums: list[Tensor] = []

        def of_states(states: Tensor) -> Tensor:
            rows = states.flatten(0, 1)[positions]
            if kept is not None:
                total, parts = summed_over_rows(model, rows, self._piece_loss(targets, lambda span: kept[span]))
            else:
                total, parts = self._beside_teacher(model, batch, rows, seen)
            sums.append(parts)
            return total

        with watched_layers(model, self.hidden_layers) as seen:
            total = loss_at_head(model, batch, of_states)
        labelled = int((targets != IGNORED).sum())
        counts = tuple(labelled if term == LABELS else len(positions) for term in self.terms)
        return MicroLoss(total, len(positions), sums[0], counts)

    def settle(self, loss: Tensor, means: Mapping[str, Tensor]) -> Tensor:
        if not self.hidden_layers or not (self.weights.labels or self.weights.logits):
            return loss
        error = means[HIDDEN]
        others = loss - self.weights.hidden * self.hidden_scale * error
        if error > 0:
            self.hidden_scale = min(float(others / error), LARGEST_SCALE)
        # with hidden states at the others' size in this very step, so that a jump of a small error is no explosion
        return others + self.weights.hidden * self.hidden_scale * error

    def state(self) -> dict[str, float]:
        return {"hidden_scale": self.hidden_scale}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.hidden_scale = float(state["hidden_scale"])

    def end(self) -> None:
        self.teacher.release()

    @torch.no_grad()
    def _beside_teacher(
        self, model: nn.Module, batch: Mapping[str, Any], rows: Tensor, seen: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The loss of the student's rows [N, d], with the teacher's of the same tokens."""
        teacher, positions = self.teacher.beside(model), batch[POSITIONS]
        found: list[tuple[Tensor, Tensor]] = []

        def of_states(states: Tensor) -> Tensor:
            wanted = states.flatten(0, 1)[positions]
            piece = self._piece_loss(batch[TARGETS], lambda span: self._logits(teacher, wanted[span]))
            with torch.enable_grad():
                total, parts = summed_over_rows(model, rows, piece)
                if self.hidden_layers:
                    error = self._hidden_error(seen, of_teacher, positions)
                    total = total + self.weights.hidden * self.hidden_scale * error
                    parts = torch.cat([parts, error.detach()[None].to(parts)])
                found.append((total, parts))
            return states.new_zeros(())

        with watched_layers(teacher, self.hidden_layers) as of_teacher:
            loss_at_head(teacher, batch, of_states)
        return found[0]

    def _logits(self, teacher: nn.Module, rows: Tensor) -> Tensor | TopLogits:
        with torch.no_grad():
            logits = logits_of_rows(teacher, rows)
            top = self.options.top_k
            return logits if top is None else TopLogits.of(logits, top, self.options.temperature)

    def _piece_loss(self, targets: Tensor, teacher_logits: Callable[[slice], Tensor | TopLogits]) -> PieceLoss:
        weights, options = self.weights, self.options

        def loss_of(logits: Tensor, span: slice) -> tuple[Tensor, Tensor]:
            labels = nn.functional.cross_entropy(logits.float(), targets[span], ignore_index=IGNORED, reduction="sum")
            if not weights.logits:
                return weights.labels * labels, labels[None]
            known = teacher_logits(span)
            divergence = summed_divergence(logits, known, options.divergence, options.temperature)
            return weights.labels * labels + weights.logits * divergence, torch.stack([labels, divergence])

        return loss_of

    def _hidden_error(self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], positions: Tensor) -> Tensor:
        """Mean over the layers of the error, summed over the distilled tokens."""
        error = ERRORS[self.options.hidden_error]
        errors = [
            error(student[index].flatten(0, 1)[positions], teacher[index].flatten(0, 1)[positions])
            for index in self.hidden_layers
        ]
        return torch.stack(errors).mean()
