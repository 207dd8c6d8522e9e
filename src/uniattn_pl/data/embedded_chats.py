"""The embedded chats: embedded rows as conversations of several rounds, made and not downloaded.

A question is answered in a word and the reason given when it is asked for; every other chat goes on with another
patient. Most begin with a system turn. No question is in two chats, and like the rows they are the same everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from uniattn_pl.data.embedded import embedded_rows
from uniattn_pl.data.rows import Row

CHATS = 2_000
_SEED = 20_260_114
_SYSTEM = (
    "You help at a clinic. Name one of the options; explain it when you are asked.",
    "Answer in a word, and give your reason when somebody wants it.",
    "",
)
_WHY = ("Why?", "What is your reason?", "How do you know?", "Explain, please.")
_NEXT = ("Another patient.", "The next one.", "Thank you. And now:")


def embedded_chats() -> Iterator[dict[str, Any]]:
    """Yield the chats as rows with `messages`, whose first answer is one of `choices`."""
    rng = random.Random(_SEED)
    rows = embedded_rows(2 * CHATS)
    for number, (row, other) in enumerate(zip(rows[:CHATS], rows[CHATS:], strict=True)):
        answer = str(row.answer)
        system, why, goes_on = (pool[int(rng.random() * len(pool))] for pool in (_SYSTEM, _WHY, _NEXT))
        said = [("system", system)] if system else []
        said += [("user", _question(row)), ("assistant", f"{answer}.")]
        said += [("user", why), ("assistant", row.output.removeprefix(f"{answer}. "))]
        if number % 2:
            said += [("user", f"{goes_on} {_question(other)}"), ("assistant", f"{other.answer}.")]
        messages = [{"role": role, "content": content} for role, content in said]
        yield {"messages": messages, "answer": answer, "choices": list(row.choices)}


def _question(row: Row) -> str:
    return f"{row.instruction}\n\n{row.input}"
