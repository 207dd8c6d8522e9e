"""Held-out rows as a model is asked them: the tokens in front of what is learned, and the text that is expected.

A fit shows what its models say to the first of them, `generate --row N` asks any of them again; both number them as
they are measured. A plain text has no prompt: its beginning is continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniattn_pl.data.encoded_rows import EncodedRows, Example
from uniattn_pl.data.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEGINNING = 32  # tokens of a plain text, at most half of it
EXPECTED = 64  # tokens of what is expected that are kept: it is shown in one line


@dataclass(frozen=True)
class HeldOutPrompt:
    """A held-out row without what is learned of it.

    Attributes:
        number: among the held-out sequences, from 0.
        ids: what the model, or its encoder, reads.
        asked: the question, for people; not the template around it.
        expected: how the text goes on in the row.
    """

    number: int
    ids: list[int]
    asked: str
    expected: str


def first_prompts(
    validation: EncodedRows,
    order: Sequence[int],
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
) -> list[HeldOutPrompt]:
    """The held-out rows that come first.

    Args:
        validation: all of them as tokens.
        order: the sequences to take.
        rows: as they were read.
    """
    return [prompt_of(number, validation[index], rows, tokenizer) for number, index in enumerate(order)]


def prompt_of(number: int, example: Example, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> HeldOutPrompt:
    """One held-out sequence as it is asked."""
    row, tokens = rows[example.row], example.tokens.tolist()
    start, stop = example.spans[0].tolist()
    if row.plain:
        start = min(start + BEGINNING, (start + stop) // 2)
    ids = tokens[:start] if example.source is None else example.source.tolist()
    asked = _text(tokenizer, ids) if row.plain else _question(row)
    return HeldOutPrompt(number, ids, asked, _text(tokenizer, tokens[start:stop][:EXPECTED]))


def _question(row: Row) -> str:
    """What differs between rows: the input, where there is one, else the instruction; of a chat the user's turn."""
    if row.chat:
        chat = row.conversation
        return str(chat.messages[chat.learned[0] - 1]["content"] if chat.learned[0] else "")
    return row.input.strip() or row.instruction.strip()


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
