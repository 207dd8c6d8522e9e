"""Sequences as they are made, row after row: chunks in flat tensors, so that one chunk at most is Python integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uniattn_pl.data.encoded_sources import EncodedSources
from uniattn_pl.data.row_layout import RowTokens


class SequenceBuffer:
    """Collects the tokens of rows.

    Attributes:
        texts, sources, spans: int32, of the chunks that are closed: tokens, and bounds of spans.
        lengths, source_lengths, span_counts: of each sequence.
        numbers: which of the rows each is of.
    """

    def __init__(self) -> None:
        self.texts: list[torch.Tensor] = []
        self.sources: list[torch.Tensor] = []
        self.spans: list[torch.Tensor] = []
        self.lengths: list[int] = []
        self.source_lengths: list[int] = []
        self.span_counts: list[int] = []
        self.numbers: list[int] = []
        self._open: tuple[list[int], list[int], list[int]] = ([], [], [])

    def add(self, tokens: RowTokens, number: int) -> None:
        """Take the tokens of a row."""
        texts, sources, spans = self._open
        texts += tokens.text
        spans += [bound for span in tokens.spans for bound in span]
        if tokens.source is not None:
            sources += tokens.source
            self.source_lengths.append(len(tokens.source))
        self.lengths.append(len(tokens.text))
        self.span_counts.append(len(tokens.spans))
        self.numbers.append(number)

    def flush(self) -> None:
        """Close a chunk."""
        for closed, opened in zip((self.texts, self.sources, self.spans), self._open, strict=True):
            closed.append(torch.tensor(opened, dtype=torch.int32))
        self._open = ([], [], [])

    def encoded_sources(self) -> EncodedSources:
        """What an encoder reads."""
        return EncodedSources(joined(self.sources), torch.tensor(self.source_lengths, dtype=torch.int64))


def joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after another, int32; of none of them nothing."""
    return torch.cat([torch.empty(0, dtype=torch.int32), *pieces])
