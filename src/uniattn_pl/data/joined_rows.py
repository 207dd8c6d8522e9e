"""Encoded rows of several sources as one, and which of them is whose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import torch

from uniattn_pl.data.encoded_rows import EncodedRows, RowCounts
from uniattn_pl.data.encoded_sources import EncodedSources
from uniattn_pl.data.scored_spans import ScoredSpans


def joined_rows(parts: Sequence[EncodedRows], rows: Sequence[int]) -> EncodedRows:
    """Encoded rows one after another, in flat buffers of their own; one part alone stays as it is.

    Args:
        parts: of the same tokenizer.
        rows: how many were encoded of each: what the row numbers of the next ones begin behind.
    """
    if len(parts) == 1:
        return parts[0]
    first = [0, *accumulate(rows)][:-1]
    sources = [part.sources for part in parts if part.sources is not None]
    with_choices = any(part.choices for part in parts)
    return EncodedRows(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.text_lengths for part in parts]),
        ScoredSpans(torch.cat([part.spans.bounds for part in parts]), torch.cat([part.spans.counts for part in parts])),
        [choice for part in parts for choice in part.choices or [((), -1)] * len(part)] if with_choices else (),
        sources=EncodedSources(
            torch.cat([source.tokens for source in sources]), torch.cat([source.lengths for source in sources])
        )
        if sources
        else None,
        source_rows=torch.cat([part.source_rows + begin for part, begin in zip(parts, first, strict=True)]),
        counts=reduce(RowCounts.plus, [part.counts for part in parts]),
    )
