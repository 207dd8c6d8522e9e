"""Rows to token sequences: prompt and response tokenised apart, joined, closed with EOS, cut to a length.

A plain text has no prompt: it is cut into as many sequences as it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from uniattn_pl.data.encoded_rows import EncodedRows
from uniattn_pl.data.encoded_sources import EncodedSources
from uniattn_pl.data.prompt_ids import prefix_ids, special_ids, special_text, text_ids
from uniattn_pl.data.prompts import format_prompt
from uniattn_pl.data.row_layout import RowLayout
from uniattn_pl.data.rows import Row
from uniattn_pl.data.scored_spans import ScoredSpans
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_PER_CALL = 1_000  # the fast tokenizers work on the rows of one call in parallel


def encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int, *, with_choices: bool = False
) -> EncodedRows:
    """Tokenise rows with the paper's prompt.

    A sequence is what the tokenizer puts before a text (mostly BOS or nothing), prompt, response, EOS. Prompt and
    response are tokenised apart, so that the prompt has the same tokens at generation (`data/prompt_ids.py`). A
    sequence longer than `max_length` is cut at its end, as in the authors' code: it keeps its whole prompt, loses the
    end of its response and its EOS. When that would leave no response token, the row has nothing to learn and is
    dropped. A text that continues has no EOS.

    A plain text is cut into sequences of `max_length` that lose nothing. Each begins as texts do, with BOS where the
    tokenizer itself puts nothing there (EOS where it has none, behind which the next document begins in
    pre-training): a text's first token is learned too.

    Beside an encoder the prompt is what the encoder reads, closed as its tokenizer closes texts, and the decoder's
    sequence is what it begins with, response, EOS (`data/row_layout.py`); each has `max_length` tokens at most.

    Args:
        rows: what to encode, in this order.
        tokenizer: fast ones tokenise the rows of a call in parallel.
        max_length: tokens of a sequence at most.
        with_choices: also encode the first token of each choice, for rows that have choices.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, or an encoder would have nothing of a plain text to read.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set `eos_token` in its tokenizer_config.json.")
    encoder = _Encoder(tokenizer, max_length)
    for start in range(0, len(rows), _ROWS_PER_CALL):
        encoder.add(rows[start : start + _ROWS_PER_CALL], with_choices)
    return encoder.finish()


class _Encoder:
    """Collects sequences chunk by chunk, so that no more than one chunk is held as Python integers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.layout, self.eos = RowLayout.of(tokenizer), [int(tokenizer.eos_token_id)]
        self.text_start = text_start(tokenizer)
        self.special_text, self.special_ids = special_text(tokenizer), special_ids(tokenizer)
        self.pieces: list[torch.Tensor] = []
        self.lengths: list[int] = []
        self.given: list[int] = []
        self.sources: list[torch.Tensor] = []
        self.source_lengths: list[int] = []
        self.source_rows: list[int] = []
        self.choices: list[tuple[tuple[int, ...], int]] = []
        self.read = self.truncated = self.dropped = self.ambiguous = self.with_text = self.with_tokens = 0

    def add(self, rows: Sequence[Row], with_choices: bool) -> None:
        prompts = text_ids(self.tokenizer, [prompt_text(row) for row in rows])
        responses = text_ids(self.tokenizer, [row.output for row in rows])
        tokens, sources = list[int](), list[int]()
        for number, (row, prompt, response) in enumerate(zip(rows, prompts, responses, strict=True), self.read):
            self._count_special(row, prompt + response)
            response = response if row.continues else response + self.eos
            if row.plain:
                tokens += self._text_pieces(row, number, response, with_choices)
                continue
            laid_out = self.layout.row(prompt, response)
            if not laid_out.fits(self.max_length):
                self.dropped += 1
                continue
            self.truncated += len(laid_out.text) > self.max_length
            tokens += self._taken(laid_out.text[: self.max_length], laid_out.given, number)
            if laid_out.source is not None:
                sources += laid_out.source
                self.source_lengths.append(len(laid_out.source))
            if with_choices:
                self.choices.append(self._choices(row))
        self.pieces.append(torch.tensor(tokens, dtype=torch.int32))
        self.sources.append(torch.tensor(sources, dtype=torch.int32))
        self.read += len(rows)

    def _text_pieces(self, row: Row, number: int, text: list[int], with_choices: bool) -> list[int]:
        """The tokens of all sequences of a plain text, each with what begins a text."""
        if self.layout.start is not None:
            raise UserError(
                f"row {number} is a plain text, of which an encoder would have nothing to read: an encoder-decoder "
                "model needs rows with a prompt."
            )
        tokens: list[int] = []
        room = self.max_length - len(self.text_start)
        for first in range(0, len(text), room):
            tokens += self._taken(self.text_start + text[first : first + room], len(self.text_start), number)
            if with_choices:
                self.choices.append(self._choices(row))
        return tokens

    def _taken(self, sequence: list[int], given: int, number: int) -> list[int]:
        self.lengths.append(len(sequence))
        self.given.append(given)
        self.source_rows.append(number)
        return sequence

    def _count_special(self, row: Row, ids: list[int]) -> None:
        if not self.special_ids.isdisjoint(ids):
            self.with_tokens += 1
        elif any(self.special_text.search(text) for text in (row.instruction, row.input, row.output)):
            self.with_text += 1

    def _choices(self, row: Row) -> tuple[tuple[int, ...], int]:
        """Return the first token of each choice and the index of the answer, or ((), -1) when not checkable."""
        if row.answer is None or not row.choices:
            return (), -1
        first_tokens = _first_tokens(self.tokenizer, row.answer, row.choices, row.output)
        if len(set(first_tokens)) < len(first_tokens):
            self.ambiguous += 1
            return (), -1
        return first_tokens, row.choices.index(row.answer)

    def finish(self) -> EncodedRows:
        sources = EncodedSources(_joined(self.sources), torch.tensor(self.source_lengths, dtype=torch.int64))
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        return EncodedRows(
            _joined(self.pieces),
            lengths,
            ScoredSpans.behind(torch.tensor(self.given, dtype=torch.int64), lengths),
            self.choices,
            sources=None if self.layout.start is None else sources,
            source_rows=torch.tensor(self.source_rows, dtype=torch.int64),
            truncated=self.truncated,
            dropped=self.dropped,
            ambiguous=self.ambiguous,
            special_text=self.with_text,
            special_tokens=self.with_tokens,
        )


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int32), *pieces])


def prompt_text(row: Row) -> str:
    """What precedes the row's response; nothing in front of a plain text."""
    return "" if row.plain else format_prompt(row.instruction, row.input)


def text_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a text without a prompt begins with, at training and as it is sampled; never nothing."""
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return prefix_ids(tokenizer) or [int(begin)]  # type: ignore[arg-type]  # there is an EOS: `encode_rows` looks


def _first_tokens(
    tokenizer: PreTrainedTokenizerBase, answer: str, choices: Sequence[str], output: str
) -> tuple[int, ...]:
    """Return the token the response would begin with for each choice, followed by what follows the answer.

    The rest of the response stays, because a tokenizer may merge a short answer with the character after it.
    """
    rest = output.removeprefix(answer)
    return tuple(ids[0] for ids in text_ids(tokenizer, [choice + rest for choice in choices]))
