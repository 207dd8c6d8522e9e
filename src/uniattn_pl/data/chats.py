"""Conversations of any length, as a chat template takes them: messages, tools, and which turns are learned.

| keys of a row | what it is |
|---|---|
| `messages`, `conversations`, `conversation`, `dialog`, `dialogue`, `turns` | the turns, see `data/chat_turns.py` |
| `prompt` and `completion` (or `response`) | a text or turns each; only the completion is learned |
| `system` | a system turn in front, where the turns have none |
| `tools`, `functions` | what may be called: a list, or a string of JSON |

An assistant turn with `weight: 0` (OpenAI) or `train: false` is not learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniattn_pl.data.chat_turns import ASSISTANT, SYSTEM, USER, Message, Turn, read_turns
from uniattn_pl.data.row_problems import BadRow, kind_of, nearest_key

RawRow = Mapping[str, Any]
TURN_KEYS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")
PROMPT, COMPLETIONS = "prompt", ("completion", "response")


@dataclass(frozen=True)
class Chat:
    """A conversation.

    Args:
        messages: `role` and `content` of each turn, and `tool_calls` of those that call.
        learned: which of them carry the loss; assistant turns all.
        tools: what may be called, as JSON schemas; None: nothing.
    """

    messages: list[Message]
    learned: tuple[int, ...]
    tools: list[Message] | None = None

    @classmethod
    def one_round(cls, asked: str, answer: str) -> Chat:
        """A question and its answer."""
        return cls([{"role": USER, "content": asked}, {"role": ASSISTANT, "content": answer}], (1,))

    @classmethod
    def read(cls, text: str) -> Chat:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(data["messages"], tuple(data["learned"]), data.get("tools"))

    def to_json(self) -> str:
        """All of it as one text, in which a row keeps it.

        Raises:
            BadRow: a value that JSON does not have, or of too many levels.
        """
        data: dict[str, Any] = {"messages": self.messages, "learned": self.learned}
        try:
            return json.dumps(data | ({"tools": self.tools} if self.tools else {}), ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRow(f"its turns hold what cannot be written as JSON ({error})") from None

    @property
    def asked(self) -> list[Message]:
        """What precedes the last turn that is learned."""
        return self.messages[: self.learned[-1]]

    def until(self, message: int) -> Chat:
        """Its beginning, up to and with a message."""
        learned = tuple(number for number in self.learned if number <= message)
        return Chat(self.messages[: message + 1], learned, self.tools)


def read_chat(raw: RawRow, roles: Mapping[str, str]) -> Chat | None:
    """Return the conversation of a row, or None where the assistant says nothing that is learned.

    What follows the assistant's last turn is left out: nothing is learned of it.

    Raises:
        BadRow: as `read_turns`; no key of a conversation, or tools that are none.
    """
    return chat_of(raw, *_turns(raw, roles))


def chat_of(raw: RawRow, turns: Sequence[Turn], first: int) -> Chat | None:
    """As `read_chat`, of a row's turns.

    Args:
        raw: may have tools and a system turn besides.
        first: the number of the first turn that may be learned.
    """
    messages = [turn.message for turn in turns]
    spoken = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
    learned = tuple(number for number in spoken if number >= first and turns[number].learned)
    says = any(messages[number]["content"].strip() or messages[number].get("tool_calls") for number in learned)
    if not says:
        return None
    chat = Chat(messages[: spoken[-1] + 1], learned, _tools(raw))
    system = raw.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != SYSTEM:
        moved = tuple(number + 1 for number in chat.learned)
        return Chat([{"role": SYSTEM, "content": system}, *chat.messages], moved, chat.tools)
    return chat


def read_one_round(raw: RawRow, roles: Mapping[str, str]) -> tuple[str, str] | None:
    """Return question and answer of a conversation that is just that, with text on both sides, else None.

    This is the paper's filter (Appendix A: "only 1 round of conversation"). A leading system turn is *not* one round
    here: the paper's prompt has no place for it, and leaving it out would train on an answer to another question.

    Raises:
        BadRow: as `read_chat`.
    """
    return one_round_of(_turns(raw, roles)[0])


def one_round_of(turns: Sequence[Turn]) -> tuple[str, str] | None:
    """As `read_one_round`, of turns."""
    if [turn.speaker for turn in turns] != [USER, ASSISTANT]:
        return None
    asked, answer = (turn.message["content"] for turn in turns)
    return (asked, answer) if asked.strip() and answer.strip() else None


def _turns(raw: RawRow, roles: Mapping[str, str]) -> tuple[list[Turn], int]:
    """The turns of a row, and the number of the first one that may be learned."""
    if PROMPT in raw and not any(key in raw for key in TURN_KEYS):
        return _pair(raw, roles)
    key = next((key for key in TURN_KEYS if key in raw), None)
    if key is None:
        expected = f"it must hold the turns (or {', '.join(TURN_KEYS[1:])}, or prompt and completion)"
        raise BadRow(f"the key '{TURN_KEYS[0]}' is missing; {expected}" + nearest_key(raw, TURN_KEYS[:2]))
    return read_turns(raw[key], key, roles), 0


def _pair(raw: RawRow, roles: Mapping[str, str]) -> tuple[list[Turn], int]:
    key = next((key for key in COMPLETIONS if key in raw), None)
    if key is None:
        nearest = nearest_key(set(raw) - {PROMPT}, COMPLETIONS)
        raise BadRow(f"the key '{COMPLETIONS[0]}' is missing; a row with 'prompt' needs it (or response)" + nearest)
    asked = read_side(raw, PROMPT, USER, roles)
    return asked + read_side(raw, key, ASSISTANT, roles), len(asked)


def read_side(raw: RawRow, key: str, role: str, roles: Mapping[str, str]) -> list[Turn]:
    """Return the turns under a key that holds turns, or the text of one turn of `role`.

    Raises:
        BadRow: an empty text, neither text nor turns, or as `read_turns`.
    """
    value = raw[key]
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"'{key}' is empty; it must have text")
        return [Turn(role, {"role": role, "content": value})]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise BadRow(f"'{key}' is {kind_of(value)}; it must be a string, or a list of turns {{role, content}}")
    return read_turns(value, key, roles)


def _tools(raw: RawRow) -> list[Message] | None:
    key = next((key for key in ("tools", "functions") if raw.get(key)), None)
    if key is None:
        return None
    tools = raw[key]
    if isinstance(tools, str):
        if not tools.strip():
            return None
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"'{key}' is a string that is no JSON ({error}); it must be a list of tools") from None
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise BadRow(f"'{key}' is {kind_of(tools)}; it must be a list of objects")
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise BadRow(f"'{key}[{number}]' is {kind_of(tool)}; a tool must be an object")
    schemas = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return schemas or None
