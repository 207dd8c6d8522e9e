"""What is known of a stream before it is read: printed before training and kept with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from uniattn_pl.data.streaming.stream_split import StreamSource
from uniattn_pl.display.text_table import bytes_text


@dataclass(frozen=True)
class StreamSourceReport:
    """One source of a stream.

    Args:
        source, format: as of `DataReport`.
        shards: how many.
        size: bytes of all of them as they are stored; None: not known.
        weight: its share of the sequences, beside the others' weights.
        held_out: rows of its beginning that are held out.
        skipped, filtered: of the records that were read for them.
    """

    source: str
    format: str
    shards: int
    size: int | None
    weight: float
    held_out: int
    skipped: int
    filtered: int

    @classmethod
    def of(cls, source: StreamSource) -> StreamSourceReport:
        """What is known of a source."""
        sizes = [shard.size() for shard in source.shards]
        size = None if None in sizes else sum(one or 0 for one in sizes)
        counts = source.counts
        return cls(
            source.name,
            source.reader.format,
            len(source.shards),
            size,
            source.weight,
            len(source.held_out),
            counts.skipped,
            counts.filtered,
        )

    def line(self, share: float | None) -> str:
        """In a line; `share` of the sequences, where there are other sources."""
        size = "" if self.size is None else f" of {bytes_text(self.size)}"
        drawn = "" if share is None else f"; weight {self.weight:g}: {share:.1%} of the sequences"
        held_out = f", its first {self.held_out:,} rows held out" if self.held_out else ""
        shards = "shard" if self.shards == 1 else "shards"
        return f"  {self.source} ({self.format}), {self.shards:,} {shards}{size}{held_out}{drawn}"


@dataclass(frozen=True)
class StreamReport:
    """A stream, and what is held out of it.

    Args:
        sources: in the order of `data.sources`.
        shuffle_buffer: rows that are shuffled together.
        validation_rows: held out.
        validation: sequences of them.
        validation_response_tokens: of those, the tokens that carry the loss.
        longest: tokens of a sequence at most.
        plain_text: what is held out are plain texts alone.
    """

    sources: tuple[StreamSourceReport, ...]
    shuffle_buffer: int
    validation_rows: int
    validation: int
    validation_response_tokens: int
    longest: int
    plain_text: bool

    def to_dict(self) -> dict[str, Any]:
        """What is known by name, as it is logged."""
        return asdict(self)

    def source_counts(self) -> dict[str, float]:
        """Of each source what is counted already, for a tracked run; the rest is counted as it is read."""
        return {
            f"data/source_{number}/{name}": float(getattr(source, name))
            for number, source in enumerate(self.sources)
            for name in ("shards", "weight", "held_out")
        }

    def lines(self) -> list[str]:
        """The lines for the console."""
        whole = sum(source.weight for source in self.sources)
        shares = [source.weight / whole if len(self.sources) > 1 else None for source in self.sources]
        return [
            f"data: streamed, {self.shuffle_buffer:,} rows shuffled together, {self.validation_rows:,} validation rows "
            f"({self.validation_response_tokens:,} tokens scored); rows are counted as they are read",
            *(source.line(share) for source, share in zip(self.sources, shares, strict=True)),
        ]
