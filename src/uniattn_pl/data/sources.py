"""Reading rows: the embedded data set, a local file of rows or of plain text, or a hub data set."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uniattn_pl.config.sections.data_section import DATA_SUFFIXES, EMBEDDED, SELF, TEXT_SUFFIXES
from uniattn_pl.config.source_paths import looks_like_path
from uniattn_pl.data.data_files import read_file
from uniattn_pl.data.embedded import embedded_rows
from uniattn_pl.data.hub import read_hub
from uniattn_pl.data.records import Record
from uniattn_pl.data.rows import BadRow, Row, detect_format, map_row
from uniattn_pl.errors import UserError, did_you_mean

# No rows are read from these, but a source that ends so is a missing file, not a hub name.
OTHER_SUFFIXES = (".csv", ".tsv", ".gz", ".zip", ".arrow")


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
        filtered: conversations of more than one round or with an empty turn, and empty texts.
        first_problem: what was wrong with the first bad row.
    """

    source: str
    format: str
    rows: list[Row] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    read: int = 0
    skipped: int = 0
    filtered: int = 0
    first_problem: str = ""


def read_source(source: str, *, split: str = "train", format: str = "auto", on_bad_row: str = "error") -> SourceRows:
    """Read every row of a source (`data.source`).

    Args:
        source: "embedded", a path, or a hub data set name.
        split: split of a hub data set.
        format: a key of `rows.FORMATS`, or "auto" to look at the keys of the first row; a plain text has its own.
        on_bad_row: "error" stops at the first bad row and names its place, "skip" counts bad rows.

    Raises:
        UserError: no such file or data set, a bad row, or no usable row at all.
    """
    if source == EMBEDDED:
        rows = embedded_rows()
        return SourceRows(source, "alpaca", rows, array("q", range(1, len(rows) + 1)), read=len(rows))
    if source.lower().endswith(TEXT_SUFFIXES):
        format = "text"
    result = _collect(source, _records(source, split), format, skip_bad=on_bad_row == "skip")
    if not result.rows:
        first = f" The first bad row: {result.first_problem}." if result.first_problem else ""
        raise UserError(
            f"data source '{source}' has no usable row ({result.read} read, {result.skipped} bad, {result.filtered} "
            f"left out as empty or not one-round conversations).{first}"
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
    return joined


def _collect(source: str, records: Iterable[Record], format_name: str, *, skip_bad: bool) -> SourceRows:
    result = SourceRows(source, format_name)
    for record in records:
        result.read += 1
        try:
            if record.problem:
                raise BadRow(record.problem)
            if result.format == "auto":
                result.format = detect_format(record.value)
            row = map_row(record.value, result.format)
        except BadRow as problem:
            if not skip_bad:
                way_out = "data.on_bad_row=skip leaves bad rows out and counts them."
                raise UserError(f"{record.place()}: {problem}; {way_out}") from None
            result.skipped += 1
            result.first_problem = result.first_problem or f"{record.place()}: {problem}"
            continue
        if row is None:
            result.filtered += 1
        else:
            result.rows.append(row)
            result.numbers.append(result.read)
    return result


def _records(source: str, split: str) -> Iterator[Record]:
    path = Path(source).expanduser()
    if path.is_file():
        return read_file(path)
    if path.is_dir():
        raise UserError(f"data source '{source}' is a folder; give one {_listed(DATA_SUFFIXES)} file.{_files_in(path)}")
    in_a_folder = "/" in source and path.parent.is_dir()
    if in_a_folder or looks_like_path(source, (*DATA_SUFFIXES, *OTHER_SUFFIXES)):
        raise UserError(_no_such_file(source, path))
    return read_hub(source, split, hint=did_you_mean(source, (EMBEDDED, SELF)))


def _no_such_file(source: str, path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"data source '{source}' does not exist, nor does the folder '{folder}'."
    near = did_you_mean(path.name, _data_files(folder))
    return f"data source '{source}' does not exist.{near or _files_in(folder)}"


def _files_in(folder: Path) -> str:
    names = _data_files(folder)
    if not names:
        return f" The folder '{folder}' has no {_listed(DATA_SUFFIXES)} file."
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" The folder '{folder}' holds {', '.join(names[:5])}{rest}."


def _data_files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in DATA_SUFFIXES)


def _listed(names: Iterable[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} or {last}"
