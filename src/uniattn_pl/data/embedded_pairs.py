"""The embedded pairs: embedded rows with a right and a wrong answer, made and not downloaded.

Both answers give the same reason, so that what tells them apart is which option they name. No question is in two pairs,
and like the rows they are the same everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from uniattn_pl.data.embedded import embedded_rows

PAIRS = 2_000
_SEED = 20_260_311


def embedded_pairs() -> Iterator[dict[str, Any]]:
    """Yield the pairs as rows with `prompt`, `chosen` and `rejected`; `chosen` begins with one of `choices`."""
    rng = random.Random(_SEED)
    for row in embedded_rows(PAIRS):
        answer = str(row.answer)
        others = [choice for choice in row.choices if choice != answer]
        wrong = others[int(rng.random() * len(others))]
        yield {
            "prompt": f"{row.instruction}\n\n{row.input}",
            "chosen": row.output,
            "rejected": wrong + row.output.removeprefix(answer),
            "answer": answer,
            "choices": list(row.choices),
        }
