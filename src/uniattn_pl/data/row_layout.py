"""Which of a model's inputs a row's prompt and response are: one text, or an encoder's and a decoder's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniattn_pl.data.prompt_ids import decoder_begins, prefix_ids, suffix_ids
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowTokens:
    """The tokens of one row.

    Attributes:
        text: of the decoder: what is given, then the response; of a chat all turns.
        spans: which of them are learned: the first token of each span, and the one behind its last.
        source: of the encoder; None: there is none, and the prompt is part of the text.
    """

    text: list[int]
    spans: list[tuple[int, int]]
    source: list[int] | None = None

    def fits(self, max_length: int) -> bool:
        """Whether all of it is within the limit."""
        return max(len(self.text), len(self.source or ())) <= max_length

    def cut(self, max_length: int) -> RowTokens | None:
        """What is left of it at the limit; None: no token that is learned, or a source that is cut."""
        if not self.spans or self.spans[0][0] >= max_length or len(self.source or ()) > max_length:
            return None
        spans = [(start, min(end, max_length)) for start, end in self.spans if start < max_length]
        return RowTokens(self.text[:max_length], spans, self.source)


@dataclass(frozen=True)
class RowLayout:
    """How the tokens of a prompt and of a response become a model's inputs.

    A decoder alone reads prefix, prompt, response. An encoder reads prefix, prompt, suffix, as its tokenizer makes any
    text; its decoder begins with `start` and goes on with the response.

    Args:
        prefix, suffix: what the tokenizer itself puts before and behind a text.
        start: what the decoder beside an encoder begins with (`decoder_begins`); None: there is no encoder.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()
    start: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> RowLayout:
        """The layout of a tokenizer's model."""
        begins = decoder_begins(tokenizer)
        if begins is None:
            return cls(tuple(prefix_ids(tokenizer)))
        return cls(tuple(prefix_ids(tokenizer)), tuple(suffix_ids(tokenizer)), tuple(begins))

    def row(self, prompt: list[int], response: list[int]) -> RowTokens:
        """The inputs of bare prompt and response tokens."""
        if self.start is None:
            text, given = [*self.prefix, *prompt, *response], len(self.prefix) + len(prompt)
            return RowTokens(text, [(given, len(text))])
        return self.beside_encoder([*self.prefix, *prompt], response)

    def beside_encoder(self, prompt: list[int], response: list[int]) -> RowTokens:
        """The inputs of a prompt with what begins it, for an encoder, and of a response."""
        assert self.start is not None
        text = [*self.start, *response]
        return RowTokens(text, [(len(self.start), len(text))], [*prompt, *self.suffix])


def check_packing(packing: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where rows are to be packed that have a source and a target each."""
    if packing and decoder_begins(tokenizer) is not None:
        raise UserError(
            "data.packing=true puts rows one after another into one text, but this model has an encoder, whose "
            "cross-attention would mix the sources of a pack; set data.packing=false."
        )
