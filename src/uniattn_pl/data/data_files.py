"""Local data files: JSON arrays, JSON lines and Parquet, each record with the place it was found at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from uniattn_pl.config.schema import DATA_SUFFIXES
from uniattn_pl.errors import UserError

_WHITESPACE = " \t\n\r"


@dataclass(slots=True)
class Record:
    """One record as read: its value, or the problem that kept it from being read.

    Args:
        value: normally a dict; anything the file held.
        place: returns "file, line 3"; a function, so that places are worked out for bad rows only.
        problem: why the record could not be read (invalid JSON), if so.
    """

    value: Any
    place: Callable[[], str]
    problem: str = ""


def read_file(path: Path) -> Iterator[Record]:
    """Return the records of a .json, .jsonl or .parquet file; a .json file may hold an array or JSON lines.

    Raises:
        UserError: another kind of file, or one that cannot be read as what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in DATA_SUFFIXES:
        raise UserError(f"data file '{path}' ends in '{suffix}'; allowed are {', '.join(DATA_SUFFIXES)}.")
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix == ".json" and _first_character(path) == "[":
        return _read_json_array(path)
    return _read_json_lines(path)


def _first_character(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(4096).decode("utf-8-sig", errors="ignore").lstrip()[:1]


def _read_json_lines(path: Path) -> Iterator[Record]:
    """Yield one record per non-empty line; lines are bytes until decoded, so a bad one has a number too."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue

            place = partial(_line_place, path, number)
            try:
                yield Record(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), place)
            except UnicodeDecodeError as error:
                yield Record(None, place, f"not UTF-8 text (byte {error.start + 1} of the line)")
            except json.JSONDecodeError as error:
                expected = "each line must be one JSON object"
                if path.suffix.lower() == ".json":
                    expected = "a .json file must hold an array of objects, or one JSON object per line"
                yield Record(None, place, f"invalid JSON ({error.msg} at column {error.colno}); {expected}")


def _read_json_array(path: Path) -> Iterator[Record]:
    """Yield the elements of a top-level array one by one, so that each has a line and no list is built twice.

    Raises:
        UserError: invalid JSON; nothing after it can be read, so it cannot be skipped.
    """
    text = _read_text(path)
    decoder = json.JSONDecoder()
    lines = _Lines(text)
    position = text.index("[") + 1
    index = 0
    while True:
        position = _skip_whitespace(text, position)
        if index == 0 and text[position : position + 1] == "]":
            break

        place = partial(_element_place, path, index, lines, position)
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            location = f"{path}, row index {index}, line {error.lineno}, column {error.colno}"
            raise UserError(f"{location}: invalid JSON ({error.msg}); the file must be an array of objects.") from None
        yield Record(value, place)
        index += 1
        position = _skip_whitespace(text, position)
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            actual = f"'{separator}'" if separator else "the end of the file"
            location = f"{path}, after row index {index - 1}, line {lines.at(position)}"
            raise UserError(f"{location}: invalid JSON (expected ',' or ']', found {actual}); is the file complete?")
        position += 1


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text (byte {error.start + 1} of the file).") from None


def _skip_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position


class _Lines:
    """Line numbers of growing offsets in a text; counts each newline once, so many bad rows stay cheap."""

    def __init__(self, text: str) -> None:
        self._text, self._offset, self._line = text, 0, 1

    def at(self, offset: int) -> int:
        if offset < self._offset:
            self._offset, self._line = 0, 1
        self._line += self._text.count("\n", self._offset, offset)
        self._offset = offset
        return self._line


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"data file '{path}' is not a readable Parquet file ({reason}).") from None
    index = 0
    for batch in file.iter_batches():
        for value in batch.to_pylist():
            yield Record(value, partial(row_place, str(path), index))
            index += 1


def row_place(name: str, index: int) -> str:
    """Return "name, row index 3" (0-based) for sources that have no lines."""
    return f"{name}, row index {index}"


def _line_place(path: Path, number: int) -> str:
    return f"{path}, line {number}"


def _element_place(path: Path, index: int, lines: _Lines, offset: int) -> str:
    return f"{row_place(str(path), index)}, line {lines.at(offset)}"
