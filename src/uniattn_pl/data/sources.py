"""Reading rows: the embedded data set, a local file of rows or of plain text, or a hub data set."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

from uniattn_pl.config.sections.data_section import (
    CHAT,
    DATA_KINDS,
    DATA_SUFFIXES,
    EMBEDDED,
    EMBEDDED_CHATS,
    EMBEDDED_PAIRS,
    MADE,
    SELF,
    TEXT_SUFFIXES,
)
from uniattn_pl.config.source_paths import is_pattern, looks_like_path, matching_files
from uniattn_pl.data.data_files import read_file
from uniattn_pl.data.embedded import embedded_rows
from uniattn_pl.data.embedded_chats import embedded_chats
from uniattn_pl.data.embedded_pairs import embedded_pairs
from uniattn_pl.data.hub import read_hub
from uniattn_pl.data.records import Record
from uniattn_pl.data.row_problems import BadRow
from uniattn_pl.data.rows import Row, detect_format, map_row
from uniattn_pl.data.text_column import TEXT, text_records
from uniattn_pl.errors import UserError, did_you_mean

# No rows are read from these, but a source that ends so is a missing file, not a hub name.
OTHER_SUFFIXES = (".csv", ".tsv", ".gz", ".zip", ".arrow")
MADE_HERE = {EMBEDDED_CHATS: embedded_chats, EMBEDDED_PAIRS: embedded_pairs}
SKIPPING = "data.on_bad_row=skip leaves bad rows out and counts them."


@dataclass
class SourceRows:
    """The usable rows of one source, and what was left out.

    Args:
        source: as the user wrote it.
        format: the row format, after detection.
        rows: usable rows, in the order of the source.
        numbers: of each of them among the records of the source, counted from 1.
        read: records the source holds.
        skipped: bad rows (`on_bad_row: skip`).
        filtered: conversations that the prompt has no place for, or without an answer, and empty texts.
        first_problem: what was wrong with the first bad row.
        parts: (name, records read) of the sources that were joined, in order.
    """

    source: str
    format: str
    rows: list[Row] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    read: int = 0
    skipped: int = 0
    filtered: int = 0
    first_problem: str = ""
    parts: list[tuple[str, int]] = field(default_factory=list)


def read_source(
    source: str,
    *,
    more_files: Sequence[str] = (),
    split: str = "train",
    format: str = "auto",
    on_bad_row: str = "error",
    text_column: str | None = None,
    whole_chats: bool = False,
    roles: Mapping[str, str] | None = None,
) -> SourceRows:
    """Read every row of a source (`data.source`).

    Args:
        source: one of `MADE`, a path, a pattern that files match (`rows/*.jsonl`, in the order of their
            names), or a hub data set name.
        more_files: files, or patterns, that are read as one with it.
        split: split of a hub data set.
        format: a key of `rows.FORMATS`, or "auto" to look at the keys of the first row; a plain text has its own.
        on_bad_row: "error" stops at the first bad row and names its place, "skip" counts bad rows.
        text_column: the key that holds plain text (`data.text_column`).
        whole_chats, roles: as of `map_row`.

    Raises:
        UserError: no such file or data set, a bad row, or no usable row at all.
    """
    if source == EMBEDDED:
        rows = embedded_rows()
        return SourceRows(source, "alpaca", rows, array("q", range(1, len(rows) + 1)), read=len(rows))
    if source.lower().endswith(TEXT_SUFFIXES):
        format = TEXT
    names = [source, *more_files]
    records = ((name, _records(name, split)) for name in names)
    if not source.lower().endswith(TEXT_SUFFIXES) and (text_column is not None or format == TEXT):
        format = TEXT
        records = ((name, text_records(found, text_column)) for name, found in records)
    result = _collect(
        " + ".join(names), records, format, skip_bad=on_bad_row == "skip", whole_chats=whole_chats, roles=roles
    )
    if not result.rows:
        first = f" The first bad row: {result.first_problem}." if result.first_problem else ""
        raise UserError(
            f"data source '{result.source}' has no usable row ({result.read} read, {result.skipped} bad, "
            f"{result.filtered} left out {_filtered_because(whole_chats)}).{first}"
        )
    return result


def joined_sources(parts: Sequence[SourceRows]) -> SourceRows:
    """The rows of several sources, in order; a row's number counts the records of the sources before its own."""
    formats = dict.fromkeys(part.format for part in parts)
    joined = SourceRows(" + ".join(part.source for part in parts), " + ".join(formats))
    for part in parts:
        joined.rows += part.rows
        joined.numbers.extend(joined.read + number for number in part.numbers)
        joined.read += part.read
        joined.skipped += part.skipped
        joined.filtered += part.filtered
        joined.parts += part.parts or [(part.source, part.read)]
    return joined


