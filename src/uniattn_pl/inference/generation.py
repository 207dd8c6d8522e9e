"""Text from a run's model, with the prompt it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError


def generate(
    folder: Path,
    prompts: list[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    instruction: bool = False,
    quantization: str | None = None,
    h2o_retain_rate: float | None = None,
    compiled: bool = False,
) -> list[str]:
    """Continue each prompt with the model in `folder`, one after the other.

    Args:
        folder: a transformers model folder with its tokenizer, converted or stock.
        prompts: texts to continue.
        max_new_tokens: tokens generated at most.
        temperature: 0 takes the likeliest token every time, above 0 draws from the whole distribution.
        seed: of what is drawn; None: another text every time.
        instruction: wrap each prompt in the training prompt (paper Appendix A) as an instruction without input.
        quantization: None, or "8bit" or "4bit" weights.
        h2o_retain_rate: fraction of each prompt's cache that is kept while decoding; None: all of it.
        compiled: decode by a compiled step over a static cache (a CUDA graph on a card); not with H2O.

    Raises:
        UserError: a prompt without a token, or as `load_folder`.
    """
    import torch

    from uniattn_pl.inference.compiled_decoding import check_compilable, static_cache, step_config
    from uniattn_pl.modeling.caches.h2o_cache import H2OCache
    from uniattn_pl.modeling.conversion.convert import unmodified_copy
    from uniattn_pl.modeling.decoding import decoding, own_defaults
    from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer

    tokenizer: Any = load_folder_tokenizer(folder)
    encoded = _encoded(prompts, tokenizer, instruction=instruction)
    model: Any = load_folder(folder, quantization=quantization)
    _tell_positions(model, max(map(len, encoded)), max_new_tokens)
    if h2o_retain_rate is not None and not hasattr(model.get_decoder(), "layer_plan"):
        model = unmodified_copy(model)
    settings = decoding(model, tokenizer, temperature=temperature, max_new_tokens=max_new_tokens)
    fixed = None
    if compiled:
        check_compilable(model)
        settings.compile_config = step_config(model.device)
        fixed = static_cache(
            model, max(map(len, encoded)) + max_new_tokens
        )  # of one size, so that one graph serves all
    if seed is not None:
        torch.manual_seed(seed)
    texts = []
    for ids in encoded:
        inputs = torch.tensor([ids], device=model.device)
        cache: dict[str, Any] = {}
        if h2o_retain_rate is not None:
            cache = {"past_key_values": H2OCache(model, h2o_retain_rate)}
        with torch.inference_mode(), own_defaults(model, tokenizer):
            if fixed is not None:
                fixed.reset()
                cache = {"past_key_values": fixed}
            output = model.generate(inputs, generation_config=settings, attention_mask=torch.ones_like(inputs), **cache)
        texts.append(str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)))
    return texts


def _encoded(prompts: list[str], tokenizer: Any, *, instruction: bool) -> list[list[int]]:
    """The ids of every prompt, as training makes them."""
    from uniattn_pl.data.prompt_ids import prompt_ids, special_text
    from uniattn_pl.data.prompts import format_prompt
    from uniattn_pl.display.notices import tell_once

    special = special_text(tokenizer)
    encoded = []
    for prompt in prompts:
        found = special.search(prompt)
        if found:
            tell_once(f"'{found[0]}' in a prompt is text, as in training rows, and not this model's special token.")
        ids = prompt_ids(tokenizer, format_prompt(instruction=prompt, input="") if instruction else prompt)
        if not ids:
            raise UserError(f"--prompt {prompt!r} has no token, and this model's tokenizer begins a text with none.")
        encoded.append(ids)
    return encoded


def _tell_positions(model: Any, prompt_tokens: int, new_tokens: int) -> None:
    from uniattn_pl.display.notices import tell_once
    from uniattn_pl.families.positions import positions_of

    positions = positions_of(model.config)
    if positions is not None and prompt_tokens + new_tokens > positions:
        tell_once(
            f"{prompt_tokens} tokens of a prompt and up to {new_tokens} new ones are more than the {positions} "
            "positions of this model, which was not trained on what lies beyond."
        )
