"""Conversations to tokens: the template's text tokenised whole, its learned characters found among the tokens.

What is too long is cut between turns: the conversation ends with the last learned turn up to which it fits. Only a
first answer that does not fit by itself is cut at its end, as in the paper's prompt.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uniattn_pl.data.chat_template import TEMPLATE_RAISES, ChatTemplate, RefusedChat, Span
from uniattn_pl.data.chats import Chat
from uniattn_pl.data.prompt_ids import special_ids
from uniattn_pl.data.row_layout import RowLayout, RowTokens
from uniattn_pl.data.rows import Row


@dataclass(frozen=True)
class EncodedChat:
    """One conversation.

    Attributes:
        tokens: None: nothing that is learned fits.
        turns_cut: turns that were left out because it is too long.
        cut: whether its answer was cut at its end.
        open: whether the last learned turn ends in no special token.
        special_text: whether it holds the text of a special token, which stays text.
        special_tokens: whether the tokenizer makes special tokens of such text all the same.
        refused: why the template does not take it; empty: it does.
    """

    tokens: RowTokens | None = None
    turns_cut: int = 0
    cut: bool = False
    open: bool = False
    special_text: bool = False
    special_tokens: bool = False
    refused: str = ""


class ChatEncoder:
    """Encodes the conversations of rows.

    Args:
        template: what they are put into.
        layout: of the model's inputs.
        max_length: tokens of a sequence at most.
    """

    def __init__(self, template: ChatTemplate, layout: RowLayout, max_length: int) -> None:
        self.template, self.layout, self.max_length = template, layout, max_length
        self.tokenizer: Any = template.tokenizer
        self.special_ids = special_ids(template.tokenizer)

    def encode(self, rows: Sequence[Row]) -> list[EncodedChat]:
        """One result per row, in order."""
        chats = [row.conversation for row in rows]
        written = [self._written(chat, row.continues) for chat, row in zip(chats, rows, strict=True)]
        texts = [text for text, _ in written if isinstance(text, str)]
        tokenised = iter(self._tokenised(texts))
        found = []
        for row, chat, (text, spans) in zip(rows, chats, written, strict=True):
            if isinstance(text, RefusedChat):
                found.append(EncodedChat(refused=str(text)))
                continue
            ids, offsets = next(tokenised)
            try:
                found.append(self._encoded(row, chat, ids, spans_of(offsets, spans)))
            except RefusedChat as refused:  # where it was cut
                found.append(EncodedChat(refused=str(refused)))
        return found

    def answer_tokens(self, row: Row, choices: Sequence[str], rest: str) -> tuple[int, ...] | None:
        """The first learned token if the first learned turn were each choice and the rest of it.

        None: the choices cannot be told by it.
        """
        chat = row.conversation
        first, as_text = chat.until(chat.learned[0]), self._holds_special_text(row)
        ways = []
        for choice in choices:
            answer = {**first.messages[-1], "content": choice + rest}
            try:
                answered = Chat([*first.messages[:-1], answer], first.learned, first.tools)
                ways.append(self._alone(answered, as_text=as_text))
            except RefusedChat:
                return None
        if not all(tokens.spans for tokens in ways):
            return None
        starts = {tuple(tokens.text[: tokens.spans[0][0]]) for tokens in ways}
        return tuple(tokens.text[tokens.spans[0][0]] for tokens in ways) if len(starts) == 1 else None

    def _written(self, chat: Chat, continues: bool) -> tuple[str | RefusedChat, list[Span]]:
        try:
            return self.template.learned(chat, continues=continues)
        except RefusedChat as refused:
            return refused, []

    def _tokenised(self, texts: list[str]) -> list[tuple[list[int], list[Span]]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def _encoded(self, row: Row, chat: Chat, ids: list[int], spans: list[Span]) -> EncodedChat:
        tokens, turns_cut, special_text, special_tokens = self._laid_out(ids, spans), 0, False, False
        if self._holds_special_text(row):
            as_text = self._as_text(chat, continues=row.continues)
            special_text, special_tokens = as_text is not None, as_text is None
            tokens = as_text or tokens
        if not tokens.fits(self.max_length):
            tokens, turns_cut = self._shortened(chat, tokens, as_text=special_text)
        kept = tokens.cut(self.max_length)
        if kept is None:
            return EncodedChat(special_text=special_text, special_tokens=special_tokens)
        cut = len(kept.text) < len(tokens.text)
        is_open = not (cut or row.continues) and kept.text[kept.spans[-1][1] - 1] not in self.special_ids
        return EncodedChat(kept, turns_cut, cut, is_open, special_text, special_tokens)

    def _laid_out(self, ids: list[int], spans: list[Span]) -> RowTokens:
        if self.layout.start is None or not spans:
            return RowTokens(ids, spans)
        [(start, end)] = spans[-1:]
        begin = list(self.layout.prefix)
        prompt = ids[:start] if ids[: len(begin)] == begin else begin + ids[:start]
        return self.layout.beside_encoder(prompt, ids[start:end])

    def _holds_special_text(self, row: Row) -> bool:
        return any(map(self.template.special.search, (row.chat, row.instruction, row.input, row.output)))

    def _alone(self, chat: Chat, *, as_text: bool) -> RowTokens:
        """One conversation by itself; `as_text`: the text of special tokens stays text."""
        if as_text and (kept := self._as_text(chat)) is not None:
            return kept
        text, spans = self.template.learned(chat)
        [(ids, offsets)] = self._tokenised([text])
        return self._laid_out(ids, spans_of(offsets, spans))

    def _shortened(self, chat: Chat, tokens: RowTokens, *, as_text: bool) -> tuple[RowTokens, int]:
        """The conversation up to the last learned turn with which it fits, else up to the first; and turns cut."""
        best, last, ends = tokens, chat.learned[0], list(chat.learned[:-1])
        low, high = 0, len(ends)  # of `ends` those in front of `low` fit
        while low < high:
            middle = (low + high) // 2
            tried = self._alone(chat.until(ends[middle]), as_text=as_text)
            if tried.fits(self.max_length):
                best, last, low = tried, ends[middle], middle + 1
            else:
                high = middle
        if low == 0 and ends:
            best = self._alone(chat.until(last), as_text=as_text)
        return best, len(chat.messages) - 1 - last if ends else 0

    def _as_text(self, chat: Chat, *, continues: bool = False) -> RowTokens | None:
        """A conversation in which the text of special tokens stays text; None: it cannot be kept so."""
        try:
            ids = self._sanitized(chat, len(chat.messages), continues=continues)
            numbers = chat.learned[-1:] if self.template.last_only else chat.learned
            return self._laid_out(ids, [self._added(chat, number, ids, continues) for number in numbers])
        except TEMPLATE_RAISES:  # the tokenizer makes that token of plain text, or other tokens as turns are added
            return None

    def _sanitized(self, chat: Chat, messages: int, *, prompt: bool = False, continues: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer.apply_chat_template(
            chat.messages[:messages],
            chat.tools,
            chat_template=self.template.for_tools(chat.tools),
            add_generation_prompt=prompt,
            continue_final_message=continues,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        return ids

    def _added(self, chat: Chat, number: int, ids: list[int], continues: bool) -> Span:
        """The tokens that a turn adds, up to the special token that closes it. Raises ValueError."""
        before = self._sanitized(chat, number, prompt=True)
        through = ids if number + 1 == len(chat.messages) else self._sanitized(chat, number + 1)
        if ids[: len(through)] != through or through[: len(before)] != before:
            raise ValueError("tokens change as turns are added")
        end = max((n + 1 for n in range(len(before), len(through)) if through[n] in self.special_ids), default=0)
        rest = str(self.tokenizer.decode(through[end:])) if end else "-"
        return len(before), len(through) if rest.strip() or continues else end


def spans_of(offsets: Sequence[Span], characters: Sequence[Span]) -> list[Span]:
    """Return the tokens that hold any of each span of characters, in order, none twice; without empty spans.

    Args:
        offsets: first character of each token, and the one behind its last.
        characters: first of each span, and the one behind its last.
    """
    spans: list[Span] = []
    behind = 0
    for start, end in characters:
        first = max(behind, bisect_right(offsets, start, key=lambda offset: offset[1]))
        last = bisect_left(offsets, end, lo=first, key=lambda offset: offset[0])
        if start < end and first < last:
            spans.append((first, last))
            behind = last
    return spans
