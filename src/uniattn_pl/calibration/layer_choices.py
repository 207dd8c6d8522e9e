"""What a calibration pass chooses for a layer once all batches have reached it: heads, and the rank of W_c."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from uniattn_pl.calibration.alignment import HeadAlignment, Observation
from uniattn_pl.calibration.fitted_heads import InputGram, fitted_heads
from uniattn_pl.calibration.layer_streams import LayerStreams
from uniattn_pl.calibration.layers import LayerInputs, WatchPoint, capture
from uniattn_pl.calibration.rank_choice import RANK_KEEPS, RepairedByRank
from uniattn_pl.calibration.solvers import Fit
from uniattn_pl.calibration.weights import in_attention, write_weights
from uniattn_pl.families.inspection import PUBLICATIONS, attention_of, decoder_layers, output_projection
from uniattn_pl.modeling.attention.compensation_layer import with_rank
from uniattn_pl.modeling.attention.operate import align_heads
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.conversion.probing import publishing_copy
from uniattn_pl.plan import LayerRow
from uniattn_pl.plan.roles import MAP
from uniattn_pl.resilience.ranks import broadcast, sum_over_ranks


class LayerChoices(LayerStreams):
    """Streams whose plan, and the converted model with it, takes what is chosen on the way.

    Attributes:
        distributed: ranks of a process group have a part of the batches each.
        rank_keeps: share of the repaired error that a rank has to keep.
    """

    distributed, rank_keeps = False, RANK_KEEPS

    def _use_heads(self, row: LayerRow, heads_from: Sequence[int]) -> None:
        self.plan = self.plan.align_heads({row.index: heads_from})
        align_heads(attention_of(decoder_layers(self.converted)[row.index]), self.plan.rows[row.index].heads_from)

    def _use_rank(self, row: LayerRow, rank: int | None) -> None:
        self.plan = self.plan.choose_rank(row.index, rank)
        attention = attention_of(decoder_layers(self.converted)[row.index])
        attention.layer_row, attention.w_c = self.plan.rows[row.index], with_rank(attention.w_c, rank)

    def _settle_rank(self, row: LayerRow, fit: Fit | None) -> tuple[int | None, float | None]:
        """Choose the rank of W_c, where it is open.

        Returns:
            The rank, None: in full; and the share of the repaired error it keeps, None: nothing was given or chosen,
            or the initialiser does not know what it repairs.
        """
        compensation = row.compensation
        if fit is None or compensation is None or compensation.rank is None:
            return None, None
        if fit.gram is None:
            return compensation.thin, None
        repaired, rank = RepairedByRank(fit), compensation.thin
        if row.index in self.plan.open_ranks:
            rank = repaired.least_rank(self.rank_keeps)
            rank = broadcast(rank) if self.distributed else rank  # rounding may differ, shapes must not
            self._use_rank(row, rank)
        return rank, repaired.kept(rank)

    def _merge_heads(self, row: LayerRow) -> None:
        """Choose the merged heads of keys and values of a layer, all batches having reached it."""
        layer, original = (decoder_layers(model)[row.index] for model in (self.converted, self.original))
        tokens = InputGram()
        for batch in range(self.num_fitted):
            inputs = self._inputs(batch, row)
            seen: dict[str, torch.Tensor] = {}
            with capture(WatchPoint(attention_of(layer)), seen, "x", stop=True):
                self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
            tokens.add(seen["x"], self.masks[batch].to(seen["x"].device))
        if self.distributed:
            tokens.gram = sum_over_ranks(tokens.gram)
        heads = fitted_heads(attention_of(original), tokens, row.kv_heads or 1)
        write_weights(layer, in_attention(layer, heads), original)

    def _align_heads(self, row: LayerRow, criterion: str) -> None:
        """Choose the source head of every head of a reuse layer, all batches having reached it."""
        alignment = HeadAlignment(criterion)
        for batch in range(self.num_fitted):
            inputs = self._inputs(batch, row)
            alignment.update(self._head_observation(row, batch, inputs))
        if self.distributed:
            alignment.sum_over_ranks()
        self._use_heads(row, alignment.best())

    def _head_observation(self, row: LayerRow, batch: int, inputs: LayerInputs) -> Observation:
        original = decoder_layers(self.original)[row.index]
        seen: dict[str, Any] = {}

        def keep(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen["kwargs"] = kwargs

        handle = attention_of(original).register_forward_pre_hook(keep, with_kwargs=True)
        with capture(WatchPoint(output_projection(attention_of(original))), seen, "heads"):
            self._run_original(row, self._hidden("original", row.index, batch, inputs), inputs)
        handle.remove()
        state, twin = Publications(), publishing_copy(attention_of(original))
        twin.publishes = frozenset({MAP})
        twin(**seen["kwargs"], **{PUBLICATIONS: state})
        attention = attention_of(decoder_layers(self.converted)[row.index])
        with capture(WatchPoint(attention.projection("v_proj"), leaving=True), seen, "value"):
            self._run_converted(row, self._hidden("unified", row.index, batch, inputs), batch, inputs)
        return Observation(
            own=state[row.index].replayed,
            source=self._published(row.source or 0, batch, inputs).replayed,
            value=seen["value"].unflatten(-1, (-1, attention.value_head_dim)).transpose(1, 2),  # [B, Hkv, S, Dv]
            heads=seen["heads"],
            o_weight=output_projection(attention).weight,
            mask=self.masks[batch],
        )
