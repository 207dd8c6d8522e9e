"""The streaming calibration pass: every batch advances one layer at a time, through both models at once.

For each compensated layer, bottom-up (paper Algorithm 1): all batches reach it, its weights are solved, and
only then do the batches of the unified model move on. This gives the same weights as re-running both models
once per layer, for the cost of one forward of each model (the layers below the first operated one are run
once, as both models agree there) and one more attention per compensated layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.calibration.calibration_report import CalibrationReport, LayerError
from uniattn_pl.calibration.layers import (
    Batch,
    LayerInputs,
    Progress,
    WatchPoint,
    capture,
    read_point,
    repaired_per_unit,
    repaired_point,
)
from uniattn_pl.calibration.mean_norm import MeanNorm
from uniattn_pl.calibration.rank_choice import RANK_KEEPS
from uniattn_pl.calibration.record import CalibrationRecord, SolvedLayer
from uniattn_pl.calibration.refinement import LayerRefinement, Refinement
from uniattn_pl.calibration.solvers import LayerSample, make_solver
from uniattn_pl.calibration.stream_store import TensorStore
from uniattn_pl.calibration.weights import adjusts_output_projection, set_fit, write_weights
from uniattn_pl.config.sections.calibration_section import LEAST_SQUARES
from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import attention_of, decoder_layers, decoder_of, output_projection
from uniattn_pl.modeling.attention.compensation_layer import reset_compensation
from uniattn_pl.modeling.conversion.convert import plan_of
from uniattn_pl.plan import LayerPlan, LayerRow
from uniattn_pl.plan.roles import FIT, MAP
from uniattn_pl.resilience.identity import MODEL
from uniattn_pl.resilience.ranks import sum_over_ranks

CHOOSING = 8  # one batch of so many decides what an initialiser chooses, such as the ridge


def calibrate(
    original: PreTrainedModel,
    converted: PreTrainedModel,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    initialiser: str = "joint_least_squares",
    ridge: float | str = 1e-2,
    head_alignment: str = "none",
    rank_keeps: float = RANK_KEEPS,
    refinement: Refinement | None = None,
    rank: int = 0,
    world_size: int = 1,
    record: Path | None = None,
    contents: str | None = None,
    memory_limit_bytes: int = 0,
    device_limit_bytes: int = 0,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Fit every compensation of `converted`, in place, to the errors it makes against `original`.

    Args:
        original: the stock model; unchanged.
        converted: `converted_copy(original, plan)`, or any model with a plan on the same weights.
        batches: dicts with input_ids and attention_mask [B, L], right padded, to fit on.
        held_out: batches of the same kind, on which the errors of the report are measured.
        initialiser: a name of `INITIALISERS`.
        ridge: relative ridge of the least-squares initialisers; "auto" takes, layer by layer, the one with the
            least error on every eighth of `batches`, fitted on the others.
        head_alignment: a name of `HEAD_ALIGNMENTS`; reuse layers then use the source heads that serve theirs best,
            and the model's plan says so.
        rank_keeps: of the squared error that a full W_c repairs on `batches`, the share that a rank has to keep which
            the plan leaves open (`AUTO_RANK`); it gets the least such rank, and the model's plan says so.
        refinement: of the weights of each layer behind their closed form; None: none.
        rank, world_size: of the default process group, whose ranks divide the batches, of which there must be one of
            each kind for every rank; all of them end with the weights and the report of all batches.
        record: folder that keeps every solved layer; a pass that was killed goes on from it.
        contents: digest of the weights of `original`, by which a record of other ones is told.
        memory_limit_bytes: hidden streams beyond this are kept in temporary files; 0: all of them.
        device_limit_bytes: so much of them stays on the device before main memory is taken.
        progress: called with (done, total, label).

    Raises:
        UserError: no layer of `converted` is compensated, so there is nothing to fit; there are fewer batches than
            ranks; `original` is not a stock model; the initialiser cannot choose a rank; no batch judges a refinement;
            or the record is of another pass.
    """
    plan: LayerPlan | None = getattr(converted, "layer_plan", None)
    if plan is None or not plan.compensated:
        raise UserError(
            "this model has no compensated layer, so there is nothing to calibrate; "
            "choose an architecture with compensation=true."
        )
    if original is converted or any(row.source is not None for row in plan_of(original).rows):
        whose = "is the converted model itself" if original is converted else "is a converted model, too"
        raise UserError(
            f"the original {whose}: W_c is fitted to what the stock model computes. Load that beside it, or convert a "
            "converted_copy(original, plan)."
        )
    if plan.open_ranks and initialiser not in LEAST_SQUARES:
        raise UserError(
            f"the initialiser {initialiser} does not know what error W_c repairs, by which a rank is chosen; "
            f"use {' or '.join(LEAST_SQUARES)}, or give W_c a rank."
        )
    if world_size > 1 and min(len(batches), len(held_out)) < world_size:
        raise UserError(
            f"{len(batches)} batches to fit and {len(held_out)} held out cannot be divided among {world_size} ranks; "
            "give more rows (calibration.num_samples, held_out_samples) or a smaller calibration.batch_size."
        )
    if refinement is not None and not held_out:
        raise UserError("what a refinement makes is judged on held-out batches, and there are none.")
    mode, converted.config.reuse_mode = converted.config.reuse_mode, "replay"
    try:
        store = TensorStore(memory_limit_bytes, device=original.device, device_limit_bytes=device_limit_bytes)
        with torch.no_grad(), store:
            parts = batches[rank::world_size], held_out[rank::world_size]
            streaming = _StreamingPass(original, converted, *parts, store, progress)
            streaming.distributed, streaming.rank_keeps = world_size > 1, rank_keeps
            streaming.refinement, streaming.num_batches = refinement, len(batches)
            streaming.place = rank, world_size
            if record is not None:
                options: dict[str, Any] = {"initialiser": initialiser, "ridge": ridge}
                options |= {"head_alignment": head_alignment, MODEL: contents}
                options["rank_keeps"] = rank_keeps if plan.open_ranks else None
                options["refinement"] = None if refinement is None else asdict(refinement)
                streaming.record = CalibrationRecord(record, options, plan, batches, writes=rank == 0)
            return streaming.run(initialiser, ridge, head_alignment)
    finally:
        converted.config.reuse_mode = mode


