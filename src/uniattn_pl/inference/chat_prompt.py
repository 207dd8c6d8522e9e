"""A conversation as the token ids that the model's own chat template makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from uniattn_pl.errors import UserError


def check_chat(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise UserError unless the tokenizer of the model `name` has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"'{name}' has no chat template, so nothing says how a conversation is written for it; give it prompts "
            "as text."
        )


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the ids of a conversation, up to where the model's answer begins.

    Args:
        messages: `role` and `content` of each.

    Raises:
        UserError: the template refuses such a conversation (two messages of one role, a system prompt).
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise UserError(f"the model's chat template refuses this conversation: {error}") from error
    encoded = tokenizer(str(text), add_special_tokens=False, verbose=False)
    return list(encoded["input_ids"])  # type: ignore[arg-type]
