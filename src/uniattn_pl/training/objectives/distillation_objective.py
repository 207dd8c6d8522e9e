"""Distillation: the mean over distilled tokens of what labels, and a teacher's logits, hidden states and maps say.

    L = (1 / N) sum_t [ w_labels CE_t + w_logits D(p_t, q_t) + w_hidden s mean_l err(h_l,t, h'_l,t)
                        + w_maps sum_r mean_h KL(A_r,h[t] || A'_source(r),h[t]) ]

over the N distilled tokens of a step's global batch; CE_t counts where t predicts a response token. Hidden states are
compared at the size of the other terms (NVIDIA ModelOpt): s is their sum over that of the hidden error, both of the
step before, so that it is the same however a step is divided among micro batches and ranks; 1 in the first step, and
where there are no other terms. A_r is the teacher's map in a layer r that reads a map in the student, A' the student's
map that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.config.sections.distillation_section import ORIGINAL, DistillationConfig, TermWeights
from uniattn_pl.kernels.map_handles import ReplayedMap
from uniattn_pl.losses.divergence import (
    TopLogits,
    cosine_error,
    log_probabilities,
    relative_error,
    summed_divergence,
)
from uniattn_pl.losses.response_loss import IGNORED
from uniattn_pl.losses.row_logits import PieceLoss, logits_of_rows, loss_at_head, summed_over_rows
from uniattn_pl.training.objectives.common_layers import continued_behind, num_common_layers
from uniattn_pl.training.objectives.distilled_tokens import distilled_positions, row_segments, row_spans
from uniattn_pl.training.objectives.objective import MicroLoss, Objective
from uniattn_pl.training.objectives.source_maps import (
    Served,
    replay_maps,
    served_layers,
    summed_source_divergence,
    trained_for_readers,
    watched_maps,
)
from uniattn_pl.training.objectives.teacher import Teacher, watched_layers
from uniattn_pl.training.objectives.teacher_cache import TeacherCache

LABELS, LOGITS, HIDDEN, MAPS = "label_loss", "logit_divergence", "hidden_error", "map_divergence"
POSITIONS, TARGETS, SPANS, SEGMENTS = "distilled_positions", "distilled_targets", "row_spans", "row_segments"
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
        wanted = {LABELS: True, LOGITS: weights.logits, HIDDEN: self.hidden_layers, MAPS: weights.maps}
        self.terms = tuple(term for term, is_wanted in wanted.items() if is_wanted)
        self.hidden_scale = 1.0
        self._restore: Callable[[], None] = lambda: None
        self._common_layers: int | None = None  # known once the teacher is there

    def begin(self, model: nn.Module, shard: Callable[[nn.Module], None] | None) -> None:
        self.teacher.shard, self.teacher.publishes = shard, MAPS in self.terms
        if MAPS in self.terms:
            self._restore = replay_maps(model)

    def trained_besides(self, model: nn.Module) -> list[nn.Parameter]:
        return trained_for_readers(model) if MAPS in self.terms else []

    def tokens_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        positions, targets = distilled_positions(batch, self.options.tokens)
        found = {POSITIONS: positions, TARGETS: targets, SPANS: row_spans(batch) if self.cache is not None else []}
        return {**found, SEGMENTS: row_segments(batch)} if MAPS in self.terms else found

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> MicroLoss:
        positions, targets = batch[POSITIONS], batch[TARGETS]
        kept = None
        if self.cache is not None:
            kept = self.cache.logits_of(batch, batch[SPANS], positions, lambda: self.teacher.beside(model))
        common = self._common(model)
        sums: list[Tensor] = []

        def of_states(states: Tensor) -> Tensor:
            rows = states.flatten(0, 1)[positions]
            if kept is not None:
                total, parts = summed_over_rows(model, rows, self._piece_loss(targets, lambda span: kept[span]))
            else:
                total, parts = self._beside_teacher(model, batch, rows, hidden, maps, common)
            sums.append(parts)
            return total

        watched = (*self.hidden_layers, *([common - 1] if common else []))
        with watched_layers(model, watched) as hidden, watched_maps(model, self._served(model)) as maps:
            total = loss_at_head(model, batch, of_states)
        labelled = int((targets != IGNORED).sum())
        counts = tuple(labelled if term == LABELS else len(positions) for term in self.terms)
        return MicroLoss(total, len(positions), sums[0], counts)

    def settle(self, loss: Tensor, means: Mapping[str, Tensor]) -> Tensor:
        if not self.hidden_layers or not (self.weights.labels or self.weights.logits or self.weights.maps):
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
        self._restore()

    def _served(self, model: nn.Module) -> Served:
        """The sources whose maps are compared, and their readers."""
        return served_layers(model) if MAPS in self.terms else {}

    def _common(self, model: nn.Module) -> int:
        """Layers at the bottom which the teacher need not compute; none above the lowest that is compared."""
        if self.cache is not None or self.options.teacher != ORIGINAL:
            return 0
        if self._common_layers is None:
            self._common_layers = num_common_layers(model, self.teacher.beside(model))
        return min([self._common_layers, *(index + 1 for index in self.hidden_layers)])

    @torch.no_grad()
    def _beside_teacher(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        rows: Tensor,
        hidden: Mapping[int, Tensor],
        maps: Mapping[int, ReplayedMap],
        common: int,
    ) -> tuple[Tensor, Tensor]:
        """The loss of the student's rows [N, d], with the teacher's of the same tokens."""
        teacher, positions, served = self.teacher.beside(model), batch[POSITIONS], self._served(model)
        found: list[tuple[Tensor, Tensor]] = []

        def of_states(states: Tensor) -> Tensor:
            wanted = states.flatten(0, 1)[positions]
            piece = self._piece_loss(batch[TARGETS], lambda span: self._known(teacher, wanted[span]))
            with torch.enable_grad():
                total, parts = summed_over_rows(model, rows, piece)
                others = []
                if self.hidden_layers:
                    others.append(self._hidden_error(hidden, hidden_of_teacher, positions))
                    total = total + self.weights.hidden * self.hidden_scale * others[-1]
                if served:
                    others.append(summed_source_divergence(served, maps, maps_of_teacher, batch[SEGMENTS], positions))
                    total = total + self.weights.maps * others[-1]
                found.append((total, torch.cat([parts, *(other.detach()[None].to(parts) for other in others)])))
            return states.new_zeros(())

        readers = [reader for readers in served.values() for reader in readers]
        with (
            watched_layers(teacher, self.hidden_layers) as hidden_of_teacher,
            watched_maps(teacher, readers) as maps_of_teacher,
            continued_behind(teacher, common, lambda: hidden[common - 1].detach()),
        ):
            loss_at_head(teacher, batch, of_states)
        return found[0]

    def _known(self, teacher: nn.Module, rows: Tensor) -> Tensor | TopLogits:
        """What the teacher says of its rows: log p, or its largest logits."""
        with torch.no_grad():
            logits, top = logits_of_rows(teacher, rows), self.options.top_k
            temperature = self.options.temperature
            return log_probabilities(logits, temperature) if top is None else TopLogits.of(logits, top, temperature)

    def _piece_loss(self, targets: Tensor, of_teacher: Callable[[slice], Tensor | TopLogits]) -> PieceLoss:
        weights, options = self.weights, self.options

        def loss_of(logits: Tensor, span: slice) -> tuple[Tensor, Tensor]:
            own = log_probabilities(logits)
            labels = nn.functional.nll_loss(own, targets[span], ignore_index=IGNORED, reduction="sum")
            if not weights.logits:
                return weights.labels * labels, labels[None]
            log_q = own if options.temperature == 1 else log_probabilities(logits, options.temperature)
            divergence = summed_divergence(log_q, of_teacher(span), options.divergence, options.temperature)
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
