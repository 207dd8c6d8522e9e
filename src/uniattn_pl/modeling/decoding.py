"""How tokens are chosen: as the caller says, and by nothing that lies in the model's generation config.

Checkpoints come with defaults for chat (Qwen2.5: a repetition penalty of 1.05, top-k 20), which `generate()` mixes in
wherever a caller leaves something open: greedy decoding is then not greedy. Only which tokens begin, end and pad a text
is the model's to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def decoding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 0.0, **limits: Any
) -> GenerationConfig:
    """The config under which every token is the likeliest or, at a `temperature`, drawn from the whole distribution.

    A text ends with any token that the model's own config or its tokenizer names as its end.

    Args:
        limits: such as `max_new_tokens`.
    """
    own, ends = model.generation_config, ends_of(model, tokenizer)
    pad = next((token for token in (tokenizer.pad_token_id, own.pad_token_id, *ends) if token is not None), None)
    chosen = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature, "top_k": 0}
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **chosen,
        **limits,
    )


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text, as the model's own configs and its tokenizer name them."""
    own = model.generation_config.eos_token_id
    named = (own, getattr(model.config, "eos_token_id", None), tokenizer.eos_token_id)
    ends = [token for ids in named for token in (ids if isinstance(ids, list) else [ids]) if token is not None]
    return list(dict.fromkeys(ends))


@contextmanager
def own_defaults(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Within, what a caller of `model.generate()` leaves open is greedy decoding, not what the checkpoint came with.

    A config that is passed to `generate()` is not enough: what it leaves open is filled in from the model's.
    """
    former, model.generation_config = model.generation_config, decoding(model, tokenizer)
    try:
        yield
    finally:
        model.generation_config = former
