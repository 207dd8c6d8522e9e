"""Preferences as public data tells them: two responses to one prompt, the better one first.

| keys of a row | what they hold |
|---|---|
| `prompt`, `chosen`, `rejected` | texts, or turns, each |
| `chosen`, `rejected` | two whole conversations; what they have in common at their beginning is the prompt |

A text as `prompt` beside two whole conversations says again what these begin with, and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from uniattn_pl.data.chat_turns import ASSISTANT, USER, Turn, read_turns
from uniattn_pl.data.chats import PROMPT, RawRow, read_side
from uniattn_pl.data.row_problems import BadRow, nearest_key

CHOSEN, REJECTED = SIDES = ("chosen", "rejected")


class PreferenceTurns(NamedTuple):
    """Both conversations, and the number of the first turn that is a response; before it they are the same."""

    chosen: list[Turn]
    rejected: list[Turn]
    first: int


def read_preference(raw: RawRow, roles: Mapping[str, str]) -> PreferenceTurns | None:
    """Return the conversations of a row, or None where both responses are the same.

    Raises:
        BadRow: a key is missing, a value is neither text nor turns, there is no prompt, or a response is not the
            assistant's.
    """
    for side in SIDES:
        if side not in raw:
            keys = set(raw) - {PROMPT, *SIDES}
            needs = "a row of format 'preference' needs prompt, chosen, rejected, or chosen, rejected"
            raise BadRow(f"the key '{side}' is missing; {needs}" + nearest_key(keys, (side,)))
    if raw[CHOSEN] == raw[REJECTED]:
        return None
    whole = _whole_conversations(raw, roles)
    if whole is None:
        if PROMPT not in raw:
            raise BadRow(_no_prompt(raw))
        asked = read_side(raw, PROMPT, USER, roles)
        chosen, rejected = (asked + read_side(raw, side, ASSISTANT, roles) for side in SIDES)
        whole = PreferenceTurns(chosen, rejected, len(asked))
    for side, turns in zip(SIDES, whole[:2], strict=True):
        if len(turns) == whole.first or turns[whole.first].message["role"] != ASSISTANT:
            raise BadRow(f"'{side}' has no turn of the assistant behind the prompt; what is compared are its responses")
    return whole


def _whole_conversations(raw: RawRow, roles: Mapping[str, str]) -> PreferenceTurns | None:
    """Both sides with the prompt that they begin with; None where they begin with none, or the prompt is apart."""
    if isinstance(raw.get(PROMPT), list) or not all(isinstance(raw[side], list) for side in SIDES):
        return None
    chosen, rejected = (read_turns(raw[side], side, roles) for side in SIDES)
    same = [one.message == other.message for one, other in zip(chosen, rejected, strict=False)]
    first = same.index(False) if False in same else len(same)
    return PreferenceTurns(chosen, rejected, first) if first else None


def _no_prompt(raw: RawRow) -> str:
    if all(isinstance(raw[side], list) for side in SIDES):
        return "'chosen' and 'rejected' begin with different turns, and there is no 'prompt' that both respond to"
    nearest = nearest_key(set(raw) - {*SIDES}, (PROMPT,))
    return "the key 'prompt' is missing; only 'chosen' and 'rejected' that are lists of turns do without it" + nearest