def record_place(source: SourceRows, number: int, split: str) -> str:
    """Return where a record of a source is, as in "rows.jsonl, line 3"; files are read again up to it.

    Args:
        number: of the record, counted from 1.
        split: of a hub data set.
    """
    for name, read in source.parts or [(source.source, source.read)]:
        if number <= read:
            in_files = name not in (EMBEDDED, SELF)
            record = next(islice(_records(name, split), number - 1, None), None) if in_files else None
            return f"{name}, row {number}" if record is None else record.place()
        number -= read
    return f"{source.source}, row {number}"


def _filtered_because(whole_chats: bool) -> str:
    if whole_chats:
        return "as empty or without an answer"
    return f"as empty or not one-round conversations; data.template={CHAT} takes those of any length"


def _collect(
    source: str,
    parts: Iterable[tuple[str, Iterable[Record]]],
    format_name: str,
    *,
    skip_bad: bool,
    whole_chats: bool,
    roles: Mapping[str, str] | None = None,
) -> SourceRows:
    result = SourceRows(source, format_name)
    for name, records in parts:
        before = result.read
        _take(result, records, skip_bad=skip_bad, whole_chats=whole_chats, roles=roles)
        result.parts.append((name, result.read - before))
    return result


def _take(
    result: SourceRows,
    records: Iterable[Record],
    *,
    skip_bad: bool,
    whole_chats: bool,
    roles: Mapping[str, str] | None,
) -> None:
    for record in records:
        result.read += 1
        try:
            if record.problem:
                raise BadRow(record.problem)
            if result.format == "auto":
                result.format = detect_format(record.value, whole_chats=whole_chats)
            row = map_row(record.value, result.format, whole_chats=whole_chats, roles=roles)
        except BadRow as problem:
            if not skip_bad:
                raise UserError(f"{record.place()}: {problem}; {SKIPPING}") from None
            result.skipped += 1
            result.first_problem = result.first_problem or f"{record.place()}: {problem}"
            continue
        if row is None:
            result.filtered += 1
        else:
            result.rows.append(row)
            result.numbers.append(result.read)


def _made(source: str) -> Iterator[Record]:
    """The records that this package writes itself."""
    for number, raw in enumerate(MADE_HERE[source](), 1):
        yield Record(raw, partial("{}, row {}".format, source, number))


def _records(source: str, split: str) -> Iterator[Record]:
    if source in MADE_HERE:
        return _made(source)
    path = Path(source).expanduser()
    if path.is_file():
        return read_file(path)
    if path.is_dir():
        raise UserError(
            f"data source '{source}' is a folder; give a file of it ({DATA_KINDS}), or a pattern such as "
            f"'{path / '*.jsonl'}'.{_files_in(path)}"
        )
    if is_pattern(source):
        files = matching_files(source)
        if not files:
            raise UserError(f"data source '{source}' is a pattern that no file matches.")
        return chain.from_iterable(map(read_file, files))
    in_a_folder = "/" in source and path.parent.is_dir()
    if in_a_folder or looks_like_path(source, (*DATA_SUFFIXES, *OTHER_SUFFIXES)):
        raise UserError(_no_such_file(source, path))
    return read_hub(source, split, hint=did_you_mean(source, (*MADE, SELF)))


def _no_such_file(source: str, path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"data source '{source}' does not exist, nor does the folder '{folder}'."
    near = did_you_mean(path.name, _data_files(folder))
    return f"data source '{source}' does not exist.{near or _files_in(folder)}"


def _files_in(folder: Path) -> str:
    names = _data_files(folder)
    if not names:
        return f" The folder '{folder}' has no file of data ({DATA_KINDS})."
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" The folder '{folder}' holds {', '.join(names[:5])}{rest}."


def _data_files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(DATA_SUFFIXES))
