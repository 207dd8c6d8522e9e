"""From tokens to text as they come: whole characters only, and nothing that may be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a tokenizer writes in place of bytes that are no character (yet)


class TextPieces:
    """Turns the tokens of one text into pieces that together are the tokenizer's own text of all of them.

    Args:
        stop: the text ends before the first of these.

    Attributes:
        stopped: whether it has ended so.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop, self.stopped = tokenizer, tuple(stop), False
        self._ids: list[int] = []
        # A token's text depends on those before it (a space in front of a word): some that are written are read again.
        self._read_again, self._written = 0, 0
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token; returns what can be shown now, often one token's text."""
        self._ids.append(token)
        return self._show(self._new_text(), last=False)

    def finish(self) -> str:
        """No token comes any more; returns what was held back."""
        return self._show(self._new_text(last=True), last=True)

    def _new_text(self, *, last: bool = False) -> str:
        """The text of tokens that are not written yet, or none while it ends inside a character."""
        written = self._text(self._ids[self._read_again : self._written])
        text = self._text(self._ids[self._read_again :])
        if not last and (text.endswith(UNFINISHED) or len(text) <= len(written)):
            return ""
        self._read_again, self._written = self._written, len(self._ids)
        return text[len(written) :]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _show(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        ends = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        self.stopped = bool(ends)
        keep = min(ends) if ends else len(text) if last else len(text) - self._may_begin_a_stop(text)
        self._held = "" if self.stopped else text[keep:]
        return text[:keep]

    def _may_begin_a_stop(self, text: str) -> int:
        """Characters at the end of a text that are the beginning of a stop string, the longest such end."""
        return max(
            (
                size
                for stop in self.stop
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
