"""Encoded rows in flat buffers, and one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch

from uniattn_pl.data.encoded_sources import EncodedSources
from uniattn_pl.data.scored_spans import ScoredSpans


@dataclass(frozen=True)
class Example:
    """One encoded row.

    Args:
        tokens: int32 [L], prompt (beside an encoder what the decoder begins with), response (with BOS and EOS).
        spans: int32 [K, 2], which of them carry the loss: the first of each span, and the one behind its last.
        choice_ids: first token of every choice when the row is checkable, else empty.
        answer_index: which choice is right, -1 when the row is not checkable.
        row: index of the row in its split as it was read; -1: a blank.
        source: int32 [S], the prompt, where an encoder reads it; else None.
    """

    tokens: torch.Tensor
    spans: torch.Tensor
    choice_ids: tuple[int, ...] = ()
    answer_index: int = -1
    row: int = -1
    source: torch.Tensor | None = None

    def blank(self) -> Example:
        """The same tokens without anything to learn or to answer: fills a place for which there is no row."""
        return Example(self.tokens, self.spans[:0], source=self.source)

    @property
    def prompt_length(self) -> int:
        """Tokens in front of the first one that carries the loss."""
        return int(self.spans[0, 0]) if len(self.spans) else len(self.tokens)

    @property
    def counted_tokens(self) -> int:
        """Tokens, none in a blank."""
        read = 0 if self.source is None else len(self.source)
        return len(self.tokens) + read if self.row >= 0 else 0


@dataclass
class RowCounts:
    """What encoding rows has lost, and what is odd about them.

    Args:
        truncated: sequences cut at the end.
        dropped: rows without room for a response token.
        ambiguous: rows with two choices that begin with the same token; their answers are not checked.
        special_text: rows that hold the text of a special token, which stays text.
        special_tokens: rows in which the tokenizer makes real special tokens of such text all the same.
        refused: rows that the chat template does not take.
        shortened: chats that were cut between turns.
        turns_cut: turns that they lost.
        open_answers: chats whose last learned turn ends in no special token.
    """

    truncated: int = 0
    dropped: int = 0
    ambiguous: int = 0
    special_text: int = 0
    special_tokens: int = 0
    refused: int = 0
    shortened: int = 0
    turns_cut: int = 0
    open_answers: int = 0

    def plus(self, other: RowCounts) -> RowCounts:
        """The sums of both."""
        return RowCounts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


class EncodedRows:
    """Encoded rows in one flat buffer: 4 bytes a token, so that half a million rows fit in memory.

    Args:
        tokens: int32 [total tokens], the sequences one after another.
        lengths: int64 [N], tokens of each sequence.
        spans: which of them carry the loss.
        choices: (choice_ids, answer_index) of each row, empty where rows are not checkable.
        sources: what the encoder reads of each row; None: there is none.
        source_rows: int64 [N], which of the rows that were encoded each sequence came from; default: all of them. A
            long plain text is several sequences.
        counts: what was lost and what is odd.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        spans: ScoredSpans,
        choices: Sequence[tuple[tuple[int, ...], int]] = (),
        *,
        sources: EncodedSources | None = None,
        source_rows: torch.Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> None:
        self.tokens, self.text_lengths, self.spans = tokens, lengths, spans
        self.sources = sources
        self.choices = list(choices)
        self.source_rows = torch.arange(len(lengths)) if source_rows is None else source_rows
        self.counts = counts or RowCounts()
        self._ends = lengths.cumsum(0)

    def __len__(self) -> int:
        return len(self.text_lengths)

    def __getitem__(self, index: int) -> Example:
        end = int(self._ends[index])
        tokens = self.tokens[end - int(self.text_lengths[index]) : end]
        choice_ids, answer_index = self.choices[index] if self.choices else ((), -1)
        row, source = int(self.source_rows[index]), None if self.sources is None else self.sources[index]
        return Example(tokens, self.spans[index], choice_ids, answer_index, row, source)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each row, its source among them: int64 [N]."""
        return self.text_lengths if self.sources is None else self.text_lengths + self.sources.lengths

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the encoder or the decoder reads."""
        sources = [] if self.sources is None else [self.sources.lengths]
        return int(torch.cat([self.text_lengths, *sources]).max())

    def identity(self) -> dict[str, int | str]:
        """Return what a loader compares with its checkpoint before it resumes in the middle of the rows."""
        return {"rows": len(self), "tokens": int(self.lengths.sum()), "packing": 0, "contents": self.contents}

    @cached_property
    def contents(self) -> str:
        """A digest of the sequences, in order."""
        digest = hashlib.sha256()
        sources = () if self.sources is None else (self.sources.tokens, self.sources.lengths)
        for part in (self.tokens, self.text_lengths, *self.spans.said(self.text_lengths), *sources):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def checkable(self) -> bool:
        """Whether any row has an answer among choices."""
        return any(answer_index >= 0 for _, answer_index in self.choices)

    @property
    def response_tokens(self) -> int:
        """Tokens that carry the loss."""
        return self.spans.tokens
