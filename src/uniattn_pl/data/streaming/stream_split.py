"""A stream as it is opened: its sources and their shards, their formats, and the rows that are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from uniattn_pl.config.sections.data_section import DATA_SUFFIXES, TEXT_SUFFIXES, DataConfig, SourceConfig
from uniattn_pl.config.source_paths import is_pattern, looks_like_path, matching_files
from uniattn_pl.data.compressed_files import kind_of_file
from uniattn_pl.data.configured_sources import read_own
from uniattn_pl.data.documents import check_documents
from uniattn_pl.data.mixture import equal_shares
from uniattn_pl.data.overlap import asked_digests
from uniattn_pl.data.row_contents import contents_of
from uniattn_pl.data.row_problems import BadRow
from uniattn_pl.data.rows import Row, detect_format
from uniattn_pl.data.sources import SourceRows, record_place
from uniattn_pl.data.split_rows import counts_of, shuffled, taken
from uniattn_pl.data.streaming.encoded_chunks import RowReader, StreamCounts
from uniattn_pl.data.streaming.hub_shards import hub_shards
from uniattn_pl.data.streaming.row_stream import RowStream
from uniattn_pl.data.streaming.shards import FileShard, Shard, file_shards
from uniattn_pl.data.text_column import TEXT, text_key
from uniattn_pl.errors import UserError, nearest_path
from uniattn_pl.resilience.identity import Contents

AUTO = "auto"
LOOKED_AT = 1_000  # rows of a source among which one can be used, or it is said that none can


@dataclass
class StreamSource:
    """One source of a stream.

    Attributes:
        name: as the user wrote it.
        weight: its share of the sequences, beside the others' weights.
        shards: in order.
        reader: of its rows; of a given format, seen from the first record where none was given.
        starts: by number of a shard, how many of its records are held out or were passed over as they were looked for.
        held_out: rows of its beginning, and what says where each was read.
        counts: of the records that were read for them.
    """

    name: str
    weight: float
    shards: list[Shard]
    reader: RowReader
    starts: dict[int, int] = field(default_factory=dict)
    held_out: list[tuple[Row, Callable[[], str]]] = field(default_factory=list)
    counts: StreamCounts = field(default_factory=StreamCounts)

    def rows(self) -> Iterator[Row]:
        """Yield the training rows of one pass, unshuffled. Raises UserError: a bad row, or a damaged shard."""
        counts = StreamCounts()
        for number, shard in enumerate(self.shards):
            for record in shard.records(self.starts.get(number, 0)):
                row = self.reader.row(record, counts)
                if row is not None:
                    yield row

    def stream(self, buffer: int, seed: int) -> RowStream:
        """Its training records in a shuffled order."""
        return RowStream(self.shards, starts=self.starts, buffer=buffer, seed=seed)

    def hold_out(self, count: int) -> None:
        """Hold so many rows of its beginning out.

        Raises:
            UserError: as `rows`.
        """
        for number, shard in enumerate(self.shards):
            for place, record in enumerate(shard.records(), 1):
                if len(self.held_out) == count:
                    return
                row = self.reader.row(record, self.counts)
                self.starts[number] = place
                if row is not None:
                    self.held_out.append((row, record.place))


@dataclass(frozen=True)
class StreamSplit:
    """What a stream trains on, unread, and what is held out of it.

    Attributes:
        sources: in the order of `data.sources`, or the one of `data.source`.
        validation: rows held out, source by source.
        validation_places: what says where each of them was read.
        validation_source: of the validation rows, if another one.
        held_out_parts: how many of the validation rows are of each source; of another one, all.
    """

    sources: tuple[StreamSource, ...]
    validation: list[Row]
    validation_places: Sequence[Callable[[], str]]
    validation_source: SourceRows | None
    held_out_parts: tuple[int, ...]

    @property
    def name(self) -> str:
        return " + ".join(source.name for source in self.sources)

    def train_contents(self) -> Contents:
        """What is trained on, as far as it can be told without reading it: names, sizes, beginnings and ends of shards.

        A change in the middle of a file that leaves its size as it was is not seen; of a Parquet file it is, where it
        changes the statistics or the places of columns in the footer.
        """
        several = len(self.sources) > 1
        shards = {
            f"{f'entry {number}: ' if several else ''}{shard.name}": shard.contents()
            for number, source in enumerate(self.sources, 1)
            for shard in source.shards
        }
        return Contents.named(f"'{self.name}'", shards)

    def validation_contents(self) -> Contents:
        """What is held out, by content."""
        place = self.name if self.validation_source is None else self.validation_source.source
        return contents_of(self.validation, f"'{place}'")

    def by_source(self) -> list[tuple[str, Iterator[Row]]]:
        """The first `LOOKED_AT` training rows of each source, by name, unread."""
        return [(source.name, islice(source.rows(), LOOKED_AT)) for source in self.sources]

    def counted(self) -> str:
        """What is known of it, in words."""
        shards = sum(len(source.shards) for source in self.sources)
        return f"{shards} shards to stream, {len(self.validation)} rows to validate"

    def first_rows(self) -> Iterator[Row]:
        """Yield training rows of the first pass, unshuffled, of the sources in turn."""
        streams = [source.rows() for source in self.sources]
        while streams:
            for stream in list(streams):
                row = next(stream, None)
                if row is None:
                    streams.remove(stream)
                else:
                    yield row


def open_stream(config: DataConfig) -> StreamSplit:
    """Find the shards of a stream, look at their first rows, and hold rows out.

    Without a `validation_source` the first rows of each source are held out, in the order of its shards:
    `validation_size` in equal parts. They are passed over in every pass.

    Raises:
        UserError: there are no shards, they cannot be streamed, or no row is left to train on.
    """
    entries = config.sources or [
        SourceConfig(config.source, config.format, config.text_column, config.split, weight=1.0)
    ]
    sources = [_opened(config, entry) for entry in entries]
    other = None
    if config.validation_source is None:
        for source, count in zip(sources, equal_shares(config.validation_size, [True] * len(sources)), strict=True):
            source.hold_out(count)
        validation = [row for source in sources for row, _ in source.held_out]
        places = [place for source in sources for _, place in source.held_out]
    else:
        other = read_own(config, config.validation_source)
        validation, numbers = taken(other, shuffled(other, config.shuffle_seed)[: config.validation_size])
        places = [partial(record_place, counts_of(other), number, config.split) for number in numbers]
    firsts: list[Row] = []
    for source in sources:
        if config.remove_overlap:
            source.reader = replace(source.reader, held_out=asked_digests(validation))
        first = next(source.rows(), None)
        if first is None:
            raise UserError(
                f"no row of '{source.name}' is left to train on: {len(source.held_out)} are held out "
                f"(data.validation_size={config.validation_size}), {source.counts.skipped} are bad and "
                f"{source.counts.filtered} left out by their format '{source.reader.format}'."
            )
        firsts.append(first)
    check_documents(config.pack_documents, firsts, " + ".join(source.name for source in sources))
    parts = tuple(len(source.held_out) for source in sources) if other is None else (len(validation),)
    return StreamSplit(tuple(sources), validation, places, None if other is None else counts_of(other), parts)


def shards_of(source: str, split: str, more_files: Sequence[str] = ()) -> list[Shard]:
    """The shards of a source: a file, the files of a folder or that match a pattern, or those of a hub data set.

    Args:
        source: as `data.source`, or a folder.
        split: of a hub data set.
        more_files: files or patterns that are streamed as one with it.

    Raises:
        UserError: there are none, or they cannot be streamed.
    """
    if not _is_local(source):
        return hub_shards(source, split)
    return file_shards([file for name in (source, *more_files) for file in _files(name)])


def _is_local(source: str) -> bool:
    return Path(source).expanduser().exists() or is_pattern(source) or looks_like_path(source, DATA_SUFFIXES)


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.is_file() and one.name.lower().endswith(DATA_SUFFIXES))
        if not files:
            raise UserError(f"the folder '{source}' has no file of rows that could be streamed.")
        return files
    files = matching_files(source) if is_pattern(source) else []
    if not files:
        near = " Its pattern matches no file." if is_pattern(source) else nearest_path(path)
        raise UserError(f"data source '{source}' does not exist.{near}")
    return files


def _opened(config: DataConfig, entry: SourceConfig) -> StreamSource:
    more = (config.more_files or []) if config.sources is None else []
    shards = shards_of(entry.source, entry.split, more)
    first = next((record for shard in shards for record in shard.records() if not record.problem), None)
    if first is None:
        raise UserError(f"data source '{entry.source}' has no row that can be read.")
    of_text = all(isinstance(shard, FileShard) and kind_of_file(shard.path) in TEXT_SUFFIXES for shard in shards)
    format, column = entry.format, entry.text_column
    if of_text or column is not None or format == TEXT:
        format, column = TEXT, column or text_key(first)
    elif format == AUTO:
        try:
            format = detect_format(first.value)
        except BadRow as problem:
            raise UserError(f"{first.place()}: {problem}.") from None
    reader = RowReader(
        format,
        column,
        skip_bad=config.on_bad_row == "skip",
        whole_chats=config.whole_chats,
        roles=config.role_of,
    )
    return StreamSource(entry.source, 1.0 if entry.weight is None else entry.weight, shards, reader)
