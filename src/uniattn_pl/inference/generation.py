"""Text from a run's model, with the prompt it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def generate(
    folder: Path,
    prompts: list[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    instruction: bool = False,
    quantization: str | None = None,
    h2o_retain_rate: float | None = None,
) -> list[str]:
    """Continue each prompt with the model in `folder`, one after the other.

    Args:
        folder: a transformers model folder with its tokenizer, converted or stock.
        prompts: texts to continue.
        max_new_tokens: tokens generated at most.
        temperature: 0 decodes greedily, above 0 samples.
        instruction: wrap each prompt in the training prompt (paper Appendix A) as an instruction without input.
        quantization: None, or "8bit" or "4bit" weights.
        h2o_retain_rate: fraction of each prompt's cache that is kept while decoding; None: all of it.
    """
    import torch

    from uniattn_pl.data.prompts import format_prompt
    from uniattn_pl.modeling.caches.h2o_cache import H2OCache
    from uniattn_pl.modeling.conversion.convert import unmodified_copy
    from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer

    model: Any = load_folder(folder, quantization=quantization)
    if h2o_retain_rate is not None and not hasattr(model.get_decoder(), "layer_plan"):
        model = unmodified_copy(model)
    tokenizer: Any = load_folder_tokenizer(folder)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    texts = []
    for prompt in prompts:
        text = format_prompt(instruction=prompt, input="") if instruction else prompt
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        if h2o_retain_rate is not None:
            sampling["past_key_values"] = H2OCache(model, h2o_retain_rate)
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
            )
        texts.append(str(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)))
    return texts
