"""All batches between two layers, of the original and of the converted model, and what their sources published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch, LayerInputs, Progress, layer_inputs, stream_behind
from uniattn_pl.calibration.stream_store import TensorStore
from uniattn_pl.families.anatomy import anatomy_of
from uniattn_pl.families.inspection import PUBLICATIONS, decoder_layers, decoder_of
from uniattn_pl.losses.row_logits import inputs_on, text_mask
from uniattn_pl.modeling.attention.published import Publications, Published
from uniattn_pl.modeling.length_rotations import depends_on_length
from uniattn_pl.plan import LayerPlan, LayerRow
from uniattn_pl.plan.roles import KEY_VALUE, MAP

KEPT_INPUT_BYTES = 2**24
LENGTH_STEP = 16
CROSS = "cross-attention-"  # of a layer, in front of its index
PUBLISHED_TENSORS = ("query", "key", "value")


class LayerStreams:
    """Advances batches layer by layer through both models, keeping streams and publications in a store.

    Streams are named by the layer they enter; below the first operated layer there is only the original one, as
    both models agree there.
    """

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
        self.plan: LayerPlan = decoder_of(converted).layer_plan
        self.batches = [*batches, *held_out]
        if not depends_on_length(original):
            self.batches = [_few_lengths(batch) for batch in self.batches]
        self.num_fitted = len(batches)
        self.masks = [text_mask(batch).bool() for batch in self.batches]
        self.anatomy = anatomy_of(original.config)
        self.first_operated = min(self.plan.operated)
        self.source_kwargs: dict[str, dict[str, Any]] = {}
        self.kept_inputs: dict[int, LayerInputs] = {}
        self.rows = self.plan.rows[: max(self.plan.compensated) + 1]
        moves = sum(len(self._moving_on(row)) for row in self.rows if row.compensated)
        self.done, self.total = 0, len(self.rows) * len(self.batches) + moves

    def _hidden(self, model: str, index: int, batch: int, inputs: LayerInputs) -> torch.Tensor:
        if index == 0:
            return inputs.hidden
        return self.store.get(self._stream(model, index), batch)

    def _stream(self, model: str, index: int) -> str:
        """The name of what enters a layer of one of the models."""
        return f"{'original' if index <= self.first_operated else model}-{index}"

    def _passed(self, model: str, row: LayerRow, batch: int, hidden: torch.Tensor) -> None:
        """Keep what leaves a layer in place of what has entered it, so that a stream is never there twice.

        The unified model passes a layer last: up to the first operated one it is its stream, too.
        """
        if model == "unified" or row.index > self.first_operated:
            self.store.drop(self._stream(model, row.index), batch)
        self.store.put(self._stream(model, row.index + 1), batch, hidden)

    def _advance_both_as_one(self, row: LayerRow) -> None:
        for batch in range(len(self.batches)):
            inputs = self._inputs(batch, row)
            hidden = self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
            self._passed("unified", row, batch, hidden)

    def _advance_both(self, row: LayerRow) -> None:
        for batch in range(len(self.batches)):
            inputs = self._inputs(batch, row)
            hidden = self._run_original(row, self._hidden("original", row.index, batch, inputs), inputs)
            self._passed("original", row, batch, hidden)
            hidden = self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
            self._passed("unified", row, batch, hidden)

    def _moving_on(self, row: LayerRow) -> range:
        """Batches that have to pass a layer once it is solved: above the top one only those that are measured."""
        return range(self.num_fitted if row is self.rows[-1] else 0, len(self.batches))

    def _run_original(self, row: LayerRow, hidden: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
        layer = decoder_layers(self.original)[row.index]
        return stream_behind(layer, hidden, inputs.arguments[row.index])

    def _behind_run(self, row: LayerRow, target: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
        """What W_c repairs to [B, L, d]: the original's `target` here, or behind all blocks that W_c stands for."""
        for index in range(row.index + 1, self.plan.replaced_until(row.index) + 1):
            target = stream_behind(decoder_layers(self.original)[index], target, inputs.arguments[index])
        return target

    def _run_converted(self, row: LayerRow, hidden: torch.Tensor, batch: int, inputs: LayerInputs) -> torch.Tensor:
        """Run one converted layer with what its source published for this batch; keep what it publishes."""
        state = self._state(row, batch, inputs)
        layer = decoder_layers(self.converted)[row.index]
        hidden = stream_behind(layer, hidden, {**inputs.arguments[row.index], PUBLICATIONS: state})
        if row.index in state:
            self._keep_published(row.index, batch, state[row.index])
        return hidden

    def _state(self, row: LayerRow, batch: int, inputs: LayerInputs) -> Publications:
        """What a converted layer reads of its source."""
        state = Publications()
        if row.source is not None:
            state[row.source] = self._published(row.source, batch, inputs)
        return state

    def _keep_published(self, source: int, batch: int, entry: Published) -> None:
        self._keep(str(source), batch, entry)
        if entry.cross is not None:
            self._keep(f"{CROSS}{source}", batch, entry.cross)

    def _keep(self, source: str, batch: int, entry: Published) -> None:
        for name, tensor in entry.tensors().items():
            self.store.put(f"{name}-of-{source}", batch, tensor)
        # Tensors of a batch are made again (`of_kernels`); sinks [H] are weights.
        arguments = entry.arguments.items()
        self.source_kwargs[source] = {k: v for k, v in arguments if not isinstance(v, torch.Tensor) or v.dim() == 1}

    def _published(self, source: int, batch: int, inputs: LayerInputs) -> Published:
        arguments = inputs.arguments[source]
        publishes = self.plan.read_from(source)
        entry = Published.from_tensors(
            self._kept(str(source), batch, publishes),
            publishes,
            mask=arguments.get("attention_mask"),
            arguments={**self.source_kwargs[str(source)], **inputs.of_kernels},
            position_embeddings=arguments.get("position_embeddings"),
        )
        if self.plan.cross_readers(source):
            name, of_map = f"{CROSS}{source}", frozenset({MAP})
            entry.cross = Published.from_tensors(
                self._kept(name, batch, of_map),
                of_map,
                mask=arguments.get("encoder_attention_mask"),
                arguments=self.source_kwargs[name],
                position_embeddings=None,
            )
        return entry

    def _kept(self, source: str, batch: int, publishes: frozenset[str]) -> dict[str, torch.Tensor]:
        names = ["key"] + ["query"] * (MAP in publishes) + ["value"] * (KEY_VALUE in publishes)
        return {name: self.store.get(f"{name}-of-{source}", batch) for name in names}

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
        later = {row.source for row in self.plan.rows[index + 1 :]}
        read_later = {f"{kind}{source}" for source in later for kind in ("", CROSS)}
        for source in [s for s in self.source_kwargs if s not in read_later]:
            for name in PUBLISHED_TENSORS:
                self.store.drop(f"{name}-of-{source}")
            del self.source_kwargs[source]


def _few_lengths(batch: Batch) -> Batch:
    """Pad [B, L] on the right to a multiple of `LENGTH_STEP`.

    Every new length leaves the allocator holes of new sizes, and the process grew with the number of samples.
    """
    inputs = inputs_on(batch, batch["input_ids"].device)
    return {name: nn.functional.pad(tokens, (0, -tokens.shape[1] % LENGTH_STEP)) for name, tokens in inputs.items()}
