"""How many columns the output has."""

from __future__ import annotations

import os
import shutil
import sys

LEAST = 40  # narrower ones are not served
_wide = False


def use_wide_output(wide: bool = True) -> None:
    """Let tables be as wide as they are, for the rest of this process (`--wide`)."""
    global _wide
    _wide = wide


def output_width() -> int | None:
    """Columns of the terminal, or what `$COLUMNS` says; None: no limit, as of a file or with `--wide`."""
    if _wide or not (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()):
        return None
    return max(LEAST, shutil.get_terminal_size().columns)
