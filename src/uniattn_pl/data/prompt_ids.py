"""From a prompt's text to its token ids: one way for training, generation, probes and benchmark tasks.

A prompt begins with what the tokenizer itself puts before a text (BOS, or whatever the model was trained with) and ends
with its own last token, also where the tokenizer would close every text with EOS: what follows goes on from there.
The text of a special token, as in a row that explains `</s>`, is text like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from uniattn_pl.families.encoder_decoder import decoder_start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""Counts up when the ids of any prompt change, so that results kept of former ones are measured again."""


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a prompt: what the tokenizer puts before a text, and the text; never an EOS behind it.

    An encoder reads a prompt as its tokenizer makes any text, with what it puts behind one (`data/row_layout.py`).
    """
    behind = [] if decoder_start(tokenizer) is None else suffix_ids(tokenizer)
    return prefix_ids(tokenizer) + text_ids(tokenizer, [text])[0] + behind


def decoder_begins(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return what a decoder beside an encoder is given before the response; None: there is no encoder.

    That is a token of its own (T5: padding), then what the tokenizer puts before a text (BART).
    """
    start, prefix = decoder_start(tokenizer), prefix_ids(tokenizer)
    return None if start is None else [start, *(prefix if prefix != [start] else [])]


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of bare texts, nothing added before or behind.

    Special tokens in a text are spelled out, not meant; only a tokenizer that cannot do so turns them into the real
    ones (`special_ids` finds them).
    """
    if not texts:
        return []
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False, **_plain(tokenizer))
    return cast("list[list[int]]", encoded["input_ids"])


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer itself puts before every text: mostly [BOS] or nothing."""
    bare = text_ids(tokenizer, ["a"])[0]
    whole = cast("list[int]", tokenizer("a", verbose=False)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def suffix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer itself puts behind every text: nothing, or EOS (T5, BART), which encoders expect."""
    bare = text_ids(tokenizer, ["a"])[0]
    whole = cast("list[int]", tokenizer("a", verbose=False)["input_ids"])
    return whole[len(prefix_ids(tokenizer)) + len(bare) :]


def special_text(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern that finds the text of any special token."""
    names = {str(token) for token in _special_tokens(tokenizer).values()} - {""}
    # The longest first: of two that begin alike the one that is meant. Without any, a pattern that never matches.
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of special tokens, but that of unknown text, which ordinary characters may become."""
    return frozenset(_special_tokens(tokenizer)) - {cast("int | None", tokenizer.unk_token_id)}


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})  # Mistral's own tokenizers have none
    tokens = {index: str(token) for index, token in added.items() if token.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return tokens | {index: token for index, token in named if index is not None}


def _plain(tokenizer: Any) -> dict[str, Any]:
    """The arguments under which special tokens in a text are spelled out."""
    # Mistral's own tokenizers always do, and refuse to be asked.
    of_mistral = any(kind.__name__ == "MistralCommonBackend" for kind in type(tokenizer).__mro__)
    return {} if of_mistral else {"split_special_tokens": True}
