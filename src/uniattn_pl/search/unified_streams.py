"""The hidden states of a partly converted model, so that a change of one layer costs only the layers above it.

Below a changed layer nothing changes: a candidate starts from the kept stream that enters its layer, is fitted
there, and runs to the score. What layers further down publish for readers above is computed again from their own
kept streams, one layer each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.architectures.measurement_protocol import LOSS
from uniattn_pl.calibration.fitted_heads import InputGram, fitted_heads
from uniattn_pl.calibration.layers import (
    Batch,
    WatchPoint,
    behind_attention,
    capture,
    layer_inputs,
    read_point,
    repaired_per_unit,
    repaired_point,
)
from uniattn_pl.calibration.solvers import Fit, LayerSample, make_solver
from uniattn_pl.calibration.weights import (
    Weights,
    adjusts_output_projection,
    in_attention,
    read_weights,
    set_fit,
    write_weights,
)
from uniattn_pl.families.anatomy import anatomy_of
from uniattn_pl.families.inspection import PUBLICATIONS, attention_of, decoder_layers, output_name, output_projection
from uniattn_pl.families.model_shape import stock_plan
from uniattn_pl.families.passed_layers import hidden_of
from uniattn_pl.losses.divergence import TopLogits
from uniattn_pl.modeling.attention.compensation_layer import make_compensation
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan, LayerRow
from uniattn_pl.plan.roles import FIT
from uniattn_pl.search.score import kept_outputs, make_score
from uniattn_pl.search.short_distillation import distil


class UnifiedStreams:
    """A model under a plan, its fitted weights, and the stream that enters each of its layers.

    Cost: B L d numbers per layer are held; a candidate at layer i runs the N - i layers from there, once for the fit
    of one layer and once for the score.

    Args:
        original: the stock model; unchanged.
        fitted: batches (input_ids, attention_mask, labels [B, L]) that compensations are fitted on.
        measured: batches that the score is taken on. Others than the fitted ones: with few tokens a fit to the same
            ones looks better than it is.
        initialiser: how compensations are fitted.
        ridge: of the least-squares initialisers.
        score: of `architectures.measurement_protocol.SCORES`.
    """

    def __init__(
        self,
        original: PreTrainedModel,
        fitted: Sequence[Batch],
        measured: Sequence[Batch],
        *,
        initialiser: str,
        ridge: float,
        score: str = LOSS,
    ) -> None:
        self.original, self.initialiser, self.ridge = original, initialiser, ridge
        batches = [*fitted, *measured]
        self.fitted_batches = list(range(len(fitted)))
        self.measured_batches = list(range(len(fitted), len(batches)))
        self.inputs = [layer_inputs(original, batch) for batch in batches]
        self.masks = [batch["attention_mask"].bool().to(original.device) for batch in batches]
        self.batches = [{name: tensor.to(original.device) for name, tensor in batch.items()} for batch in batches]
        self.anatomy = anatomy_of(original.config)
        self.plan = stock_plan(original)
        self.fitted: dict[int, Weights] = {}
        self.targets: list[list[torch.Tensor]] = []
        self.streams: list[list[torch.Tensor]] = [[inputs.hidden for inputs in self.inputs]]
        self._run_original()
        self._last = list(self.streams[-1])
        last = self._measured(dict(enumerate(self._last)))
        self._score = make_score(score, original, {index: self.batches[index] for index in last}, last)
        self.score = self._score.of(original, last)

    @torch.no_grad()
    def try_plan(self, plan: LayerPlan, changed: int) -> float:
        """The score under `plan`, which differs from the present one at layer `changed` and its readers above.

        The changed layer is fitted; operated layers above keep the weights they have.
        """
        return self._pass(self.model(plan), plan, changed, refit={changed}, keep=False)

    @torch.no_grad()
    def judge(self, plan: LayerPlan, *, distil_steps: int = 0) -> float:
        """The score under any plan, with every layer from the first that differs fitted on what comes from below.

        Args:
            distil_steps: of a short distillation on the fitted batches, behind the fit.
        """
        start, model, score = self.first_difference(plan), self.model(plan), self.score
        if start is not None:
            refit = {index for index in plan.compensated if index >= start}
            score = self._pass(model, plan, start, refit=refit, keep=False)
        if distil_steps:
            distil(model, plan, self._distilled_batches, steps=distil_steps)
            score = self._pass(model, plan, 0, refit=set(), keep=False)
        return score

    def first_difference(self, plan: LayerPlan) -> int | None:
        """The lowest layer that is not as in the present plan; None: all are."""
        pairs = zip(plan.rows, self.plan.rows, strict=True)
        return next((row.index for row, present in pairs if row != present), None)

    @cached_property
    def _distilled_batches(self) -> list[tuple[Batch, list[TopLogits]]]:
        """The fitted batches, with what is kept of the original's outputs."""
        batches = [(self.batches[index], self._last[index]) for index in self.fitted_batches]
        return [(batch, kept_outputs(self.original, batch, last)) for batch, last in batches]

    @torch.no_grad()
    def accept(self, plan: LayerPlan, changed: int) -> float:
        """Make `plan` the present one: fit the changed layer and, on the new stream, every operated layer above."""
        refit = {index for index in plan.compensated if index >= changed}
        model = self.model(plan)
        self.plan = plan
        self.fitted = {index: weights for index, weights in self.fitted.items() if index < changed}
        self.score = self._pass(model, plan, changed, refit=refit, keep=True)
        return self.score

    def model(self, plan: LayerPlan) -> PreTrainedModel:
        """A converted model under `plan` on the weights fitted so far."""
        model = converted_copy(self.original, plan)
        model.config.reuse_mode = "replay"
        for index, weights in self.fitted.items():
            if plan.rows[index].role == self.plan.rows[index].role:
                write_weights(decoder_layers(model)[index], weights)
        return model

    @torch.no_grad()
    def _run_original(self) -> None:
        hidden = self.streams[0]
        for index, layer in enumerate(decoder_layers(self.original)):
            point = behind_attention(layer, self.anatomy.norm_after_attention)
            targets, following = [], []
            for inputs, states in zip(self.inputs, hidden, strict=True):
                seen: dict[str, torch.Tensor] = {}
                with capture(point, seen, "target"):
                    following.append(hidden_of(layer(states, **inputs.arguments[index])))
                targets.append(seen["target"])
            self.targets.append(targets)
            self.streams.append(following)
            hidden = following

    def _pass(self, model: PreTrainedModel, plan: LayerPlan, start: int, *, refit: set[int], keep: bool) -> float:
        """Run from layer `start` to the score, fitting the layers `refit`; only what is kept or measured goes on."""
        last_fit = max(refit, default=start)
        running = dict(enumerate(self.streams[start]))
        states = self._published_below(model, plan, start)
        for row in plan.rows[start:]:
            if row.index in refit and row.compensated:
                fit = self._fit(model, row, running, states)
                layer = decoder_layers(model)[row.index]
                set_fit(attention_of(layer), fit, attention_of(decoder_layers(self.original)[row.index]))
                if keep:
                    self.fitted[row.index] = read_weights(layer, row)
            if not keep and row.index >= last_fit:
                running = self._measured(running)
            running = {batch: self._layer(model, row, batch, h, states[batch]) for batch, h in running.items()}
            if keep:
                self.streams[row.index + 1] = list(running.values())
        return self._score.of(model, self._measured(running))

    def _measured(self, running: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        return {batch: running[batch] for batch in self.measured_batches}

    def _published_below(self, model: PreTrainedModel, plan: LayerPlan, start: int) -> list[Publications]:
        """By batch, what layers below `start` publish for those at or above it."""
        states = [Publications() for _ in self.inputs]
        for source in _sources_below(plan, start):
            for batch, hidden in enumerate(self.streams[source]):
                self._layer(model, plan.rows[source], batch, hidden, states[batch])
        return states

    def _layer(
        self, model: PreTrainedModel, row: LayerRow, batch: int, hidden: torch.Tensor, state: Publications
    ) -> torch.Tensor:
        layer = decoder_layers(model)[row.index]
        return hidden_of(layer(hidden, **{**self.inputs[batch].arguments[row.index], PUBLICATIONS: state}))

    def _fit(
        self, model: PreTrainedModel, row: LayerRow, running: dict[int, torch.Tensor], states: list[Publications]
    ) -> Fit | None:
        layer = decoder_layers(model)[row.index]
        # Fitted from where the original left off, not from an earlier fit.
        original = attention_of(decoder_layers(self.original)[row.index])
        if output_name(attention_of(layer)) is not None:
            output_projection(attention_of(layer)).weight = nn.Parameter(
                output_projection(original).weight.detach(), requires_grad=False
            )
        if row.merge == FIT:
            tokens = InputGram()
            for batch in self.fitted_batches:
                seen: dict[str, torch.Tensor] = {}
                with capture(WatchPoint(attention_of(layer)), seen, "x", stop=True):
                    self._layer(model, row, batch, running[batch], states[batch])
                tokens.add(seen["x"], self.masks[batch])
            write_weights(layer, in_attention(layer, fitted_heads(original, tokens, row.kv_heads or 1)))
        assert row.compensation is not None
        attention_of(layer).w_c = make_compensation(original, row.compensation)
        solver = make_solver(self.initialiser, self.ridge, bias=row.compensation.bias)
        for batch in self.fitted_batches:
            seen = {}
            with ExitStack() as stack:
                stack.enter_context(capture(read_point(attention_of(layer), row), seen, "x"))
                if adjusts_output_projection(row):
                    stack.enter_context(capture(WatchPoint(output_projection(attention_of(layer))), seen, "heads"))
                point = repaired_point(layer, row, self.anatomy)
                stack.enter_context(capture(point, seen, "unified", stop=True))
                self._layer(model, row, batch, running[batch], states[batch])
            error = self.targets[row.index][batch].float() - seen["unified"].float()
            error = error / repaired_per_unit(layer, row)
            solver.update(LayerSample(seen["x"], error, seen.get("heads"), self.masks[batch]))
        return solver.solve()


def _sources_below(plan: LayerPlan, start: int) -> list[int]:
    """Layers below `start` that have to publish for readers at or above it, bottom first, and their own sources."""
    needed = {row.source for row in plan.rows[start:] if row.source is not None and row.source < start}
    further = {plan.rows[source].source for source in needed}
    return sorted(index for index in needed | further if index is not None)