class _StreamingPass(LayerRefinement):
    """Fits every compensated layer as all batches reach it."""

    record: CalibrationRecord | None = None

    def run(self, initialiser: str, ridge: float | str, head_alignment: str) -> CalibrationReport:
        rows = []
        aligned = [row for row in self.rows if row.traits.reads == MAP and head_alignment != "none"]
        merged = [row for row in self.rows if row.merge == FIT]
        self.total += (len(aligned) + len(merged)) * self.num_fitted + len(
            self.plan.compensated
        ) * self._refining_visits()
        for index in self.plan.compensated:
            reset_compensation(attention_of(decoder_layers(self.converted)[index]).w_c)
        for row in self.rows:
            solved = self.record.load(row.index) if self.record is not None else None
            if solved is not None:
                rows += self._take_solved(row, solved, chosen=row in [*aligned, *merged])
                continue
            if row in merged:
                self._merge_heads(row)
            if row in aligned:
                self._align_heads(row, head_alignment)
            if row.index < self.first_operated:
                self._advance_both_as_one(row)
            elif row.compensated:
                rows.append(self._fit_layer(row, initialiser, ridge))
                self._record(row, rows[-1])
            else:
                self._advance_both(row)
            self._forget_below(row.index)
        decoder_of(self.converted).layer_plan = self.plan
        self.converted.config.layer_plan = self.plan.to_dict()
        tokens = [int(mask.sum()) for mask in self.masks]
        counts = torch.tensor([sum(tokens[: self.num_fitted]), sum(tokens[self.num_fitted :])])
        if self.distributed:
            counts = sum_over_ranks(counts)
        return CalibrationReport(initialiser, int(counts[0]), int(counts[1]), tuple(rows))

    def _record(self, row: LayerRow, error: LayerError) -> None:
        if self.record is not None:
            layer, heads_from = decoder_layers(self.converted)[row.index], self.plan.rows[row.index].heads_from
            self.record.save(SolvedLayer(error, self._fitted_weights(layer, row), heads_from))

    def _take_solved(self, row: LayerRow, solved: SolvedLayer, *, chosen: bool) -> list[LayerError]:
        """Move all batches past a layer that a killed pass had solved."""
        if solved.heads_from is not None:
            self._use_heads(row, solved.heads_from)
        if row.index in self.plan.open_ranks:
            self._use_rank(row, solved.error.rank)
        layer, original = (decoder_layers(model)[row.index] for model in (self.converted, self.original))
        write_weights(layer, solved.weights, original)
        self._advance_both(row)
        self._forget_below(row.index)
        self.total -= len(self._moving_on(row)) + self.num_fitted * chosen + self._refining_visits()
        return [solved.error]

    def _fit_layer(self, row: LayerRow, initialiser: str, ridge: float | str) -> LayerError:
        """Solve one compensated layer over all batches, then move them past it."""
        solver = make_solver(initialiser, ridge, bias=row.compensation is not None and row.compensation.bias)
        before, after, scale = MeanNorm(), MeanNorm(), MeanNorm()
        points = [
            repaired_point(decoder_layers(model)[row.index], row, self.anatomy)
            for model in (self.original, self.converted)
        ]
        for batch, mask in enumerate(self.masks):
            inputs = self._inputs(batch, row)
            seen: dict[str, torch.Tensor] = {}
            with capture(points[0], seen, "target"):
                hidden = self._run_original(row, self._hidden("original", row.index, batch, inputs), inputs)
            seen["target"] = self._behind_run(row, seen["target"], inputs)
            self._passed("original", row, batch, hidden)
            sample = self._unified_sample(row, batch, inputs, seen["target"], points[1])
            if batch < self.num_fitted:
                (solver.observe if batch % CHOOSING == CHOOSING - 1 else solver.update)(sample)
            else:
                self.store.put("target", batch, seen["target"])
                before.add(sample.error * self._per_unit(row), mask)
                scale.add(seen["target"], mask)
        if self.distributed:
            solver.sum_over_ranks()
        layers = (decoder_layers(model)[row.index] for model in (self.converted, self.original))
        attention, original = (attention_of(layer) for layer in layers)
        fit = solver.solve()
        rank, kept = self._settle_rank(row, fit)
        set_fit(attention, fit, original)
        refined = self._refine(row, initialiser)
        for batch in self._moving_on(row):
            inputs = self._inputs(batch, row)
            seen = {}
            with capture(points[1], seen, "unified"):
                hidden = self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
            self._passed("unified", row, batch, hidden)
            if batch >= self.num_fitted:
                target = self.store.get("target", batch)
                after.add(target.float() - seen["unified"].float(), self.masks[batch])
        for mean in (before, after, scale) if self.distributed else ():
            mean.sum_over_ranks()
        return LayerError(row.index, before.value, after.value, scale.value, rank, kept, refined)

    def _per_unit(self, row: LayerRow) -> float:
        return repaired_per_unit(decoder_layers(self.converted)[row.index], row)

    def _unified_sample(
        self, row: LayerRow, batch: int, inputs: LayerInputs, target: torch.Tensor, repaired: WatchPoint
    ) -> LayerSample:
        """What the unified model makes of this batch up to where W_c repairs it, its W_c still zero."""
        attention = attention_of(decoder_layers(self.converted)[row.index])
        seen: dict[str, torch.Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(capture(read_point(attention, row), seen, "x"))
            if adjusts_output_projection(row):
                stack.enter_context(capture(WatchPoint(output_projection(attention)), seen, "heads"))
            stack.enter_context(capture(repaired, seen, "unified", stop=True))
            self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
        error = (target.float() - seen["unified"].float()) / self._per_unit(row)
        return LayerSample(seen["x"], error, seen.get("heads"), self.masks[batch].to(error.device))
