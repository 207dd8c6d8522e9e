"""Plain text files (WikiText's .raw, .txt) as rows: runs of whole lines, each but the last continued by the next."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from uniattn_pl.data.records import Record, line_place
from uniattn_pl.errors import UserError

# Of a row at most, unless one line is longer: about 1,000 tokens. Rows are what is shuffled, split and counted, so that
# one is neither a single line nor the whole file; they are cut into sequences as they are encoded.
ROW_CHARACTERS = 4_096


def read_plain_text(path: Path) -> Iterator[Record]:
    """Yield a text file's rows in order; together they are its text, character by character.

    Raises:
        UserError: not a text in UTF-8.
    """
    lines: list[str] = []
    first, size = 1, 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if lines and size + len(line) > ROW_CHARACTERS:
                    yield _record(path, first, lines, continues=True)
                    lines, first, size = [], number, 0
                lines.append(line)
                size += len(line)
    except UnicodeDecodeError as error:
        raise UserError(f"data file '{path}' is not a text file in UTF-8.") from error
    yield _record(path, first, lines, continues=False)


def _record(path: Path, line: int, lines: list[str], *, continues: bool) -> Record:
    return Record({"text": "".join(lines), "continues": continues}, partial(line_place, path, line))
