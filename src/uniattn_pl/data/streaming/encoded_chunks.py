"""Chunks of a stream as tokens, made in worker processes where there are some."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.documents import document_tokens
from uniattn_pl.data.encoded_rows import EncodedRows
from uniattn_pl.data.encoding import RefusedRow, encode_rows
from uniattn_pl.data.overlap import asked_digest
from uniattn_pl.data.records import Record
from uniattn_pl.data.row_problems import BadRow
from uniattn_pl.data.rows import Row, map_row
from uniattn_pl.data.sources import SKIPPING
from uniattn_pl.data.streaming.row_stream import Place, RowStream, Unit
from uniattn_pl.data.text_column import with_text
from uniattn_pl.data.workers import iterate
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class StreamCounts:
    """What became of the records of a stream so far.

    Args:
        rows_read: records, again in every pass.
        skipped: bad rows (`on_bad_row: skip`).
        filtered: rows that their format leaves out.
        removed: rows that are held out, too (`data.remove_overlap`).
        refused: rows that the chat template does not take (`on_bad_row: skip`).
        dropped: rows without room for a response token.
        truncated: sequences cut at the end, chats also between turns.
        tokens: of all sequences.
    """

    rows_read: int = 0
    skipped: int = 0
    filtered: int = 0
    removed: int = 0
    refused: int = 0
    dropped: int = 0
    truncated: int = 0
    tokens: int = 0

    def lost(self) -> str:
        """What was left out or cut, in words."""
        losses = ("skipped", "filtered", "removed", "refused", "dropped", "truncated")
        told = [f"{getattr(self, name):,} {name}" for name in losses if getattr(self, name)]
        return f" ({', '.join(told)})" if told else ""

    def plus(self, other: StreamCounts) -> StreamCounts:
        """The sums of both."""
        return StreamCounts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class RowReader:
    """How the records of a source become rows.

    Args:
        format: its row format.
        text_column: the key of its plain text.
        skip_bad: leave bad rows out.
        whole_chats, roles: as of `map_row`.
        held_out: digests of what is held out, where rows that ask the same are left out.
    """

    format: str
    text_column: str | None = None
    skip_bad: bool = False
    whole_chats: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    held_out: frozenset[bytes] = frozenset()

    def row(self, record: Record, counts: StreamCounts) -> Row | None:
        """The row of a record, or None for one that is left out, which is counted.

        Raises:
            UserError: a bad row, with its place.
        """
        counts.rows_read += 1
        if self.text_column is not None:
            record = with_text(record, self.text_column)
        try:
            if record.problem:
                raise BadRow(record.problem)
            row = map_row(record.value, self.format, whole_chats=self.whole_chats, roles=self.roles)
        except BadRow as problem:
            if not self.skip_bad:
                raise UserError(f"{record.place()}: {problem}; {SKIPPING}") from None
            counts.skipped += 1
            return None
        if row is None:
            counts.filtered += 1
        elif self.held_out and asked_digest(row) in self.held_out:
            counts.removed += 1
            return None
        return row


@dataclass
class EncodedChunk:
    """The tokens of a chunk.

    Attributes:
        place: of the chunk in its stream.
        first: the number in its pass of its first record; the others follow.
        encoded: sequences; the row numbers of `encoded.source_rows` are places in `rows`.
        rows: of each encoded row, which record of the chunk it was.
        documents: (record of the chunk, tokens, whether it continues) of each text that is packed with others.
        counts: of the chunk.
        problem: why it cannot be read; nothing follows it.
    """

    place: Place
    first: int = 0
    encoded: EncodedRows | None = None
    rows: list[int] = field(default_factory=list)
    documents: list[tuple[int, list[int], bool]] = field(default_factory=list)
    counts: StreamCounts = field(default_factory=StreamCounts)
    problem: str = ""


@dataclass(frozen=True)
class ChunkEncoder:
    """Makes tokens of a chunk's units.

    Args:
        reader: of rows.
        tokenizer, max_length: as of `encode_rows`.
        pack_documents: plain texts are left as tokens of documents, which are packed with those of other chunks.
        template: that rows are put into; None: the paper's prompt.
    """

    reader: RowReader
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    pack_documents: bool
    template: ChatTemplate | None = None

    def encode(self, place: Place, first: int, units: Sequence[Unit]) -> EncodedChunk:
        """The chunk as tokens; a bad row is its problem."""
        chunk = EncodedChunk(place, first)
        try:
            rows = self._rows(units, chunk)
        except UserError as error:
            chunk.problem = str(error)
            return chunk
        texts = [(number, row) for number, row in rows if self.pack_documents and row.plain]
        others = [(number, row) for number, row in rows if not (self.pack_documents and row.plain)]
        tokens = document_tokens([row for _, row in texts], self.tokenizer)
        chunk.documents = [(number, one, row.continues) for (number, row), one in zip(texts, tokens, strict=True)]
        chunk.rows = [number for number, _ in others]
        skip = self.reader.skip_bad
        try:
            chunk.encoded = encode_rows(
                [row for _, row in others], self.tokenizer, self.max_length, template=self.template, skip_refused=skip
            )
        except RefusedRow as refused:
            record = [record for unit in units for record in unit][others[refused.number][0]]
            chunk.problem = f"{record.place()}: {refused}; {SKIPPING}"
            return chunk
        lost = chunk.encoded.counts
        chunk.counts.dropped, chunk.counts.refused = lost.dropped, lost.refused
        chunk.counts.truncated = lost.truncated + lost.shortened
        chunk.counts.tokens = int(chunk.encoded.lengths.sum()) + sum(map(len, tokens))
        return chunk

    def _rows(self, units: Sequence[Unit], chunk: EncodedChunk) -> list[tuple[int, Row]]:
        """Each row with the number of its record in the chunk; the last piece of a unit ends as texts do."""
        rows, number = list[tuple[int, Row]](), 0
        for unit in units:
            found = [(number + i, self.reader.row(record, chunk.counts)) for i, record in enumerate(unit)]
            kept = [(place, row) for place, row in found if row is not None]
            if kept:
                place, last = kept[-1]
                rows += [*kept[:-1], (place, replace(last, continues=False))]
            number += len(unit)
        return rows


class _Chunks(IterableDataset[Any]):
    """The encoded chunks of a stream, every one by one of the worker processes; each reads all records."""

    def __init__(self, stream: RowStream, encoder: ChunkEncoder, place: Place) -> None:
        self.stream, self.encoder, self.place = stream, encoder, place

    def __iter__(self) -> Iterator[EncodedChunk | bytes]:
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        place = self.place
        try:
            for number, (place, first, units) in enumerate(self.stream.chunks(self.place)):
                if number % workers == own:
                    chunk = self.encoder.encode(place, first, units)
                    # by value: shared memory would hold a file open for each of its tensors
                    yield chunk if worker is None else pickle.dumps(chunk)
        except UserError as error:
            chunk = EncodedChunk(place, problem=str(error))
            yield chunk if worker is None else pickle.dumps(chunk)


def encoded_chunks(
    stream: RowStream, encoder: ChunkEncoder, place: Place, num_workers: int
) -> Generator[EncodedChunk, None, None]:
    """Yield the chunks of a stream from a place on, in order, the same with any number of worker processes.

    Raises:
        UserError: a bad row, or a damaged shard.
        RunFailure: a worker process was killed.
    """
    chunks = _Chunks(stream, encoder, place)
    # a generator of its own: the global one, from which dropout draws, must not depend on when we resumed
    own = torch.Generator().manual_seed(stream.seed)
    loader: DataLoader[Any] = DataLoader(chunks, batch_size=None, num_workers=num_workers, generator=own)
    for found in iterate(loader):
        chunk: EncodedChunk = pickle.loads(found) if isinstance(found, bytes) else found
        if chunk.problem:
            raise UserError(*chunk.problem.split("\n"))
        yield chunk
