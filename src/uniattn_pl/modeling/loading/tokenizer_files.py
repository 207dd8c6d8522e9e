"""The tokenizer in a model folder, checked for what transformers accepts and texts then fail on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import tell_decoder_start
from uniattn_pl.file_contents import mistaken_content, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Vocabularies of every kind of tokenizer in transformers; some (bytes, characters) have a config only.
VOCABULARIES = ("tokenizer.json", "tokenizer_config.json", "tekken.json", "vocab.*", "*.model", "*.tiktoken")
SMALL_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_tokenizer(location: str, *, trust_remote_code: bool, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub id, with `AutoTokenizer.from_pretrained`'s options.

    Raises:
        UserError: the folder has none, one of its files is broken or something else under its name, or the tokenizer
            knows no tokens; or the model's decoder begins with a token that its config does not name.
        Exception: whatever transformers says to files that are well formed and wrong.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(location)
    if folder.is_dir():
        _check_files(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location, trust_remote_code=trust_remote_code, **options
        )
    except Exception:
        if (folder / "tokenizer.json").exists():  # of many megabytes, so read twice only where it may be the reason
            read_json_object(folder / "tokenizer.json")
        raise
    # Without its vocabulary transformers builds some tokenizers empty; to them every text is nothing.
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise UserError(f"the tokenizer of '{location}' has no tokens; the file of its vocabulary is missing.")
    if not folder.is_dir() or (folder / "config.json").is_file():
        config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **options)
        check_vocabulary(tokenizer, getattr(config.get_text_config(), "vocab_size", None), location)
        tell_decoder_start(tokenizer, config)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, source: str) -> None:
    """Check that a model has an embedding of every token that a text, its end or its padding can become.

    Special tokens that are in no such place (an image's, of Gemma-3's text models) may lie beyond.

    Raises:
        UserError: naming the first token beyond.
    """
    if vocab_size is None:
        return
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})  # Mistral's own tokenizers have none
    hidden = {index for index, token in added.items() if token.special}
    used = {index: str(token) for token, index in tokenizer.get_vocab().items() if index not in hidden}
    for name in ("bos_token", "eos_token", "pad_token"):
        if (index := getattr(tokenizer, f"{name}_id")) is not None:
            used[index] = f"{getattr(tokenizer, name)} ({name})"
    beyond = sorted(index for index in used if index >= vocab_size)
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise UserError(
            f"the tokenizer of '{source}' has {used[beyond[0]]} as token {beyond[0]}{more}, but the model's embedding "
            f"has {vocab_size} rows (tokens 0 to {vocab_size - 1}): the token was added without "
            "`model.resize_token_embeddings(len(tokenizer))`, or the tokenizer is another model's."
        )


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
