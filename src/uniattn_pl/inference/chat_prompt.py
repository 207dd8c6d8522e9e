"""A conversation as the token ids that the model's own chat template makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from uniattn_pl.config.loaded_config import flatten
from uniattn_pl.config.sections.data_section import PAPER
from uniattn_pl.data.chat_template import TEMPLATE_RAISES
from uniattn_pl.data.prompt_ids import special_text, suffix_ids
from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import decoder_start
from uniattn_pl.resilience.manifest import TEMPLATE_KEY, Manifest
from uniattn_pl.run_folder import run_of


def check_chat(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise UserError unless the tokenizer of the model `name` has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"'{name}' has no chat template, so nothing says how a conversation is written for it; give it prompts "
            "as text."
        )


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the ids of a conversation, up to where the model's answer begins, as in training.

    The text of a special token in a message stays text, where the tokenizer can keep it so.

    Args:
        messages: `role` and `content` of each.

    Raises:
        UserError: the template refuses such a conversation (two messages of one role, a system prompt).
    """
    said, special = [dict(message) for message in messages], special_text(tokenizer)
    try:
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)  # type: ignore[arg-type]
        encoded = tokenizer(str(text), add_special_tokens=False, verbose=False)
    except TEMPLATE_RAISES as error:
        raise UserError(f"the model's chat template refuses this conversation: {error}") from error
    ids: list[int] = list(encoded["input_ids"])  # type: ignore[arg-type]
    if any(special.search(str(message.get("content"))) for message in said):
        ids = _with_special_text(tokenizer, said) or ids
    return ids if decoder_start(tokenizer) is None else ids + suffix_ids(tokenizer)


def _with_special_text(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int] | None:
    options = {"add_generation_prompt": True, "sanitize_control_tokens": True, "return_dict": False}
    try:
        return list(tokenizer.apply_chat_template(messages, **options))
    except TEMPLATE_RAISES:  # Mistral's own tokenizers; one that makes the token of plain text
        return None


def learned_template(folder: Path) -> str:
    """What the rows of a model folder's run were put into (`data.template`); the paper's prompt if nothing tells."""
    run = run_of(folder)
    manifest = None if run is None else Manifest.read(run)
    return PAPER if manifest is None else str(flatten(manifest.config).get(TEMPLATE_KEY, PAPER))
