"""Answers in the shapes of OpenAI's API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from uniattn_pl.inference.continuation import TokenScore
from uniattn_pl.serving.server.token_names import TokenNames


class CompletionShape:
    """Of `/v1/completions`."""

    kind, piece_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, names: TokenNames, *, with_logprobs: bool) -> None:
        self.names, self.with_logprobs = names, with_logprobs
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a text before its first piece: nothing."""
        return None

    def piece(self, index: int, text: str, scores: Sequence[TokenScore], finish: str | None) -> dict[str, Any]:
        """A piece of a stream, or all of a text."""
        logprobs = self._logprobs(index, scores) if self.with_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    whole = piece

    def _logprobs(self, index: int, scores: Sequence[TokenScore]) -> dict[str, Any]:
        tokens, offsets = [self.names.name(score.id) for score in scores], []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [score.log for score in scores],
            "top_logprobs": [self._top(score) for score in scores],
            "text_offset": offsets,
        }

    def _top(self, score: TokenScore) -> dict[str, float] | None:
        """The likeliest tokens and the one that is there, by name; of two of one name the likelier."""
        if score.log is None:
            return None
        top: dict[str, float] = {}
        for token, log in (*score.likeliest, (score.id, score.log)):
            top.setdefault(self.names.name(token), log)
        return top


class ChatShape:
    """Of `/v1/chat/completions`."""

    kind, piece_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, names: TokenNames, *, with_logprobs: bool) -> None:
        self.names, self.with_logprobs = names, with_logprobs

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a text before its first piece: who speaks."""
        return self._choice(index, {"delta": {"role": "assistant", "content": ""}}, (), None)

    def piece(self, index: int, text: str, scores: Sequence[TokenScore], finish: str | None) -> dict[str, Any]:
        """A piece of a stream."""
        return self._choice(index, {"delta": {"content": text} if text else {}}, scores, finish)

    def whole(self, index: int, text: str, scores: Sequence[TokenScore], finish: str | None) -> dict[str, Any]:
        """All of a text."""
        return self._choice(index, {"message": {"role": "assistant", "content": text}}, scores, finish)

    def _choice(
        self, index: int, content: dict[str, Any], scores: Sequence[TokenScore], finish: str | None
    ) -> dict[str, Any]:
        logprobs = {"content": [self._logprob(score) for score in scores]} if self.with_logprobs else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}

    def _logprob(self, score: TokenScore) -> dict[str, Any]:
        return {
            **self._named(score.id, score.log),
            "top_logprobs": [self._named(token, log) for token, log in score.likeliest],
        }

    def _named(self, token: int, log: float | None) -> dict[str, Any]:
        return {"token": self.names.name(token), "logprob": log, "bytes": self.names.bytes(token)}


Shape = CompletionShape | ChatShape


class Envelope:
    """What is around the choices of one answer, and the same in all pieces of a stream."""

    def __init__(self, shape: Shape, model: str) -> None:
        self.shape = shape
        self._head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer of a request that is not streamed."""
        return {**self._head, "object": self.shape.kind, "choices": list(choices), "usage": usage}

    def piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        """An event of a stream."""
        return {**self._head, "object": self.shape.piece_kind, "choices": [choice]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last event of a stream that is to end with the number of tokens."""
        return {**self._head, "object": self.shape.piece_kind, "choices": [], "usage": usage}


def usage_of(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Tokens of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }
