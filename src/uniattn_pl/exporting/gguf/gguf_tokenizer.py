"""A tokenizer in the words of GGUF: its pieces, merges or scores, special tokens and chat template.

llama.cpp knows two kinds that matter here: `gpt2`, byte-level BPE, whose first splitting of a text is named and not
described; and `llama`, SentencePiece's BPE with a fallback to bytes, which joins pieces by score. A tokenizer that is
neither, or that splits a text as no name says, is refused: the file would answer other ids than the model was trained
on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uniattn_pl.data.prompt_ids import prefix_ids
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
# What a byte-level tokenizer does to a text before it joins bytes, and llama.cpp's name for it; the second is of those
# that take a whole word of the vocabulary as it is (`ignore_merges`).
_FIRST_SPLITS = {
    ("gpt2",): ("gpt-2", None),
    ("digits", "gpt2"): ("smollm", None),
    (_LLAMA_3, "bytes"): ("dbrx", "llama-bpe"),
    (_QWEN_2, "bytes"): ("qwen2", None),
}
_ENDS = ("eos", "eot", "eom")  # whatever llama.cpp calls them, each ends a text
_SPACE = "\u2581"  # what SentencePiece writes for a space
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def add_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, ends: Sequence[int]
) -> None:
    """Write a tokenizer into a file, so that llama.cpp makes the same ids of a text.

    Args:
        writer: of the file.
        tokenizer: of the model.
        vocabulary: rows of its embedding; ids that the tokenizer lacks count as unused.
        ends: tokens that end a text, the usual one first; none: the tokenizer's.

    Raises:
        UserError: llama.cpp has no tokenizer that does the same.
    """
    from gguf import SpecialVocab

    described = _description(tokenizer)
    model = described["model"]
    pieces: dict[str, int] = tokenizer.get_vocab()
    words = [f"[PAD{index}]" for index in range(vocabulary)]
    for piece, index in pieces.items():
        words[index] = piece
    name, split = tokenizer_kind(described)
    writer.add_tokenizer_model(name)
    writer.add_tokenizer_pre(split)
    writer.add_token_list([word.encode("utf-8") for word in words])
    if name == "llama":
        writer.add_token_scores(_scores(words, model["merges"]))
        writer.add_add_space_prefix(_begins_with_space(tokenizer))
    writer.add_token_types(_types(words, pieces, described, model))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = SpecialVocab(folder, load_merges=name == "gpt2", n_vocab=vocabulary)
    special.add_special_token = _added_around(tokenizer)  # as prompts have it, whatever its files say
    special.special_token_ids.update(zip(_ENDS, ends, strict=False))
    if name == "gpt2" and not special.merges:  # single bytes: llama.cpp wants a merge; this one's halves never meet
        special.merges = [f"{words[0]} {words[0]}"]
    special.add_to_gguf(writer, quiet=True)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where llama.cpp has no tokenizer that does the same."""
    tokenizer_kind(_description(tokenizer))
    _added_around(tokenizer)


def tokenizer_kind(described: dict[str, Any]) -> tuple[str, str]:
    """llama.cpp's names for a tokenizer.json's kind and for its first splitting of a text.

    Raises:
        UserError: there is none.
    """
    model, changes = described["model"], _listed(described.get("normalizer"), "normalizers")
    splits = _listed(described.get("pre_tokenizer"), "pretokenizers")
    if model.get("type") != "BPE":
        raise UserError(f"GGUF: a tokenizer of kind {model.get('type')} cannot be written; BPE can.")
    if model.get("byte_fallback"):
        _refuse_others([change for change in changes if not _writes_spaces(change)], "changes a text")
        _refuse_others([split for split in splits if split["type"] != "Metaspace"], "splits a text")
        return "llama", "default"
    _refuse_others([change for change in changes if change["type"] != "NFC"], "changes a text")
    steps = tuple(_step(step) for step in splits)
    if steps not in _FIRST_SPLITS:
        known = ", ".join(name for names in _FIRST_SPLITS.values() for name in names if name)
        found = " then ".join(steps) or "not at all"
        raise UserError(
            f"GGUF: llama.cpp has no name for how this tokenizer first splits a text ({found}); it would give other "
            f"tokens. Written are those that split as {known} do."
        )
    plain, whole_words = _FIRST_SPLITS[steps]
    return "gpt2", (whole_words or plain) if model.get("ignore_merges") else plain


def _refuse_others(steps: list[dict[str, Any]], does: str) -> None:
    """Refuse a tokenizer that does something before it joins pieces which llama.cpp does not do."""
    if steps:
        found = ", ".join(json.dumps(step, sort_keys=True) for step in steps)
        raise UserError(f"GGUF: this tokenizer {does} ({found}) as llama.cpp does not; it would give other tokens.")


def _writes_spaces(change: dict[str, Any]) -> bool:
    """Whether a change of a text is SentencePiece's own: its mark before the text, and for every space."""
    if change["type"] == "Prepend":
        return bool(change["prepend"] == _SPACE)
    return change["type"] == "Replace" and (change["pattern"], change["content"]) == ({"String": " "}, _SPACE)


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "gpt2" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex"))
    return f"{kind} {json.dumps({key: value for key, value in step.items() if key != 'type'}, sort_keys=True)}"


def _listed(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer.json, which is one, a sequence of them, or absent."""
    if part is None:
        return []
    return part[key] if part["type"] == "Sequence" else [part]


def _description(tokenizer: Any) -> dict[str, Any]:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError("GGUF: this tokenizer has no tokenizer.json, whose pieces could be written.")
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _types(words: list[str], pieces: dict[str, int], described: dict[str, Any], model: dict[str, Any]) -> list[int]:
    from gguf import TokenType

    added = {token["content"]: token["special"] for token in described["added_tokens"]}
    unknown = model.get("unk_token")

    def of(word: str) -> TokenType:
        if word not in pieces:
            return TokenType.UNUSED
        if word == unknown:
            return TokenType.UNKNOWN
        if word in added:
            return TokenType.CONTROL if added[word] else TokenType.USER_DEFINED
        return TokenType.BYTE if model.get("byte_fallback") and word in _BYTES else TokenType.NORMAL

    return [int(of(word)) for word in words]


def _scores(words: list[str], merges: list[Any]) -> list[float]:
    """A piece's score: the earlier the merge that makes it, the higher; llama.cpp joins the best pair first."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        first.setdefault("".join(pair), rank)
    return [-float(first.get(word, len(merges))) for word in words]


def _begins_with_space(tokenizer: Any) -> bool:
    ids = tokenizer("x", add_special_tokens=False)["input_ids"]
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith(_SPACE)


def _added_around(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether a text begins with BOS; none ends with EOS, since a prompt goes on (`data/prompt_ids.py`).

    Raises:
        UserError: a text begins with something else.
    """
    begins = prefix_ids(tokenizer)
    if begins not in ([], [tokenizer.bos_token_id]):
        raise UserError(f"GGUF: this tokenizer begins a text with the tokens {begins}; llama.cpp adds BOS or nothing.")
    return {"bos": bool(begins), "eos": False}
