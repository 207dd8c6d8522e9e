"""The contents of rows as digests: whether rows are the same ones is never told by their file or their number."""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Sequence

from uniattn_pl.data.rows import Row
from uniattn_pl.resilience.identity import Contents, item_digest

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Row)}


def contents_of(rows: Sequence[Row], place: str, numbers: Sequence[int] | None = None) -> Contents:
    """Rows in order.

    Args:
        rows: any.
        place: where they are from.
        numbers: of each row in its source, counted from 1; default: as they stand.
    """
    digests = b"".join(map(_row_digest, rows))
    return Contents(place, digests, array("q", range(1, len(rows) + 1) if numbers is None else numbers))


def contents_of_parts(parts: Sequence[Sequence[Row]], place: str, numbers: Sequence[int]) -> Contents:
    """Rows of several sources in order; which source a row is of counts as content.

    Args:
        parts: the rows of each source.
        place: where they are from.
        numbers: of all of them.
    """
    digests = (item_digest(part.to_bytes(4) + _row_digest(row)) for part, rows in enumerate(parts) for row in rows)
    return Contents(place, b"".join(digests), array("q", numbers))


def _row_digest(row: Row) -> bytes:
    """All that the row says; what it leaves at its default does not count, so that a later field changes no digest."""
    return item_digest(json.dumps(_said(row), sort_keys=True, default=_said).encode())


def _said(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name, default in _DEFAULTS.items() if getattr(row, name) != default}
