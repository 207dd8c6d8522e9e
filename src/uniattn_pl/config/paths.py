"""`~` and `$VARIABLE` of the paths in a config, expanded in one place, so that all that read and write agree."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError, did_you_mean

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(.*)", re.DOTALL)


def expand(value: Any) -> tuple[Any, str | None]:
    """A path, a list of them, or an sqlite URL with `~` and `$VARIABLE` expanded, and what keeps it from being so.

    Other URLs stay as they are: a password may hold a dollar sign; so does a file that has such a name.
    """
    if isinstance(value, list):
        expanded = [expand(item) for item in value]
        return [path for path, _ in expanded], next((problem for _, problem in expanded if problem), None)
    if not isinstance(value, str) or os.path.lexists(value):
        return value, None
    prefix, path = "", value
    if "://" in value:
        sqlite = _SQLITE.fullmatch(value)
        if sqlite is None:
            return value, None
        prefix, path = sqlite.groups()
    unset = [name for name in _VARIABLE.findall(path) if name.strip("{}") not in os.environ]
    if unset:
        name = unset[0].strip("{}")
        return value, f"the environment variable {name} is not set.{did_you_mean(name, os.environ)}"
    path = os.path.expanduser(os.path.expandvars(path))
    if path.startswith("~"):
        return (
            value,
            f"there is no user '{path[1:].partition('/')[0]}' whose home '{value}' could be; ./{path} is a file.",
        )
    return prefix + path, None


def path_argument(text: str) -> Path:
    """A path on the command line, expanded: a shell does so in `--to ~/x`, and not in `--to=~/x`.

    Raises:
        UserError: an unset variable, or no such user.
    """
    return Path(text_argument(text))


def text_argument(text: str) -> str:
    """As `path_argument`, of text that may also be a name."""
    path, problem = expand(text)
    if problem:
        raise UserError(f"'{text}': {problem}")
    return str(path)
