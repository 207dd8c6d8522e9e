"""The counts of rows and tokens that were read, used and left out, printed before training and logged with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from uniattn_pl.config.sections.data_section import CHAT, PAPER, DataConfig
from uniattn_pl.data.encoded_split import EncodedSplit
from uniattn_pl.data.split_rows import Part, Split


class RowsReport(Protocol):
    """What is told of an experiment's rows."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""

    @property
    def plain_text(self) -> bool:
        """Whether what is held out are plain texts alone."""

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""

    def source_counts(self) -> dict[str, float]:
        """The figures of each source, for a tracked run."""

    def lines(self) -> list[str]:
        """Lines for the console."""


@dataclass(frozen=True)
class SourceReport:
    """Counts of one source of a mixture.

    Args:
        source, format, rows_read, skipped, filtered, train_rows, validation_rows, truncated, dropped, tokens,
            response_tokens: as of `DataReport`; the last four of its training rows.
        sequences: what an epoch draws from: training sequences or, where they are packed, packs.
        weight: as configured; None: all of it, once.
        drawn: sequences an epoch draws, some of them again where it has fewer.
    """

    source: str
    format: str
    rows_read: int
    skipped: int
    filtered: int
    train_rows: int
    validation_rows: int
    truncated: int
    dropped: int
    tokens: int
    response_tokens: int
    sequences: int
    weight: float | None
    drawn: int

    def line(self, of: int) -> str:
        """What it is, and brings to an epoch of so many sequences."""
        weight = "" if self.weight is None else f"weight {self.weight:g}: "
        return (
            f"  {self.source} ({self.format}), {self.rows_read:,} rows read, {self.train_rows:,} train, "
            f"{self.validation_rows:,} validation; {weight}{self.drawn:,} of {of:,} sequences an epoch "
            f"({self.drawn / of:.1%}), {self.drawn / self.sequences:.2f} times its {self.sequences:,}"
        )

    def counts(self) -> dict[str, float]:
        """Its figures by name, for a tracked run."""
        names = ("rows_read", "skipped", "filtered", "train_rows", "validation_rows", "sequences", "drawn", "tokens")
        return {name: float(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class DataReport:
    """Counts of one data set after reading, splitting and tokenising.

    Args:
        source: the data source.
        format: its row format.
        rows_read: records found, in all sources.
        skipped: bad rows left out (`on_bad_row: skip`).
        filtered: conversations left out because the prompt has no place for them or nothing is answered; empty texts.
        train_rows, validation_rows: rows of the split.
        train, validation: sequences left of them after `dropped`.
        max_length: limit in tokens.
        truncated: sequences cut to `max_length`.
        dropped: rows, training and validation, left out because their prompt alone fills `max_length`.
        ambiguous: validation rows whose answer is not checked because two choices begin with the same token.
        overlap: validation rows whose prompt, or plain text, is also a training row's, but for case, white space and
            Unicode form.
        tokens: training tokens, prompt and response.
        response_tokens: training tokens that carry the loss.
        validation_response_tokens: the same of the validation rows.
        longest: tokens of the longest sequence.
        special_text: rows with the text of a special token, which stays text.
        special_tokens: rows in which the tokenizer makes real special tokens of such text all the same.
        dropped_train: how many of `dropped` are training rows.
        template: what rows are put into, as in the config.
        refused: rows that the chat template does not take (`on_bad_row: skip`).
        shortened: chats cut between turns, to `max_length`.
        turns_cut: turns that they lost.
        open_answers: chats whose last learned turn ends in no special token.
        packs: sequences of at most `max_length` that the training rows are packed into; 0: not packed.
        overlap_train: training rows that ask what a validation row asks, as `overlap`.
        removed: training rows left out for that reason (`data.remove_overlap`).
        plain_text: what is held out are plain texts alone.
        sources: of a mixture, in the order of `data.sources`.
    """

    source: str
    format: str
    rows_read: int
    skipped: int
    filtered: int
    train_rows: int
    validation_rows: int
    train: int
    validation: int
    max_length: int
    truncated: int
    dropped: int
    ambiguous: int
    overlap: int
    tokens: int
    response_tokens: int
    validation_response_tokens: int
    longest: int
    special_text: int = 0
    special_tokens: int = 0
    dropped_train: int = 0
    packs: int = 0
    template: str = PAPER
    refused: int = 0
    shortened: int = 0
    turns_cut: int = 0
    open_answers: int = 0
    overlap_train: int = 0
    removed: int = 0
    plain_text: bool = False
    sources: tuple[SourceReport, ...] = ()

    @property
    def mean_length(self) -> float:
        """Tokens of a training sequence on average."""
        return self.tokens / max(1, self.train)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts by name, as they are logged."""
        return asdict(self)

    def source_counts(self) -> dict[str, float]:
        """The figures of each source of a mixture, by its place in `data.sources`, for a tracked run."""
        return {
            f"data/source_{number}/{name}": value
            for number, source in enumerate(self.sources)
            for name, value in source.counts().items()
        }

    def lines(self) -> list[str]:
        """Return the lines for the console: what was used, then whatever was lost."""
        lines = [
            f"data: {self.source} ({self.format}{self._in_template()}), {self.rows_read:,} rows read, "
            f"{self.train_rows:,} train, {self.validation_rows:,} validation",
            f"tokens: {self.tokens:,} train ({self.response_tokens:,} in responses), {self.mean_length:.0f} a sequence "
            f"on average, {self.longest} at most",
        ]
        if self.packs:
            full = self.tokens / (self.packs * self.max_length)
            lines.append(
                f"packing: {self.train:,} rows in {self.packs:,} sequences of {self.max_length} tokens, {full:.1%} full"
            )
        drawn = sum(source.drawn for source in self.sources)
        lines += [source.line(drawn) for source in self.sources]
        losses = (
            (self.skipped, "bad rows skipped"),
            (self.filtered, self._filtered_because()),
            (self.refused, "rows left out because the chat template does not take them"),
            (self.shortened, f"chats cut between turns at {self.max_length} tokens, {self.turns_cut:,} turns in all"),
            (self.truncated, f"sequences cut at {self.max_length} tokens"),
            (self.dropped, self._dropped_because()),
            (self.ambiguous, "validation answers not checked: two choices begin with the same token"),
            (
                self.overlap,
                f"validation rows have the prompt, or the text, of a training row ({self.overlap_train:,} training "
                "rows, which data.remove_overlap=true leaves out)",
            ),
            (
                self.removed,
                "training rows left out that have the prompt, or the text, of a validation row (data.remove_overlap)",
            ),
            (self.special_text, "rows hold the text of a special token, which stays text"),
            (self.open_answers, "chats end in no special token: the template does not say where an answer ends"),
            (self.special_tokens, "rows hold the text of a special token, which this tokenizer turns into the token"),
        )
        return lines + [f"{count:,} {description}" for count, description in losses if count]

    def _in_template(self) -> str:
        return "" if self.template == PAPER else f", template {self.template}"

    def _filtered_because(self) -> str:
        if self.template == PAPER:
            return (
                "rows left out (conversations of more than one round or with an empty turn, empty texts, pairs of "
                "equals); "
                f"data.template={CHAT} takes conversations whole"
            )
        return "rows left out (conversations in which the assistant says nothing, empty texts, pairs of equals)"

    def _dropped_because(self) -> str:
        train, validation = self.dropped_train, self.dropped - self.dropped_train
        return (
            f"rows dropped ({train:,} train, {validation:,} validation): the prompt alone has {self.max_length} tokens "
            "or more (data.max_length)"
        )


def report_of(config: DataConfig, split: Split, encoded: EncodedSplit) -> DataReport:
    """The counts of a split and of its tokens."""
    sources = [source for source in (split.source, split.validation_source) if source]
    train, validation = encoded.train, encoded.validation
    both = (train, validation)
    return DataReport(
        source=split.source.source,
        format=split.source.format,
        rows_read=sum(source.read for source in sources),
        skipped=sum(source.skipped for source in sources),
        filtered=sum(source.filtered for source in sources),
        train_rows=len(split.train),
        validation_rows=len(split.validation),
        train=len(train),
        validation=len(validation),
        max_length=config.max_length,
        dropped_train=train.counts.dropped,
        overlap=split.overlap,
        overlap_train=split.overlap_train,
        removed=split.removed,
        tokens=int(train.lengths.sum()),
        response_tokens=train.response_tokens,
        validation_response_tokens=validation.response_tokens,
        longest=max(part.longest for part in both),
        packs=0 if encoded.packs is None else len(encoded.packs),
        plain_text=all(row.plain for row in split.validation),
        sources=_sources_of(split.parts, encoded),
        template=config.template,
        **asdict(train.counts.plus(validation.counts)),
    )


def _sources_of(parts: tuple[Part, ...], encoded: EncodedSplit) -> tuple[SourceReport, ...]:
    if not parts:
        return ()
    rows = encoded.parts
    counts = tuple(map(len, rows)) if encoded.shares is None else encoded.shares.counts
    drawn = counts if encoded.shares is None else encoded.shares.drawn
    return tuple(
        SourceReport(
            source=part.source.source,
            format=part.source.format,
            rows_read=part.source.read,
            skipped=part.source.skipped,
            filtered=part.source.filtered,
            train_rows=part.train_rows,
            validation_rows=part.validation_rows,
            truncated=rows[number].counts.truncated,
            dropped=rows[number].counts.dropped,
            tokens=int(rows[number].lengths.sum()),
            response_tokens=rows[number].response_tokens,
            sequences=counts[number],
            weight=part.weight,
            drawn=drawn[number],
        )
        for number, part in enumerate(parts)
    )
