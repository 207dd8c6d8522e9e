"""The same prompts through the original and the converted model: what each says, how fast, and what it keeps."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from uniattn_pl.display.text_table import bytes_text, print_table

if TYPE_CHECKING:
    from uniattn_pl.inference.generation import TextModel
    from uniattn_pl.inference.token_choice import Sampling

COLUMNS = ("model", "text", "tokens/s", "KV cache")


def print_beside(
    models: Mapping[str, TextModel],
    prompts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> None:
    """Print a table for each prompt; lines where the output goes to a file or a pipe.

    Args:
        models: label -> model.
        prompts: as they are shown.
        encoded: their tokens.
    """
    for model in models.values():
        "".join(model.stream(encoded[0], sampling, max_new_tokens=1))  # what a first forward needs is not counted
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        rows = []
        for label, model in models.items():
            text = "".join(model.stream(ids, sampling, max_new_tokens=max_new_tokens, stop=stop, number=number))
            cost = model.cost
            rows.append((label, text.strip(), f"{cost.tokens_per_s:.1f}", bytes_text(cost.cache_bytes)))
        if sys.stdout.isatty():
            print_table(prompt, COLUMNS, rows)
        else:
            print(f"prompt: {prompt}")
            print(
                "\n".join(f"{label} ({speed} tokens/s, {size} of cache): {text}" for label, text, speed, size in rows)
            )
