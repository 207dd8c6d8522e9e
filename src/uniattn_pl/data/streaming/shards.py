"""Shards of a stream: files, or the parts of a hub data set, each readable from any record on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from uniattn_pl.config.sections.data_section import JSON_SUFFIXES, TEXT_SUFFIXES
from uniattn_pl.data.compressed_files import kind_of_file, mistaken_data
from uniattn_pl.data.json_rows import read_lines
from uniattn_pl.data.parquet_rows import read_parquet
from uniattn_pl.data.plain_text import read_plain_text
from uniattn_pl.data.records import Record
from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import unreadable

HEAD = TAIL = 2**16  # bytes of a file that its identity looks at; the footer of a Parquet file is in its tail
PARQUET, LINES = ".parquet", ".jsonl"


class Shard(Protocol):
    """A part of a stream; picklable, for worker processes."""

    @property
    def name(self) -> str:
        """What tells it from the other shards of its source."""

    def records(self, first: int = 0) -> Iterator[Record]:
        """Yield its records in order, from number `first` on, counted from 0. Raises UserError: it is damaged."""

    def contents(self) -> bytes:
        """What tells whether it is the same one, without reading all of it."""

    def size(self) -> int | None:
        """Bytes, as it is stored; None: not known."""


@dataclass(frozen=True)
class FileShard:
    """A file of JSON lines, of plain text or of Parquet, packed or not."""

    path: Path
    name: str

    def records(self, first: int = 0) -> Iterator[Record]:
        """As of `Shard`; rows before `first` are passed over unread, row groups of a Parquet file not even opened."""
        kind = kind_of_file(self.path)
        try:
            if mistaken := mistaken_data(self.path):
                raise UserError(f"data file '{self.path}'{mistaken}")
            if kind == PARQUET:
                yield from read_parquet(self.path, first)
            elif kind in TEXT_SUFFIXES:
                yield from islice(read_plain_text(self.path), first, None)
            else:
                yield from read_lines(self.path, first)
        except OSError as error:
            raise UserError(unreadable(self.path, error)) from error

    def size(self) -> int:
        """As of `Shard`."""
        return self.path.stat().st_size

    def contents(self) -> bytes:
        """A digest of its size, its first `HEAD` bytes and its last `TAIL`."""
        try:
            with self.path.open("rb") as file:
                size = self.path.stat().st_size
                digest = hashlib.sha256(str(size).encode() + b"\0" + file.read(HEAD))
                file.seek(max(0, size - TAIL))
                digest.update(file.read(TAIL))
        except OSError as error:
            raise UserError(unreadable(self.path, error)) from error
        return digest.digest()


def file_shards(files: Sequence[Path]) -> list[Shard]:
    """The files of a source, in order.

    Raises:
        UserError: one of them cannot be read row by row.
    """
    streamable = (LINES, PARQUET, *TEXT_SUFFIXES)
    for path in files:
        kind = kind_of_file(path)
        if kind in streamable:
            continue
        if kind in JSON_SUFFIXES:
            raise UserError(
                f"data file '{path}' cannot be streamed: a .json file is read whole; write one object per line, as "
                ".jsonl."
            )
        raise UserError(
            f"data file '{path}' cannot be streamed; files of {', '.join(streamable)} can, and JSON lines packed as "
            ".gz or .zst."
        )
    folders = {path.parent for path in files}
    common = next(iter(folders)) if len(folders) == 1 else None
    return [FileShard(path, path.name if common else path.as_posix()) for path in files]
