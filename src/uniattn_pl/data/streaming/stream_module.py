"""The data module of a stream: nothing but what is held out is read before training asks for it."""

from __future__ import annotations

from typing import Any

from uniattn_pl.data.chat_template import ChatTemplate, template_contents
from uniattn_pl.data.collation import Batch
from uniattn_pl.data.data_module import InstructionDataModule
from uniattn_pl.data.encoded_rows import Example
from uniattn_pl.data.encoded_split import EncodedSplit, RowEncoder
from uniattn_pl.data.encoding import RefusedRow, encode_rows
from uniattn_pl.data.sources import SKIPPING
from uniattn_pl.data.streaming.encoded_chunks import ChunkEncoder
from uniattn_pl.data.streaming.sequence_stream import EncodedStream
from uniattn_pl.data.streaming.stream_loader import StreamLoader, StreamMix
from uniattn_pl.data.streaming.stream_report import StreamReport, StreamSourceReport
from uniattn_pl.data.streaming.stream_split import StreamSplit, open_stream
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS


class StreamDataModule(InstructionDataModule):
    """As `InstructionDataModule`, with `data.streaming`.

    Calibration and search take the first sequences of the order in which training takes them, of one pass at most;
    they are kept once they were made.
    """

    def setup(self, stage: str | None = None) -> None:
        """Find the shards and hold rows out, the first time it is called. Raises UserError as `open_stream`."""
        if self._report is not None:
            return
        self._template = ChatTemplate.of(self.config, self.tokenizer)
        opened = open_stream(self.config)
        rows = {TRAINING_ROWS: opened.train_contents(), HELD_OUT_ROWS: opened.validation_contents()}
        self._contents = {**rows, **template_contents(self._template)}
        self._validation_rows = opened.validation
        encoder = RowEncoder(self.config, self.tokenizer, self._template)
        try:
            validation, counts = encoder.held_out(opened.validation, opened.held_out_parts)
        except RefusedRow as refused:
            raise UserError(f"{opened.validation_places[refused.number]()}: {refused}; {SKIPPING}") from None
        nothing = encode_rows([], self.tokenizer, self.config.max_length)
        self._encoded = EncodedSplit(nothing, validation, (nothing,), counts, None, None, self.seed)
        self._sources = [self._encoded_stream(opened, number) for number in range(len(opened.sources))]
        self._weights = [source.weight for source in opened.sources]
        self._sampled: list[Example] = []
        self._sample_ends = False
        self._sample_state: dict[str, Any] | None = None
        self._report = StreamReport(
            sources=tuple(map(StreamSourceReport.of, opened.sources)),
            shuffle_buffer=self.config.shuffle_buffer,
            validation_rows=len(opened.validation),
            validation=len(validation),
            validation_response_tokens=validation.response_tokens,
            longest=self.config.max_length,
            plain_text=all(row.plain for row in opened.validation),
        )

    def _encoded_stream(self, opened: StreamSplit, number: int) -> EncodedStream:
        config, source = self.config, opened.sources[number]
        encoder = ChunkEncoder(
            source.reader, self.tokenizer, config.max_length, config.pack_documents, template=self._template
        )
        # a seed of its own for each source: two of as many rows would come in the same order
        return EncodedStream(source.name, source.stream(config.shuffle_buffer, self.seed * 1_000 + number), encoder)

    def train_dataloader(self, steps: int | None = None) -> StreamLoader:
        """Return a new loader at the beginning of the stream.

        Args:
            steps: optimizer steps until it ends.

        Raises:
            UserError: there is no number of steps.
        """
        self.setup()
        if steps is None:
            raise UserError("data.streaming needs a number of steps: training.stage1.max_steps, .stage2.max_steps.")
        contents = self.contents[TRAINING_ROWS].digest[:16]
        return StreamLoader(
            self._sources, self._weights, contents, self._collator("train"), steps=steps, **self._loading()
        )

    def has_train_row(self, row: int) -> bool:
        return len(self._sample(row + 1)) > row

    def train_length(self, row: int) -> int:
        return self._sample(row + 1)[row].counted_tokens

    def train_batches(self, num_samples: int, batch_size: int, *, first: int = 0) -> list[Batch]:
        """As of `InstructionDataModule`; of the beginning of the stream."""
        chosen = self._sample(first + num_samples)[first : first + num_samples]
        chosen = sorted(chosen, key=lambda example: -example.counted_tokens)
        collator = self._collator("train")
        return [collator(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]

    def _sample(self, count: int) -> list[Example]:
        """The first `count` sequences, fewer where the first pass over a source ends before."""
        self.setup()
        if len(self._sampled) >= count or self._sample_ends:
            return self._sampled
        mix = StreamMix(self._sources, self._weights, 0, self._sample_state)
        while len(self._sampled) < count and not self._sample_ends:
            source, example = mix.take()
            if mix.streams[source].place.epoch:
                self._sample_ends = True
            else:
                self._sampled.append(example)
        self._sample_state = mix.state()
        mix.close()
        return self._sampled
