"""Local data files: JSON arrays, JSON lines (both packed, too), Parquet and plain text; each record with its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uniattn_pl.config.sections.data_section import COMPRESSIONS, DATA_KINDS, DATA_SUFFIXES, TEXT_SUFFIXES
from uniattn_pl.data.compressed_files import kind_of_file, mistaken_data
from uniattn_pl.data.json_rows import read_json
from uniattn_pl.data.parquet_rows import read_parquet
from uniattn_pl.data.plain_text import read_plain_text
from uniattn_pl.data.records import Record
from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import unreadable


def read_file(path: Path) -> Iterator[Record]:
    """Yield the records of a data file; a .json file may hold an array or JSON lines, a plain text is cut into rows.

    Raises:
        UserError: another kind of file, or one that cannot be read as what its name says.
    """
    if not path.name.lower().endswith(DATA_SUFFIXES):
        ending = "".join(path.suffixes[-2:]) if path.suffix.lower() in COMPRESSIONS else path.suffix.lower()
        raise UserError(f"data file '{path}' ends in '{ending}'; allowed are {DATA_KINDS}.")
    readers = dict.fromkeys(TEXT_SUFFIXES, read_plain_text) | {".parquet": read_parquet}
    try:
        if mistaken := mistaken_data(path):
            raise UserError(f"data file '{path}'{mistaken}")
        yield from readers.get(kind_of_file(path), read_json)(path)
    except OSError as error:  # a disk or a network file system that fails in the middle
        raise UserError(unreadable(path, error)) from error
