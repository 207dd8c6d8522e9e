"""What one server takes, so that neither a client nor a crowd of them can use up its memory."""

from __future__ import annotations

from dataclasses import dataclass

TOKENS_WITHOUT_POSITIONS = 4096  # of a text, where neither the model nor the caller says how long one may get


@dataclass(frozen=True)
class ServerLimits:
    """What a server takes at most.

    Attributes:
        tokens: of a text, prompt and answer together.
        parallel: texts that are made at the same time, each with a cache of its own.
        waiting: texts that wait for their turn; more are refused.
        body_bytes: of a request.
    """

    tokens: int
    parallel: int = 8
    waiting: int = 128
    body_bytes: int = 2**24
