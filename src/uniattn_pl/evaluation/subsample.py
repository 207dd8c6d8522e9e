"""Which rows of a task are scored when not all are: seeded, and never simply the first ones."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

MOST_ANSWERS = 20  # more distinct answers than this are texts, not classes


def choose_rows(count: int, limit: int | None, *, seed: int, answers: Sequence[Hashable] | None = None) -> list[int]:
    """Return the indices of the rows to score, ascending.

    Official splits are often sorted (PubMedQA's test split by answer), so that their first rows say nothing.

    Args:
        count: rows there are.
        limit: rows wanted; None: all.
        seed: of the choice.
        answers: the right answer of each row, to keep their proportions; None: any rows.
    """
    if limit is None or limit >= count:
        return list(range(count))
    generator = random.Random(seed)
    if answers is None or len(set(answers)) > MOST_ANSWERS:
        return sorted(generator.sample(range(count), limit))
    by_answer: dict[Hashable, list[int]] = {}
    for row, answer in enumerate(answers):
        by_answer.setdefault(answer, []).append(row)
    sizes = _proportional_sizes([len(rows) for rows in by_answer.values()], limit)
    chosen = (generator.sample(rows, size) for rows, size in zip(by_answer.values(), sizes, strict=True))
    return sorted(row for rows in chosen for row in rows)


def _proportional_sizes(counts: list[int], limit: int) -> list[int]:
    """Split `limit` in proportion to `counts`: rounded down, and what is left to the largest remainders."""
    total = sum(counts)
    sizes = [count * limit // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] * limit % total, reverse=True)
    for index in by_remainder[: limit - sum(sizes)]:
        sizes[index] += 1
    return sizes
