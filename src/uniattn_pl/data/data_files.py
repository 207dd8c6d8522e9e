"""Local data files: JSON arrays, JSON lines and Parquet, each record with the place it was found at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uniattn_pl.config.sections.data_section import DATA_SUFFIXES
from uniattn_pl.data.json_rows import read_json
from uniattn_pl.data.parquet_rows import read_parquet
from uniattn_pl.data.records import Record
from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import mistaken_content, unreadable


def read_file(path: Path) -> Iterator[Record]:
    """Yield the records of a .json, .jsonl or .parquet file; a .json file may hold an array or JSON lines.

    Raises:
        UserError: another kind of file, or one that cannot be read as what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in DATA_SUFFIXES:
        raise UserError(f"data file '{path}' ends in '{suffix}'; allowed are {', '.join(DATA_SUFFIXES)}.")
    if mistaken := mistaken_content(path):
        raise UserError(f"data file '{path}'{mistaken}")
    try:
        yield from read_parquet(path) if suffix == ".parquet" else read_json(path)
    except OSError as error:  # a disk or a network file system that fails in the middle
        raise UserError(unreadable(path, error)) from error
