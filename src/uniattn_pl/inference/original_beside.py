"""The same prompts through the original and the converted model: what each says, how fast, and what it keeps.

The bytes of a cache are those of all tokens of a text, which may differ where one model ends it sooner.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from uniattn_pl.display.text_table import bytes_text, print_table

if TYPE_CHECKING:
    from uniattn_pl.inference.generation import TextModel
    from uniattn_pl.inference.token_choice import Sampling

COLUMNS = ("model", "text", "tokens", "tokens/s", "KV cache")


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
            tokens = str(len(ids) + cost.tokens)
            rows.append((label, text.strip(), tokens, f"{cost.tokens_per_s:.1f}", bytes_text(cost.cache_bytes)))
        if sys.stdout.isatty():
            print_table(prompt, COLUMNS, rows)
        else:
            print(f"prompt: {prompt}")
            for label, text, tokens, speed, size in rows:
                print(f"{label} ({speed} tokens/s, {size} of cache for {tokens} tokens): {text}")
