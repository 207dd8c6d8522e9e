"""Documents one after another, as pre-training reads them: what belongs together in order, sequences of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uniattn_pl.data.prompt_ids import text_ids
from uniattn_pl.data.rows import Row
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def in_document_order(rows: Sequence[Row], numbers: Sequence[int], order: Sequence[int]) -> list[int]:
    """Bring the pieces of a text that was cut into rows back together, each run where its first piece stood.

    Args:
        rows: of a source.
        numbers: of each of them among its records: a piece goes on in the one that has the next number.
        order: indices into both, shuffled.
    """
    at = {numbers[index]: index for index in order}
    follows = {at[numbers[index] + 1] for index in order if _continued(rows, numbers, at, index)}
    whole: list[int] = []
    for first in order:
        if first in follows:
            continue
        whole.append(first)
        while _continued(rows, numbers, at, whole[-1]):
            whole.append(at[numbers[whole[-1]] + 1])
    return whole


def _continued(rows: Sequence[Row], numbers: Sequence[int], at: dict[int, int], index: int) -> bool:
    return rows[index].continues and numbers[index] + 1 in at


def check_documents(pack_documents: bool, rows: Iterable[Row], source: str) -> None:
    """Raise UserError where documents are to be packed (`data.pack_documents`) and no row is one."""
    if pack_documents and not any(row.plain for row in rows):
        raise UserError(
            f"data.pack_documents puts plain texts one after another, and '{source}' has none, only rows with a "
            "prompt; set it to false (data.packing puts such rows together)."
        )


def whole_documents(rows: Sequence[Row], numbers: Sequence[int]) -> list[Row]:
    """Rows in document order, of which a piece that goes on elsewhere, in held-out rows, ends as a document does."""
    following = [*numbers[1:], None]
    return [
        replace(row, continues=False) if row.continues and number + 1 != after else row
        for row, number, after in zip(rows, numbers, following, strict=True)
    ]


def document_tokens(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of plain texts, with EOS behind each that does not continue, and nothing before it."""
    eos = [tokenizer.eos_token_id]
    ids = text_ids(tokenizer, [row.output for row in rows])
    return [one if row.continues else one + eos for one, row in zip(ids, rows, strict=True)]


class DocumentPacker:
    """Cuts the tokens of documents, one after another, into sequences that run over the borders between documents.

    A document is what begins a text, its tokens, EOS; where a text begins with EOS, that of the document before is
    enough. A sequence begins with the last token of the one before, so that every token but the very first is
    predicted once.

    Args:
        start: what a text begins with.
        max_length: tokens of each sequence but the last, which has what is left.
    """

    def __init__(self, start: Sequence[int], max_length: int) -> None:
        self.start, self.max_length = list(start), max_length
        self._tokens: list[int] = []
        self._row = 0
        self._continues = False

    def add(self, document: Sequence[int], row: int, *, continues: bool) -> Iterator[tuple[list[int], int]]:
        """Yield each sequence that is full, and the row that it begins in.

        Args:
            document: tokens of a text, with EOS unless it continues.
            row: its number.
            continues: it goes on in the next one that is added.
        """
        if not self._tokens:
            self._row = row
        if not self._continues and self._tokens[-1:] != self.start:
            self._tokens += self.start
        self._tokens += document
        self._continues = continues
        step = self.max_length - 1
        whole = max(0, len(self._tokens) - 1) // step
        for first in range(0, whole * step, step):
            yield self._tokens[first : first + self.max_length], self._row
            self._row = row
        del self._tokens[: whole * step]

    def state(self) -> dict[str, Any]:
        """What is left over behind the sequences so far, as plain numbers: fewer tokens than a sequence has."""
        return {"tokens": list(self._tokens), "row": self._row, "continues": self._continues}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind a `state`."""
        self._tokens, self._row, self._continues = list(state["tokens"]), state["row"], state["continues"]

    def rest(self) -> Iterator[tuple[list[int], int]]:
        """Yield what is left behind the last full sequence, if there is anything to predict in it."""
        if len(self._tokens) > 1:
            yield self._tokens, self._row
