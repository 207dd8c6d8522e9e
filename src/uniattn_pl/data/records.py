"""One record of a data source, with the place it was found at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def row_place(name: str, index: int) -> str:
    """Return "name, row index 3" (0-based) for sources that have no lines."""
    return f"{name}, row index {index}"


def line_place(path: Path, number: int) -> str:
    """Return "file, line 3" (from 1)."""
    return f"{path}, line {number}"
