"""How many columns the output has."""

from __future__ import annotations

import os
import shutil
import sys

LEAST = 40  # narrower ones are not served
_wide = False


def use_wide_output(wide: bool) -> None:
    """Let tables be as wide as they are, or (False) keep to the terminal, until this is called again (`--wide`)."""
    global _wide
    _wide = wide


def output_width() -> int | None:
    """Columns of the terminal, or what `$COLUMNS` says; None: no limit, as of a file or with `--wide`."""
    if _wide or not (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()):
        return None
    return max(LEAST, shutil.get_terminal_size().columns)
