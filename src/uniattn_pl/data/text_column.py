"""Plain text under any key: the column of a Parquet file, or the key of a JSON object, that holds the documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from uniattn_pl.data.records import Record
from uniattn_pl.errors import did_you_mean

TEXT = "text"


def text_records(records: Iterable[Record], column: str | None) -> Iterator[Record]:
    """Yield each record with its document under the key `text`, as the row format `text` has it.

    Args:
        records: of any source.
        column: the key that holds the documents (`data.text_column`); None: `text`, or the one key of the first record
            that holds a string.
    """
    for record in records:
        column = text_key(record) if column is None else column
        yield record if column is None else with_text(record, column)


def text_key(record: Record) -> str | None:
    """The key of the documents, seen from a record; None: it could not be read."""
    value = record.value
    if record.problem or not isinstance(value, Mapping):
        return None
    strings = [str(key) for key, item in value.items() if isinstance(item, str)]
    return strings[0] if TEXT not in value and len(strings) == 1 else TEXT


def with_text(record: Record, column: str) -> Record:
    """A record with its document under the key `text`."""
    value = record.value
    if record.problem or not isinstance(value, Mapping):
        return record
    if column in value:
        return record if column == TEXT else Record({**value, TEXT: value[column]}, record.place)
    keys = ", ".join(sorted(map(str, value))) or "none"
    near = did_you_mean(column, map(str, value))
    near = near and f".{near}"
    problem = f"the key '{column}' is missing; data.text_column names the one that holds the text (here: {keys}{near})"
    return Record(None, record.place, problem)
