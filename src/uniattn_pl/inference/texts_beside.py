"""The same questions to two models: what each says, how fast, and what it keeps.

The bytes of a cache are those of all tokens of a text, which may differ where one model ends it sooner.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniattn_pl.display.text_table import bytes_text, print_table

if TYPE_CHECKING:
    from uniattn_pl.inference.generation import TextModel
    from uniattn_pl.inference.token_choice import Sampling

COLUMNS = ("model", "text", "tokens", "tokens/s", "KV cache")
EXPECTED = "expected"


@dataclass(frozen=True)
class AskedText:
    """What a model is asked.

    Attributes:
        shown: for people.
        ids: for the model.
        expected: how the row goes on whose question this is; None: it is of no row.
    """

    shown: str
    ids: list[int]
    expected: str | None = None


def print_beside(
    models: Mapping[str, tuple[TextModel, Sequence[AskedText]]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> None:
    """Print a table for each question; lines where the output goes to a file or a pipe.

    Args:
        models: label -> model, and the questions in its own tokens.
    """
    for model, asked in models.values():
        "".join(model.stream(asked[0].ids, sampling, max_new_tokens=1))  # what a first forward needs is not counted
    questions = next(iter(models.values()))[1]
    for number, question in enumerate(questions):
        rows = []
        for label, (model, asked) in models.items():
            ids = asked[number].ids
            text = "".join(model.stream(ids, sampling, max_new_tokens=max_new_tokens, stop=stop, number=number))
            cost = model.cost
            tokens = str(len(ids) + cost.tokens)
            rows.append((label, text.strip(), tokens, f"{cost.tokens_per_s:.1f}", bytes_text(cost.cache_bytes)))
        if sys.stdout.isatty():
            expected = [] if question.expected is None else [(EXPECTED, question.expected, "", "", "")]
            print_table(question.shown, COLUMNS, rows + expected)
            continue
        print(f"prompt: {question.shown}")
        for label, text, tokens, speed, size in rows:
            print(f"{label} ({speed} tokens/s, {size} of cache for {tokens} tokens): {text}")
        if question.expected is not None:
            print(f"{EXPECTED}: {question.expected}")
