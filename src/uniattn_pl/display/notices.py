"""What a user should know about a run that goes on: one line on stderr, once."""

from __future__ import annotations

import sys

_told: set[str] = set()


def tell_once(line: str) -> None:
    """Print `note: LINE` on stderr, the first time a process says it."""
    if line not in _told:
        _told.add(line)
        print(f"note: {line}", file=sys.stderr)
