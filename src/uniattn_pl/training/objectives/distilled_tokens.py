"""Which tokens of a batch are distilled, and of which rows they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uniattn_pl.config.sections.distillation_section import RESPONSE_TOKENS
from uniattn_pl.losses.response_loss import IGNORED


class RowSpan(NamedTuple):
    """Where one row of text lies in a batch: tokens `start` to `end` of sequence `sequence`."""

    sequence: int
    start: int
    end: int


def row_spans(batch: Mapping[str, Tensor]) -> list[RowSpan]:
    """The rows of a batch [B, L] in their order; blank ones and padding are none.

    A batch has an `attention_mask`, or the `position_ids` and `row_mask` of packed rows.
    """
    spans = []
    packed = "position_ids" in batch
    mask = batch["row_mask" if packed else "attention_mask"].bool()
    for sequence, present in enumerate(mask):
        if "rows" in batch and int(batch["rows"][sequence].max()) < 0:
            continue
        end = int(present.sum())
        starts = [0]
        if packed:
            starts = (batch["position_ids"][sequence, :end] == 0).nonzero().squeeze(-1).tolist()
        spans += [RowSpan(sequence, *both) for both in zip(starts, [*starts[1:], end], strict=True) if end]
    return spans


def row_segments(batch: Mapping[str, Tensor]) -> Tensor:
    """Int64 [B, L]: the number of the row that each token is of; -1 where it is of none."""
    segments = torch.full_like(batch["input_ids"], -1)
    for number, span in enumerate(row_spans(batch)):
        segments[span.sequence, span.start : span.end] = number
    return segments


def distilled_positions(batch: Mapping[str, Tensor], tokens: str) -> tuple[Tensor, Tensor]:
    """Indices [N] into the flattened [B * L] states that predict a distilled token, and that token's label (or -100).

    Args:
        batch: with `labels` [B, L], on the CPU.
        tokens: of `DISTILLED_TOKENS`. Every token but the first of a row is predicted by the one before it.
    """
    shifted = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # [B, L]: at t, the label of t + 1
    if tokens == RESPONSE_TOKENS:
        wanted = shifted != IGNORED
    else:
        wanted = torch.zeros_like(shifted, dtype=torch.bool)
        for span in row_spans(batch):
            wanted[span.sequence, span.start : span.end - 1] = True
    positions = wanted.reshape(-1).nonzero().squeeze(-1)
    return positions, shifted.reshape(-1)[positions]
