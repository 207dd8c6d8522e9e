"""Encoder-decoder models: what sets them apart from decoders alone, asked here and nowhere else.

Such a model reads a prompt in its encoder and writes the response in its decoder, which begins with a token of its own
and looks at the encoder's states by cross-attention. What a plan changes is the decoder's self-attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_of, stock_model_type

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DECODER_START = "uniattn_decoder_start"
"""Attribute of a tokenizer whose model is an encoder-decoder: the token that its decoder begins with."""


def has_encoder(config: PreTrainedConfig | type[PreTrainedConfig]) -> bool:
    """Whether models of this config, or by default of this kind of config, have an encoder beside their decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def has_encoder_in(folder: Path) -> bool:
    """The same of the model in a folder, if there is one."""
    config = folder / "config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("is_encoder_decoder"))


def auto_model(config: PreTrainedConfig | type[PreTrainedConfig]) -> Any:
    """The Auto class that builds the language model of a config, or of a kind of config, and what it is wrapped in."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    if sees_images(config):
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if has_encoder(config) else AutoModelForCausalLM


def sees_images(config: PreTrainedConfig | type[PreTrainedConfig]) -> bool:
    """Whether a model of this config is a text model with a tower for images beside it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    known = stock_model_type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known and {"text_config", "vision_config"} <= config.sub_configs.keys()


def language_model(model_type: str) -> type | None:
    """The class of the language models of a stock model type, as `auto_model` builds them; None where there is none."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    if model_type not in CONFIG_MAPPING:
        return None
    config = CONFIG_MAPPING[model_type]
    models: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if has_encoder(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if sees_images(config):
        models = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    found: type | None = models.get(config, None)
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


def decoder_config(model: Any) -> Any:
    """The config of a model's decoder, or of its text model: T5's decoder has a copy of the model's."""
    return decoder_of(model).config if has_encoder(model.config) else model.config.get_text_config()


def reading_config(config: PreTrainedConfig) -> Any:
    """The part of a converted model's config that says how maps are read: `reuse_mode`, `map_memory_mib`."""
    return config if has_encoder(config) else config.get_text_config()


def reading(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """What a model is called with to read a text [B, L] and say what follows: an encoder reads it, too."""
    inputs: dict[str, Any] = {"input_ids": tokens}
    if has_encoder(model.config):  # which runs by itself: some (Switch) hand `use_cache` on to it, and refuse it
        inputs = {"encoder_outputs": model.get_encoder()(input_ids=tokens), "decoder_input_ids": tokens}
    return {**inputs, **last_logits(model)}


def last_logits(model: Any) -> dict[str, int]:
    """How a model is asked for the logits of the last token alone; T5 and BART compute all whatever is asked for."""
    return {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}


def decoder_inputs(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a decoder is called with by itself for a batch, whose source an encoder reads here."""
    if not has_encoder(model.config):
        return {name: batch[name] for name in ("input_ids", "attention_mask")}
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {
        "input_ids": batch["decoder_input_ids"],
        "attention_mask": batch["decoder_attention_mask"],
        "encoder_hidden_states": model.get_encoder()(**source).last_hidden_state,  # [B, S, d]
        "encoder_attention_mask": batch["attention_mask"],
    }


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
        raise UserError(decoders_alone(what, stock_model_type(config)))


def decoders_alone(what: str, model_type: str) -> str:
    """What to tell where an encoder-decoder model is given to what was made for decoders."""
    return f"{what} is made for decoders alone; a {model_type} model has an encoder beside it."
