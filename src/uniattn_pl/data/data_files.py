"""Local data files: JSON arrays, JSON lines, Parquet and plain text, each record with the place it was found at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uniattn_pl.config.sections.data_section import DATA_SUFFIXES, TEXT_SUFFIXES
from uniattn_pl.data.json_rows import read_json
from uniattn_pl.data.parquet_rows import read_parquet
from uniattn_pl.data.plain_text import read_plain_text
from uniattn_pl.data.records import Record
from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import mistaken_content, unreadable


def read_file(path: Path) -> Iterator[Record]:
    """Yield the records of a data file; a .json file may hold an array or JSON lines, a plain text is cut into rows.

    Raises:
        UserError: another kind of file, or one that cannot be read as what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in DATA_SUFFIXES:
        raise UserError(f"data file '{path}' ends in '{suffix}'; allowed are {', '.join(DATA_SUFFIXES)}.")
    if mistaken := mistaken_content(path):
        raise UserError(f"data file '{path}'{mistaken}")
    readers = dict.fromkeys(TEXT_SUFFIXES, read_plain_text) | {".parquet": read_parquet}
    try:
        yield from readers.get(suffix, read_json)(path)
    except OSError as error:  # a disk or a network file system that fails in the middle
        raise UserError(unreadable(path, error)) from error
