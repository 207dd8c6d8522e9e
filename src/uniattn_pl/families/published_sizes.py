"""Sizes of models as their makers published them: plans and costs need no weights, no hub token, no conversion."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedConfig

LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
LLAMA_3_1_8B: dict[str, Any] = {
    **LLAMA_2_7B,
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
LLAMA_3_1_70B: dict[str, Any] = {
    **LLAMA_3_1_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
MISTRAL_7B: dict[str, Any] = {
    **LLAMA_3_1_8B,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
GEMMA_2_9B: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,  # of every other layer, the bottom one first
}
SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
GEMMA_3_270M: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "sliding_window": 512,  # of five layers in six, the bottom one first
    "tie_word_embeddings": True,
}
PUBLISHED_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": ("LlamaConfig", LLAMA_2_7B),
    "meta-llama/Llama-3.1-8B": ("LlamaConfig", LLAMA_3_1_8B),
    "meta-llama/Llama-3.1-70B": ("LlamaConfig", LLAMA_3_1_70B),
    "mistralai/Mistral-7B-v0.1": ("MistralConfig", MISTRAL_7B),
    "google/gemma-2-9b": ("Gemma2Config", GEMMA_2_9B),
    "smollm2-135m": ("LlamaConfig", SMOLLM2_135M),
    "gemma3-270m": ("Gemma3TextConfig", GEMMA_3_270M),
}
"""Hub id or name in `MODELS` -> configuration class of transformers, and the arguments that decide the shape."""


def published_config(source: str) -> PreTrainedConfig | None:
    """A config with the shape of a model, not to load weights with; None for all but those of `PUBLISHED_SIZES`."""
    if source not in PUBLISHED_SIZES:
        return None
    name, sizes = PUBLISHED_SIZES[source]
    kind: type[PreTrainedConfig] = getattr(transformers, name)
    return kind(**sizes)
