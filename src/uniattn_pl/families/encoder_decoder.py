"""Encoder-decoder models: what sets them apart from decoders alone, asked here and nowhere else.

Such a model reads a prompt in its encoder and writes the response in its decoder, which begins with a token of its own
and looks at the encoder's states by cross-attention. What a plan changes is the decoder's self-attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DECODER_START = "uniattn_decoder_start"
"""Attribute of a tokenizer whose model is an encoder-decoder: the token that its decoder begins with."""


def has_encoder(config: PreTrainedConfig) -> bool:
    """Whether a model of this config has an encoder beside its decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def auto_model(config: PreTrainedConfig) -> Any:
    """The Auto class that builds the language model of a config, and what it is wrapped in."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    if sees_images(config):
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if has_encoder(config) else AutoModelForCausalLM


def sees_images(config: PreTrainedConfig) -> bool:
    """Whether a model of this config is a text model with a tower for images beside it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from uniattn_pl.families.inspection import stock_model_type

    known = stock_model_type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known and {"text_config", "vision_config"} <= config.sub_configs.keys()


def language_model(model_type: str) -> type | None:
    """The class of the language models of a stock model type, as `auto_model` builds them; None where there is none."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    if model_type not in CONFIG_MAPPING:
        return None
    config = AutoConfig.for_model(model_type)
    models: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if has_encoder(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if sees_images(config):
        models = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    found: type | None = models.get(type(config), None)
    return found


def tell_decoder_start(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Let a tokenizer know the token that its model's decoder begins with, which stands in the model's config alone.

    Raises:
        UserError: the config names none.
    """
    if not has_encoder(config):
        return
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:  # T5Gemma begins with its decoder's BOS
        start = getattr(getattr(config, "decoder", None), "bos_token_id", None)
    if start is None:
        raise UserError(
            f"the config of this {config.model_type} model has no decoder_start_token_id, with which its decoder "
            "begins every text (mBART: the token of the language to write); set it in config.json."
        )
    setattr(tokenizer, DECODER_START, int(start))


def decoder_start(tokenizer: Any) -> int | None:
    """The token that the decoder of a tokenizer's model begins with; None: the model has no encoder."""
    start: int | None = getattr(tokenizer, DECODER_START, None)
    return start


def reading(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """What a model is called with to read a text [B, L] and say what follows: an encoder reads it, too."""
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens} if has_encoder(model.config) else {"input_ids": tokens}
    return {**inputs, **last_logits(model)}


def last_logits(model: Any) -> dict[str, int]:
    """How a model is asked for the logits of the last token alone; T5 and BART compute all whatever is asked for."""
    return {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}


def beside_encoder(model: PreTrainedModel, length: int) -> dict[str, torch.Tensor]:
    """What a decoder is called with besides its own inputs, where it is run by itself: states of an encoder [1, L, d].

    Zeros; nothing for a decoder alone.
    """
    import torch

    if not has_encoder(model.config):
        return {}
    config = getattr(model.config, "encoder", model.config)
    return {"encoder_hidden_states": torch.zeros(1, length, config.hidden_size, device=model.device, dtype=model.dtype)}


def without_encoder(config: PreTrainedConfig, what: str) -> None:
    """Check that a model is a decoder alone, for which `what` was made.

    Raises:
        UserError: it has an encoder.
    """
    if has_encoder(config):
        raise UserError(decoders_alone(what, config.model_type))


def decoders_alone(what: str, model_type: str) -> str:
    """What to tell where an encoder-decoder model is given to what was made for decoders."""
    return f"{what} is made for decoders alone; a {model_type} model has an encoder beside it."
