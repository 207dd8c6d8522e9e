"""The sequences of one source of a stream, one after another, with a place to go on from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import Any

import torch

from uniattn_pl.data.documents import DocumentPacker
from uniattn_pl.data.encoded_rows import Example
from uniattn_pl.data.encoding import text_start
from uniattn_pl.data.streaming.encoded_chunks import ChunkEncoder, EncodedChunk, StreamCounts, encoded_chunks
from uniattn_pl.data.streaming.row_stream import Place, RowStream
from uniattn_pl.errors import UserError


@dataclass(frozen=True)
class EncodedStream:
    """A source as it is trained on.

    Attributes:
        name: of the source.
        stream: its records.
        encoder: makes tokens of them.
    """

    name: str
    stream: RowStream
    encoder: ChunkEncoder


class SequenceStream:
    """Takes sequences from a source, pass after pass without an end.

    Args:
        source: whose sequences.
        num_workers: processes that read and tokenise ahead; the sequences are the same with any number.
        state: of another one, which this one goes on from.

    Attributes:
        place: of the chunk that the last sequence was of.
        counts: of all chunks up to it.
    """

    def __init__(self, source: EncodedStream, num_workers: int, state: Mapping[str, Any] | None = None) -> None:
        self.source, self.place, self.counts = source, Place(), StreamCounts()
        self._packer = DocumentPacker(text_start(source.encoder.tokenizer), source.encoder.max_length)
        self._waiting: deque[Example] = deque()
        self._taken, self._passed_over = 0, 0
        if state is not None:
            self._packer.restore(state["packer"])
            self.counts, self.place = StreamCounts(**state["counts"]), Place(*state["place"])
            self._taken = self._passed_over = state["taken"]
        self._tokens_before = self.counts.tokens if state is None else -1  # of a resumed pass it is not known
        self._chunk = self._snapshot()
        self._chunks = encoded_chunks(source.stream, source.encoder, self.place, num_workers)

    def take(self) -> Example:
        """The next sequence.

        Raises:
            UserError: a bad row, a damaged shard, or a whole pass without a row that can be used.
            RunFailure: a worker process was killed.
        """
        while not self._waiting:
            self._advance()
        self._taken += 1
        return self._waiting.popleft()

    def state(self) -> dict[str, Any]:
        """Where it is, in plain numbers: the chunk, how many sequences of it were taken, what was left over before."""
        return {**self._chunk, "taken": self._taken}

    def close(self) -> None:
        """End the worker processes."""
        self._chunks.close()

    def _snapshot(self) -> dict[str, Any]:
        return {"place": self.place.numbers(), "packer": self._packer.state(), "counts": asdict(self.counts)}

    def _advance(self) -> None:
        chunk = next(self._chunks)
        if chunk.place.epoch != self.place.epoch:
            if self.counts.tokens == self._tokens_before:
                raise _no_row(self.source, self.counts)
            self._tokens_before = self.counts.tokens
        self.place = chunk.place
        self._chunk = self._snapshot()
        self.counts = self.counts.plus(chunk.counts)
        self._waiting.extend(islice(self._sequences(chunk), self._passed_over, None))
        self._taken, self._passed_over = self._passed_over, 0

    def _sequences(self, chunk: EncodedChunk) -> Iterator[Example]:
        """The sequences that a chunk makes full, in the order of its records."""
        encoded = chunk.encoded
        rows = [] if encoded is None else [chunk.rows[row] for row in encoded.source_rows.tolist()]
        parts: list[tuple[int, Example | tuple[list[int], bool]]] = [
            (number, encoded[index]) for index, number in enumerate(rows) if encoded is not None
        ]
        parts += [(number, (tokens, continues)) for number, tokens, continues in chunk.documents]
        for number, part in sorted(parts, key=itemgetter(0)):
            row = chunk.first + number
            if isinstance(part, Example):
                yield replace(part, row=row)
                continue
            tokens, continues = part
            for sequence, begins_in in self._packer.add(tokens, row, continues=continues):
                learned = torch.tensor([[1, len(sequence)]], dtype=torch.int32)
                yield Example(torch.tensor(sequence, dtype=torch.int32), learned, row=begins_in)


def _no_row(source: EncodedStream, counts: StreamCounts) -> UserError:
    """What to tell where a whole pass has nothing to learn."""
    return UserError(
        f"no row of '{source.name}' can be used: of {counts.rows_read} that were read {counts.skipped} are bad, "
        f"{counts.filtered} left out by their format, {counts.removed} held out, too, {counts.refused} "
        f"are not what the chat template takes, and {counts.dropped} have a "
        f"prompt of data.max_length={source.encoder.max_length} tokens or more."
    )
