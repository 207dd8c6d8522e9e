"""The streaming calibration pass: every batch advances one layer at a time, through both models at once.

For each compensated layer, bottom-up (paper Algorithm 1): all batches reach it, its weights are solved, and
only then do the batches of the unified model move on. This gives the same weights as re-running both models
once per layer, for the cost of one forward of each model (the layers below the first operated one are run
once, as both models agree there) and one more attention per compensated layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import (
    LayerInputs,
    Point,
    Progress,
    capture,
    layer_inputs,
    read_point,
    repaired_point,
)
from uniattn_pl.calibration.report import CalibrationReport, LayerError
from uniattn_pl.calibration.solvers import Fit, Sample, make_solver
from uniattn_pl.calibration.store import TensorStore
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.families import STATE_KEY, anatomy_of, decoder_layers
from uniattn_pl.modeling.sharing import Published, SharedState
from uniattn_pl.plan import LayerPlan, LayerRow

Batch = dict[str, torch.Tensor]
KEPT_INPUT_BYTES = 2**24
LENGTH_STEP = 16
PUBLISHED_TENSORS = ("query", "key", "value")


def calibrate(
    original: PreTrainedModel,
    converted: PreTrainedModel,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    initialiser: str = "joint_least_squares",
    ridge: float = 1e-2,
    memory_limit_bytes: int = 0,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Fit every compensation of `converted`, in place, to the errors it makes against `original`.

    Args:
        original: the stock model; unchanged.
        converted: `converted_copy(original, plan)`, or any model with a plan on the same weights.
        batches: dicts with input_ids and attention_mask [B, L], right padded, to fit on.
        held_out: batches of the same kind, on which the errors of the report are measured.
        initialiser: a name of `INITIALISERS`.
        ridge: relative ridge of the least-squares initialisers.
        memory_limit_bytes: hidden streams beyond this are kept in temporary files; 0: all of them.
        progress: called with (done, total, label).

    Raises:
        UserError: no layer of `converted` is compensated, so there is nothing to fit.
    """
    plan: LayerPlan | None = getattr(converted, "layer_plan", None)
    if plan is None or not plan.compensated:
        raise UserError(
            "this model has no compensated layer, so there is nothing to calibrate; "
            "choose an architecture with compensation=true."
        )
    mode, converted.config.reuse_mode = converted.config.reuse_mode, "replay"
    try:
        with torch.no_grad(), TensorStore(memory_limit_bytes) as store:
            streaming = _StreamingPass(original, converted, batches, held_out, store, progress)
            return streaming.run(initialiser, ridge)
    finally:
        converted.config.reuse_mode = mode


