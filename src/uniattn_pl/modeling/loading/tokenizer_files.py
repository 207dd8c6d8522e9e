"""The tokenizer in a model folder, checked for what transformers accepts and texts then fail on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import mistaken_content, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Vocabularies of every kind of tokenizer in transformers; some (bytes, characters) have a config only.
VOCABULARIES = ("tokenizer.json", "tokenizer_config.json", "tekken.json", "vocab.*", "*.model", "*.tiktoken")
SMALL_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_tokenizer(location: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub id, with `AutoTokenizer.from_pretrained`'s options.

    Raises:
        UserError: the folder has none, one of its files is broken or something else under its name, or the tokenizer
            knows no tokens.
        Exception: whatever transformers says to files that are well formed and wrong.
    """
    from transformers import AutoTokenizer

    folder = Path(location)
    if folder.is_dir():
        _check_files(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, **options)
    except Exception:
        if (folder / "tokenizer.json").exists():  # of many megabytes, so read twice only where it may be the reason
            read_json_object(folder / "tokenizer.json")
        raise
    # Without its vocabulary transformers builds some tokenizers empty; to them every text is nothing.
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise UserError(f"the tokenizer of '{location}' has no tokens; the file of its vocabulary is missing.")
    return tokenizer


def _check_files(folder: Path) -> None:
    if not any(True for pattern in VOCABULARIES for _ in folder.glob(pattern)):
        raise UserError(
            f"'{folder}' has no tokenizer (tokenizer.json or tokenizer.model); copy the files whose names begin with "
            "'tokenizer' from the model it was made from."
        )
    for name in SMALL_FILES:
        if (folder / name).exists():
            read_json_object(folder / name)
    for file in (*folder.glob("tokenizer.json"), *folder.glob("*.model")):
        if mistaken := mistaken_content(file):
            raise UserError(f"'{file}'{mistaken}")
