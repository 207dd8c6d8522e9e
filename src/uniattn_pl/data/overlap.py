"""Rows that are held out and trained on, too, found by what they ask, but for case, white space and Unicode form."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from uniattn_pl.data.rows import Row
from uniattn_pl.resilience.identity import item_digest


def asked(row: Row) -> tuple[str, ...]:
    """What a row is known by: its prompt, the turns before the last answer, or all of a plain text."""
    question = row.question
    return (row.output,) if row.plain else (question.instruction, question.input, question.chat)


def asked_digest(row: Row) -> bytes:
    """The same for rows that ask the same but for case, white space and Unicode form (NFC)."""
    return item_digest("\0".join(map(_normalised, asked(row))).encode())


def asked_digests(rows: Iterable[Row]) -> frozenset[bytes]:
    """`asked_digest` of each row."""
    return frozenset(map(asked_digest, rows))


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())
