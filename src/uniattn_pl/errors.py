"""The one exception users see: what is wrong, where, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """The user's input cannot be used; the command line prints every problem and exits with code 2.

    Args:
        problems: one self-contained sentence per problem (what, where, what is allowed).
    """

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))


class RunFailure(Exception):
    """A run cannot go on for a reason the message explains in full; shown without traceback, exit code 1 or its own."""

    exit_code = 1


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic inside a Rust library (tokenizers, safetensors): no Exception, no class to import."""
    return type(error).__name__ == "PanicException"


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest of `allowed`, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def nearest_path(path: Path) -> str:
    """Return `did_you_mean` for a path that is not there, as a whole where only a folder on the way is misspelt."""
    missing = next(place for place in (*reversed(path.parents), path) if not place.exists() or place == path)
    beside = missing.parent
    names = sorted(entry.name for entry in beside.glob("[!.]*"))
    hint = did_you_mean(missing.name, names)
    if missing == path:
        return hint
    for name in difflib.get_close_matches(missing.name, names, n=1, cutoff=0.6):
        meant = beside / name / path.relative_to(missing)
        if meant.exists():
            return f" Did you mean '{meant}'?"
    return f" There is no folder '{missing}' either.{hint}"
