"""Rows to token sequences: prompt and response tokenised apart, joined, closed with EOS, or a chat; cut to a length.

A plain text has no prompt: it is cut into as many sequences as it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING

import torch

from uniattn_pl.data.chat_encoding import ChatEncoder, EncodedChat
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.documents import DocumentPacker
from uniattn_pl.data.encoded_rows import EncodedRows, RowCounts
from uniattn_pl.data.prompt_ids import prefix_ids, special_ids, special_text, text_ids
from uniattn_pl.data.prompts import format_prompt
from uniattn_pl.data.row_layout import RowLayout, RowTokens
from uniattn_pl.data.rows import Row
from uniattn_pl.data.scored_spans import ScoredSpans
from uniattn_pl.data.sequence_buffer import SequenceBuffer, joined
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_PER_CALL = 1_000  # the fast tokenizers work on the rows of one call in parallel


class RefusedRow(ValueError):
    """A row that the chat template does not take.

    Args:
        number: which of the rows that were encoded, from 0.
        reason: why.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def encode_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    with_choices: bool = False,
    template: ChatTemplate | None = None,
    skip_refused: bool = False,
    pack_documents: bool = False,
) -> EncodedRows:
    """Tokenise rows with the paper's prompt, or with a chat template.

    In the paper's prompt a sequence is what the tokenizer puts before a text (mostly BOS or nothing), prompt, response,
    EOS. Prompt and response are tokenised apart, so that the prompt has the same tokens at generation
    (`data/prompt_ids.py`). A sequence longer than `max_length` is cut at its end, as in the authors' code: it keeps its
    whole prompt, loses the end of its response and its EOS. When that would leave no response token, the row has
    nothing to learn and is dropped. A text that continues has no EOS.

    A chat template writes all of a sequence, BOS and EOS included (`data/chat_encoding.py`).

    A plain text is cut into sequences of `max_length` that lose nothing. Each begins as texts do, with BOS where the
    tokenizer itself puts nothing there (EOS where it has none, behind which the next document begins in
    pre-training): a text's first token is learned too. With `pack_documents` plain texts lie one after another instead
    (`data/documents.py`).

    Beside an encoder the prompt is what the encoder reads, closed as its tokenizer closes texts, and the decoder's
    sequence is what it begins with, response, EOS (`data/row_layout.py`); each has `max_length` tokens at most.

    Args:
        rows: what to encode, in this order.
        tokenizer: fast ones tokenise the rows of a call in parallel.
        max_length: tokens of a sequence at most.
        with_choices: also encode the first token of each choice, for rows that have choices.
        template: a chat template; None: the paper's prompt.
        skip_refused: leave out, and count, rows that the template does not take.
        pack_documents: sequences of plain texts run over their borders; rows are in document order.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, or an encoder would have nothing of a plain text to read.
        RefusedRow: the template does not take a row.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set `eos_token` in its tokenizer_config.json.")
    encoder = _Encoder(tokenizer, max_length, template, with_choices=with_choices, skip_refused=skip_refused)
    encoder.documents = DocumentPacker(encoder.text_start, max_length) if pack_documents else None
    for start in range(0, len(rows), _ROWS_PER_CALL):
        encoder.add(rows[start : start + _ROWS_PER_CALL])
    return encoder.finish()


class _Encoder:
    """Collects sequences chunk by chunk, so that no more than one chunk is held as Python integers."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        template: ChatTemplate | None,
        *,
        with_choices: bool,
        skip_refused: bool,
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.with_choices, self.skip_refused = with_choices, skip_refused
        self.layout, self.eos = RowLayout.of(tokenizer), [int(tokenizer.eos_token_id)]
        self.chats = None if template is None else ChatEncoder(template, self.layout, max_length)
        self.text_start = text_start(tokenizer)
        self.special_text, self.special_ids = special_text(tokenizer), special_ids(tokenizer)
        self.sequences = SequenceBuffer()
        self.choices: list[tuple[tuple[int, ...], int]] = []
        self.documents: DocumentPacker | None = None
        self.counts, self.read = RowCounts(), 0

    def add(self, rows: Sequence[Row]) -> None:
        is_chat = [self.chats is not None and not row.plain for row in rows]
        chats = iter([] if self.chats is None else self.chats.encode(list(compress(rows, is_chat))))
        pairs = self._pairs([row for row, of_template in zip(rows, is_chat, strict=True) if not of_template])
        for number, (row, of_template) in enumerate(zip(rows, is_chat, strict=True), self.read):
            if of_template:
                self._take_chat(row, next(chats), number)
            else:
                self._take_pair(row, *next(pairs), number)
        self.sequences.flush()
        self.read += len(rows)

    def _pairs(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[int]]]:
        """The bare tokens of each prompt in the paper's form, and of each response."""
        prompts = text_ids(self.tokenizer, [prompt_text(row) for row in rows])
        return zip(prompts, text_ids(self.tokenizer, [row.output for row in rows]), strict=True)

    def _take_pair(self, row: Row, prompt: list[int], response: list[int], number: int) -> None:
        self._count_special(row, prompt + response)
        response = response if row.continues else response + self.eos
        if row.plain:
            self._take_text(row, response, number)
            return
        tokens = self.layout.row(prompt, response)
        if self._take(row, tokens.cut(self.max_length), number):
            self.counts.truncated += not tokens.fits(self.max_length)

    def _take(self, row: Row, tokens: RowTokens | None, number: int) -> bool:
        """Keep what is left of a row, if anything."""
        if tokens is None:
            self.counts.dropped += 1
            return False
        self.sequences.add(tokens, number)
        if self.with_choices:
            self.choices.append(self._choices(row))
        return True

    def _take_chat(self, row: Row, chat: EncodedChat, number: int) -> None:
        if chat.refused:
            if not self.skip_refused:
                raise RefusedRow(number, chat.refused)
            self.counts.refused += 1
            return
        self.counts.special_text += chat.special_text
        self.counts.special_tokens += chat.special_tokens
        if self._take(row, chat.tokens, number):
            self.counts.truncated += chat.cut
            self.counts.shortened += chat.turns_cut > 0
            self.counts.turns_cut += chat.turns_cut
            self.counts.open_answers += chat.open

    def _take_text(self, row: Row, text: list[int], number: int) -> None:
        """Keep all sequences of a plain text, each with what begins a text."""
        if self.layout.start is not None:
            raise UserError(
                f"row {number} is a plain text, of which an encoder would have nothing to read: an encoder-decoder "
                "model needs rows with a prompt."
            )
        if self.documents is not None:
            self._take_packed(self.documents.add(text, number, continues=row.continues))
            return
        given = len(self.text_start)
        room = self.max_length - given
        for first in range(0, len(text), room):
            sequence = self.text_start + text[first : first + room]
            self._take(row, RowTokens(sequence, [(given, len(sequence))]), number)

    def _take_packed(self, sequences: Iterable[tuple[list[int], int]]) -> None:
        """Keep sequences that documents fill together: all but the first token of each is learned."""
        for sequence, number in sequences:
            self.sequences.add(RowTokens(sequence, [(1, len(sequence))]), number)
            if self.with_choices:
                self.choices.append(((), -1))

    def _count_special(self, row: Row, ids: list[int]) -> None:
        if not self.special_ids.isdisjoint(ids):
            self.counts.special_tokens += 1
        elif any(self.special_text.search(text) for text in (row.instruction, row.input, row.output)):
            self.counts.special_text += 1

    def _choices(self, row: Row) -> tuple[tuple[int, ...], int]:
        """Return the first token of each choice and the index of the answer, or ((), -1) when not checkable."""
        if row.answer is None or not row.choices:
            return (), -1
        first_tokens = self._first_tokens(row, row.answer)
        if first_tokens is None or len(set(first_tokens)) < len(first_tokens):
            self.counts.ambiguous += 1
            return (), -1
        return first_tokens, row.choices.index(row.answer)

    def _first_tokens(self, row: Row, answer: str) -> tuple[int, ...] | None:
        """Return the token the response would begin with for each choice, followed by what follows the answer.

        The rest of the response stays, because a tokenizer may merge a short answer with the character after it.
        """
        if self.chats is None:
            rest = row.output.removeprefix(answer)
            return tuple(ids[0] for ids in text_ids(self.tokenizer, [choice + rest for choice in row.choices]))
        chat = row.conversation
        rest = str(chat.messages[chat.learned[0]]["content"]).removeprefix(answer)
        return self.chats.answer_tokens(row, row.choices, rest)

    def finish(self) -> EncodedRows:
        if self.documents is not None:
            self._take_packed(self.documents.rest())
        self.sequences.flush()
        found = self.sequences
        lengths = torch.tensor(found.lengths, dtype=torch.int64)
        return EncodedRows(
            joined(found.texts),
            lengths,
            ScoredSpans(joined(found.spans).view(-1, 2), torch.tensor(found.span_counts, dtype=torch.int32)),
            self.choices,
            sources=None if self.layout.start is None else found.encoded_sources(),
            source_rows=torch.tensor(found.numbers, dtype=torch.int64),
            counts=self.counts,
        )


def prompt_text(row: Row) -> str:
    """What precedes the row's response; nothing in front of a plain text."""
    return "" if row.plain else format_prompt(row.instruction, row.input)


def text_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a text without a prompt begins with, at training and as it is sampled; never nothing."""
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return prefix_ids(tokenizer) or [int(begin)]  # type: ignore[arg-type]  # there is an EOS: `encode_rows` looks
