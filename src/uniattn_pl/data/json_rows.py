"""Rows of JSON files: an array, one object per line, or one object that holds the array."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from uniattn_pl.data.compressed_files import kind_of_file, opened_bytes
from uniattn_pl.data.records import Record, line_place, row_place
from uniattn_pl.data.rows import has_row_keys
from uniattn_pl.errors import UserError

_WHITESPACE = " \t\n\r"


def read_json(path: Path) -> Iterator[Record]:
    """Yield the rows of a .json or .jsonl file, packed or not.

    Raises:
        UserError: an array that is no valid JSON; nothing behind the fault can be read, so it cannot be skipped.
        OSError: the file cannot be read.
    """
    first, lines = _beginning(path)
    if kind_of_file(path) == ".json" and first[:1] == "[":
        yield from _array(path)
    elif (whole := _whole_object(path, first, lines)) is not None:
        yield from _rows_inside(path, whole, one_line=lines == 1)
    else:
        yield from read_lines(path)


class _Decoder:
    """JSON, one row at a time; what a row cannot hold is noted and not raised, so that reading goes on behind it."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)
        self._problem = ""

    def decode(self, text: str) -> tuple[Any, str]:
        """A text's value, and what is wrong with it. Raises json.JSONDecodeError and RecursionError."""
        self._problem = ""
        return self._decoder.decode(text), self._problem

    def decode_at(self, text: str, position: int) -> tuple[Any, str, int]:
        """`decode` for the value that begins at a position; also gives where it ends."""
        self._problem = ""
        value, end = self._decoder.raw_decode(text, position)
        return value, self._problem, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._problem = f"the key '{twice}' is there twice in one object"
        return value

    def _integer(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:  # Python reads no more than 4300 digits
            self._problem = f"it holds an integer of {len(digits)} digits"
            return 0


def _beginning(path: Path) -> tuple[str, int]:
    """The first line with anything in it, and how many such lines there are, counted up to 2."""
    first, count = "", 0
    with opened_bytes(path) as file:
        for line in file:
            text = line.decode("utf-8-sig", errors="replace").strip()
            if text:
                first, count = first or text, count + 1
            if count == 2:
                break
    return first, count


def _whole_object(path: Path, first: str, lines: int) -> dict[str, Any] | None:
    """The one object that a whole file is; None for lines of objects, of which only the first is looked at."""
    if first[:1] != "{":
        return None
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        pass  # an object may begin here that goes on in the next lines
    else:
        if lines > 1:
            return None
    try:
        value, problem = _Decoder().decode(_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None  # it is read as lines, and the line that is wrong is named
    return value if isinstance(value, dict) and not problem else None


def _rows_inside(path: Path, whole: dict[str, Any], *, one_line: bool) -> Iterator[Record]:
    """The rows of a file that is one object: that object, if it is a row, or the one list of objects in it.

    Raises:
        UserError: there are several such lists, or none.
    """
    lists = {
        key: value
        for key, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value)
    }
    if has_row_keys(whole) or (not lists and one_line):
        yield Record(whole, partial(line_place, path, 1))
        return
    if not lists:
        keys = ", ".join(list(whole)[:10]) or "none"
        raise UserError(
            f"'{path}' holds one object (its keys: {keys}) and no list of rows; a file must hold an array of objects, "
            "or one JSON object per line."
        )
    if len(lists) > 1:
        found = ", ".join(f"{len(rows)} under '{key}'" for key, rows in lists.items())
        raise UserError(
            f"'{path}' holds one object with several lists of rows ({found}); save the list you mean as a file of its "
            "own, one that begins with '['."
        )
    [(key, rows)] = lists.items()
    for index, value in enumerate(rows):
        yield Record(value, partial(row_place, f"{path}, '{key}'", index))


def read_lines(path: Path, first: int = 0) -> Iterator[Record]:
    """Yield one record per non-empty line; lines are bytes until decoded, so a bad one has a number too.

    Args:
        path: of a .jsonl file, or a .json file of such lines.
        first: records that are passed over, unread.
    """
    decoder, passed = _Decoder(), 0
    expected = "each line must be one JSON object"
    if kind_of_file(path) == ".json":
        expected = "a .json file must hold an array of objects, or one JSON object per line"
    with opened_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if passed < first:
                passed += 1
                continue

            place = partial(line_place, path, number)
            try:
                value, problem = decoder.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield Record(None, place, f"not UTF-8 text (byte {error.start + 1} of the line)")
            except json.JSONDecodeError as error:
                yield Record(None, place, f"invalid JSON ({error.msg} at column {error.colno}); {expected}")
            except RecursionError:
                yield Record(None, place, f"JSON of more levels than can be read; {expected}")
            else:
                yield Record(value, place, problem)


def _array(path: Path) -> Iterator[Record]:
    """Yield the elements of a top-level array one by one, so that each has a line and no list is built twice."""
    text = _text(path)
    decoder = _Decoder()
    lines = _Lines(text)
    position = text.index("[") + 1
    index = 0
    while True:
        position = _skip_whitespace(text, position)
        if index == 0 and text[position : position + 1] == "]":
            break

        place = partial(_element_place, path, index, lines, position)
        try:
            value, problem, position = decoder.decode_at(text, position)
        except json.JSONDecodeError as error:
            location = f"{path}, row index {index}, line {error.lineno}, column {error.colno}"
            raise UserError(f"{location}: invalid JSON ({error.msg}); the file must be an array of objects.") from None
        except RecursionError:
            raise UserError(f"{place()}: JSON of more levels than can be read.") from None
        yield Record(value, place, problem)
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
    rest = text[position + 1 :].lstrip(_WHITESPACE)
    if rest:
        raise UserError(
            f"{path}, line {lines.at(len(text) - len(rest))}: the array has ended, and {rest[:20]!r} follows; the "
            "file must be one array, or one JSON object per line."
        )


def _bytes(path: Path) -> bytes:
    with opened_bytes(path) as file:
        return file.read()


def _text(path: Path) -> str:
    data = _bytes(path)
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


def _element_place(path: Path, index: int, lines: _Lines, offset: int) -> str:
    return f"{row_place(str(path), index)}, line {lines.at(offset)}"