class _StreamingPass:
    def __init__(
        self,
        original: PreTrainedModel,
        converted: PreTrainedModel,
        batches: Sequence[Batch],
        held_out: Sequence[Batch],
        store: TensorStore,
        progress: Progress | None,
    ) -> None:
        self.original, self.converted, self.store, self.progress = original, converted, store, progress
        self.plan: LayerPlan = converted.get_decoder().layer_plan
        self.batches = [_few_lengths(batch) for batch in (*batches, *held_out)]
        self.num_fitted = len(batches)
        self.masks = [batch["attention_mask"].bool() for batch in self.batches]
        self.norm_name = anatomy_of(original.config).norm_after_attention
        self.first_operated = min(self.plan.operated)
        self.source_kwargs: dict[int, dict[str, Any]] = {}
        self.kept_inputs: dict[int, LayerInputs] = {}
        self.rows = self.plan.rows[: max(self.plan.compensated) + 1]
        moves = sum(len(self._moving_on(row)) for row in self.rows if row.compensated)
        self.done, self.total = 0, len(self.rows) * len(self.batches) + moves

    def run(self, initialiser: str, ridge: float) -> CalibrationReport:
        rows = []
        for index in self.plan.compensated:
            nn.init.zeros_(decoder_layers(self.converted)[index].self_attn.w_c.weight)
        for row in self.rows:
            if row.index < self.first_operated:
                self._advance_both_as_one(row)
            elif row.compensated:
                rows.append(self._fit_layer(row, initialiser, ridge))
            else:
                self._advance_both(row)
            self._forget_below(row.index)
        tokens = [int(mask.sum()) for mask in self.masks]
        fitted, held_out = sum(tokens[: self.num_fitted]), sum(tokens[self.num_fitted :])
        return CalibrationReport(initialiser, fitted, held_out, tuple(rows))

    # Streams are named by the layer they enter; below the first operated layer there is only the original one.
    def _hidden(self, model: str, index: int, batch: int, inputs: LayerInputs) -> torch.Tensor:
        if index == 0:
            return inputs.hidden
        name = "original" if index <= self.first_operated else model
        return self.store.get(f"{name}-{index}", batch).to(inputs.hidden.device)

    def _advance_both_as_one(self, row: LayerRow) -> None:
        for batch in range(len(self.batches)):
            inputs = self._inputs(batch, row)
            hidden = self._run_converted(row, self._hidden("original", row.index, batch, inputs), batch, inputs)
            self.store.put(f"original-{row.index + 1}", batch, hidden)

    def _advance_both(self, row: LayerRow) -> None:
        for batch in range(len(self.batches)):
            inputs = self._inputs(batch, row)
            unified = self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
            original = self._run_original(row, self._hidden("original", row.index, batch, inputs), inputs)
            self.store.put(f"unified-{row.index + 1}", batch, unified)
            self.store.put(f"original-{row.index + 1}", batch, original)

    def _fit_layer(self, row: LayerRow, initialiser: str, ridge: float) -> LayerError:
        """Solve one compensated layer over all batches, then move them past it."""
        solver = make_solver(initialiser, ridge)
        before, after, scale = _Mean(), _Mean(), _Mean()
        points = [
            repaired_point(decoder_layers(model)[row.index], row, self.norm_name)
            for model in (self.original, self.converted)
        ]
        for batch, mask in enumerate(self.masks):
            inputs = self._inputs(batch, row)
            seen: dict[str, torch.Tensor] = {}
            with capture(points[0], seen, "target"):
                hidden = self._run_original(row, self._hidden("original", row.index, batch, inputs), inputs)
            self.store.put(f"original-{row.index + 1}", batch, hidden)
            sample = self._unified_sample(row, batch, inputs, seen["target"], points[1])
            if batch < self.num_fitted:
                solver.update(sample)
            else:
                self.store.put("target", batch, seen["target"])
                before.add(sample.error, mask)
                scale.add(seen["target"], mask)
        set_weights(decoder_layers(self.converted)[row.index].self_attn, solver.solve())
        for batch in self._moving_on(row):
            inputs = self._inputs(batch, row)
            seen = {}
            with capture(points[1], seen, "unified"):
                hidden = self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
            self.store.put(f"unified-{row.index + 1}", batch, hidden)
            if batch >= self.num_fitted:
                target = self.store.get("target", batch).to(hidden.device)
                after.add(target.float() - seen["unified"].float(), self.masks[batch])
        return LayerError(row.index, before.value, after.value, scale.value)

    def _moving_on(self, row: LayerRow) -> range:
        """Batches that have to pass a layer once it is solved: above the top one only those that are measured."""
        return range(self.num_fitted if row is self.rows[-1] else 0, len(self.batches))

    def _unified_sample(
        self, row: LayerRow, batch: int, inputs: LayerInputs, target: torch.Tensor, repaired: Point
    ) -> Sample:
        """What the unified model makes of this batch up to where W_c repairs it, its W_c still zero."""
        attention = decoder_layers(self.converted)[row.index].self_attn
        seen: dict[str, torch.Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(capture(read_point(attention, row), seen, "x"))
            if adjusts_output_projection(row):
                stack.enter_context(capture(Point(attention.o_proj), seen, "heads"))
            stack.enter_context(capture(repaired, seen, "unified", stop=True))
            self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
        error = target.float() - seen["unified"].float()
        return Sample(seen["x"], error, seen.get("heads"), self.masks[batch].to(error.device))

    def _run_original(self, row: LayerRow, hidden: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
        layer = decoder_layers(self.original)[row.index]
        return layer(hidden, **inputs.arguments[row.index])

    def _run_converted(self, row: LayerRow, hidden: torch.Tensor, batch: int, inputs: LayerInputs) -> torch.Tensor:
        """Run one converted layer with what its source published for this batch; keep what it publishes."""
        state = SharedState()
        if row.source is not None:
            state[row.source] = self._published(row.source, batch, inputs)
        layer = decoder_layers(self.converted)[row.index]
        hidden = layer(hidden, **{**inputs.arguments[row.index], STATE_KEY: state})
        if row.index in state:
            self._keep_published(row.index, batch, state[row.index])
        return hidden

    def _keep_published(self, source: int, batch: int, entry: Published) -> None:
        for name in PUBLISHED_TENSORS:
            tensor = getattr(entry, name)
            if tensor is not None:
                self.store.put(f"{name}-of-{source}", batch, tensor)
        self.source_kwargs[source] = {k: v for k, v in entry.kwargs.items() if not isinstance(v, torch.Tensor)}

    def _published(self, source: int, batch: int, inputs: LayerInputs) -> Published:
        arguments = inputs.arguments[source]
        entry = Published(
            position_embeddings=arguments["position_embeddings"],
            mask=arguments.get("attention_mask"),
            kwargs=self.source_kwargs[source],
        )
        publishes = decoder_layers(self.converted)[source].self_attn.publishes
        names = ["key"] + ["query"] * ("map" in publishes) + ["value"] * ("key_value" in publishes)
        for name in names:
            setattr(entry, name, self.store.get(f"{name}-of-{source}", batch).to(inputs.hidden.device))
        return entry

    def _inputs(self, batch: int, row: LayerRow) -> LayerInputs:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, f"layer {row.index}")
        if batch in self.kept_inputs:
            return self.kept_inputs[batch]
        inputs = layer_inputs(self.original, self.batches[batch])
        # The first batches that fit are kept: they are visited in the same order layer after layer.
        if sum(kept.nbytes for kept in self.kept_inputs.values()) + inputs.nbytes <= KEPT_INPUT_BYTES:
            self.kept_inputs[batch] = inputs
        return inputs

    def _forget_below(self, index: int) -> None:
        """Drop streams nobody reads any more."""
        for model in ("original", "unified"):
            self.store.drop(f"{model}-{index}")
        read_later = {row.source for row in self.plan.rows[index + 1 :]}
        for source in [s for s in self.source_kwargs if s not in read_later]:
            for name in PUBLISHED_TENSORS:
                self.store.drop(f"{name}-of-{source}")
            del self.source_kwargs[source]


def _few_lengths(batch: Batch) -> Batch:
    """Pad [B, L] on the right to a multiple of `LENGTH_STEP`.

    Every new length leaves the allocator holes of new sizes, and the process grew with the number of samples.
    """
    extra = -batch["attention_mask"].shape[1] % LENGTH_STEP
    return {name: nn.functional.pad(batch[name], (0, extra)) for name in ("input_ids", "attention_mask")}


def adjusts_output_projection(row: LayerRow) -> bool:
    """W_o can take part in repairing what is linear in it, unless W_c itself reads what W_o does."""
    linear = row.compensation_output == "attention_output" and row.compensation_input != "heads"
    return linear and not row.dropped


def set_weights(attention: Any, fit: Fit | None) -> None:
    """Write a solution into W_c, and into a W_o of the converted model's own (the original shares the old one)."""
    if fit is None:
        return
    attention.w_c.weight.copy_(fit.w_c)
    if fit.delta_o is not None:
        o_proj = attention.o_proj
        updated = o_proj.weight.double() + fit.delta_o.to(o_proj.weight.device)
        o_proj.weight = nn.Parameter(updated.to(o_proj.weight.dtype), requires_grad=o_proj.weight.requires_grad)


class _Mean:
    """Mean over tokens of the L2 norm of vectors [B, L, d] where mask [B, L] is True."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, vectors: torch.Tensor, mask: torch.Tensor) -> None:
        norms = vectors.float().norm(dim=-1)[mask.to(vectors.device)]
        self.total += norms.double().sum().item()
        self.count += norms.numel()

    @property
    def value(self) -> float:
        return self.total / max(self.count, 1)
