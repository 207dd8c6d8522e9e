"""Rows of a Parquet file; a damaged page costs the rows of its row group, and they are counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.data.records import Record, row_place
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


_BATCH = 1_024  # rows that are made Python objects together


def read_parquet(path: Path, first: int = 0) -> Iterator[Record]:
    """Yield the rows of a Parquet file.

    Args:
        path: of the file.
        first: rows that are passed over; row groups of them alone are not read.

    Raises:
        UserError: its footer is not one; nothing of it can be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    # Arrow's own errors, OSError for damaged bytes, and for a schema it cannot express ValueError, KeyError, TypeError
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"data file '{path}' is not a readable Parquet file ({_reason(error)}).") from None
    begin = 0
    for group, rows in enumerate(groups):
        if begin + rows > first:
            yield from islice(_group(file, group, rows, path, begin), max(0, first - begin), None)
        begin += rows


def _group(file: Any, group: int, rows: int, path: Path, first: int) -> Iterator[Record]:
    """The rows of one row group; behind a damaged page there is nothing to read, so each row left is a bad one."""
    import pyarrow as pa

    index = first
    problem = "the file has fewer rows than its footer says"
    try:
        for batch in file.iter_batches(_BATCH, row_groups=[group]):
            for value, bad in _values(batch):
                yield Record(value, partial(row_place, str(path), index), bad)
                index += 1
    except (pa.ArrowException, OSError, ValueError) as error:  # pages that do not unpack; ValueError: invalid UTF-8
        problem = f"the file is damaged here ({_reason(error)})"
    for missing in range(index, first + rows):
        yield Record(None, partial(row_place, str(path), missing), problem)


def _values(batch: pa.RecordBatch) -> Iterator[tuple[Any, str]]:
    """Each row of a batch as a dict, or why it is none."""
    try:
        for value in batch.to_pylist():
            yield value, ""
    except _CONVERSION:
        pass
    else:
        return
    for row in range(batch.num_rows):
        try:
            yield batch.slice(row, 1).to_pylist()[0], ""
        except _CONVERSION as error:
            yield None, f"a value of it cannot be read ({_reason(error)})"


# What `to_pylist` raises for single values: text that is not UTF-8 (a ValueError), years and offsets that Python's
# dates do not have (OverflowError, ValueError), unknown time zones (KeyError), unsupported kinds (ArrowException).
_CONVERSION: tuple[type[Exception], ...] = (ValueError, OverflowError, KeyError, TypeError, NotImplementedError)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
