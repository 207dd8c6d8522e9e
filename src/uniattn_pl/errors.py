"""The one exception users see: what is wrong, where, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
