"""One tiny encoder-decoder model of random weights per family, and what it is called with."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

ENCODER_LAYERS, DECODER_LAYERS, VOCABULARY, WINDOW = 3, 6, 64, 6
# tied, a random model says one token for ever
TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
_GEMMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": WINDOW,
    "attn_logit_softcapping": 2.0,
    "initializer_range": 0.2,
    **TOKENS,
}
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": ENCODER_LAYERS,
    "decoder_layers": DECODER_LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "init_std": 0.05,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **TOKENS,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": DECODER_LAYERS,  # transformers' generate() counts these for the decoder's cache
        "num_decoder_layers": DECODER_LAYERS,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "decoder_start_token_id": 0,
        **TOKENS,
    },
    "t5gemma": {
        "vocab_size": VOCABULARY,
        "encoder": {**_GEMMA, "num_hidden_layers": ENCODER_LAYERS, "hidden_size": 24},
        "decoder": {
            **_GEMMA,
            "num_hidden_layers": DECODER_LAYERS,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
        **TOKENS,
    },
    "bart": _BART,
}
FAMILIES = tuple(SPECIAL)


@lru_cache
def _built(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SPECIAL[family])
    backend = "eager" if family == "t5gemma" else "sdpa"
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=backend).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    if family == "t5":  # else what it says does not depend on what it said
        model.shared.weight.data.mul_(0.5)
    model.generation_config.eos_token_id = None
    return model


def stock_seq2seq(family: str) -> PreTrainedModel:
    """The family's tiny model, for the caller alone."""
    return copy.deepcopy(_built(family))


def seq2seq_batch(sources: tuple[int, ...], texts: tuple[int, ...], *, left: bool = False) -> dict[str, torch.Tensor]:
    """Random sources and decoder texts of these lengths, padded on the right, or on the left, to one batch."""
    generator = torch.Generator().manual_seed(1)
    batch = {}
    for names, lengths in (
        (("input_ids", "attention_mask"), sources),
        (("decoder_input_ids", "decoder_attention_mask"), texts),
    ):
        ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            mask[row, -length if left else 0 : None if left else length] = 1
        batch |= dict(zip(names, (ids * mask, mask), strict=True))
    return batch
