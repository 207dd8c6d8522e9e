"""Turns of a conversation in the spellings of public data, read as what chat templates take: role, content, calls.

| what | spellings |
|---|---|
| who speaks | `role`, `from`, `speaker`: a name of `SPEAKERS` in any case, or one of `data.roles` |
| what is said | `content`, `value`, `text`: a text, or a list of its parts (OpenAI's `[{type: text, text}]`) |
| what is called | `tool_calls` and `function_call` (OpenAI), a turn of `function_call` (ShareGPT) |

A turn keeps besides what templates read (`name`, `tool_call_id`, `reasoning_content`); all else is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniattn_pl.config.sections.data_section import CHAT_ROLES
from uniattn_pl.data.row_problems import BadRow, kind_of, shown

Message = dict[str, Any]
RawTurn = Mapping[str, Any]

USER, ASSISTANT, SYSTEM, TOOL = CHAT_ROLES
CALL = "function_call"  # said by the assistant: what it calls, not what the tool answers
# What public data sets call who speaks, the role of chat templates being the first of each line.
SPEAKERS = (
    (USER, "human", "prompter", "customer"),
    (ASSISTANT, "gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bing", "bard", "claude"),
    (SYSTEM, "developer"),
    (TOOL, "function", "function_response", "tool_response", "observation", "ipython"),
    (CALL, "tool_call"),
)
_SPEAKER_OF = {name: names[0] for names in SPEAKERS for name in names}
_ROLE_KEYS, _TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
_KEPT = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turn:
    """One turn.

    Args:
        speaker: a first name in `SPEAKERS`.
        message: what a chat template takes of it.
        learned: whether the assistant may learn it.
    """

    speaker: str
    message: Message
    learned: bool = True


def read_turns(turns: object, key: str, roles: Mapping[str, str]) -> list[Turn]:
    """Return the turns of a conversation.

    Args:
        turns: what the row holds under `key`.
        roles: further names of who speaks, and the role of each.

    Raises:
        BadRow: no list of turns; a turn without a known speaker, without text and calls, or with what is no text.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise BadRow(f"'{key}' is {kind_of(turns)}; it must be a list of turns {{role, content}} or {{from, value}}")
    return [_turn(turn, f"'{key}[{number}]'", roles) for number, turn in enumerate(turns)]


def _turn(turn: object, place: str, roles: Mapping[str, str]) -> Turn:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{place} is {kind_of(turn)}; a turn must be an object with role, content or from, value")
    speaker = _speaker(turn, place, roles)
    key = _key_of(turn, _TEXT_KEYS)
    calls = _calls(turn, place)
    if speaker == CALL:
        message = _spoken_call(turn.get(key), key, place)
    else:
        text = _text(turn.get(key), key, place, speaker, may_lack=bool(calls))
        message = {"role": speaker, "content": text, **({"tool_calls": calls} if calls else {})}
    kept = {name: turn[name] for name in _KEPT if isinstance(turn.get(name), str)}
    return Turn(speaker, {**message, **kept}, learned=turn.get("weight") != 0 and turn.get("train") is not False)


def _key_of(turn: RawTurn, keys: tuple[str, ...]) -> str:
    """The first of the keys that says something, else the first that is there, else the first."""
    said = [key for key in keys if turn.get(key) is not None] or [key for key in keys if key in turn]
    return (said or list(keys))[0]


def _speaker(turn: RawTurn, place: str, roles: Mapping[str, str]) -> str:
    key = _key_of(turn, _ROLE_KEYS)
    name = turn.get(key)
    if isinstance(name, str):
        speaker = roles.get(name) or _SPEAKER_OF.get(name.strip().lower())
        if speaker is not None:
            return speaker
    allowed = ", ".join([*_SPEAKER_OF, *roles])
    raise BadRow(f"{place} has {key} {shown(name)}; allowed are {allowed}, and what data.roles says of others")


def _text(value: object, key: str, place: str, speaker: str, *, may_lack: bool) -> Any:
    """What is said; what a tool answers may be an object, which templates write themselves."""
    if isinstance(value, str) or (speaker == TOOL and isinstance(value, Mapping)):
        return value
    if value is None and may_lack:
        return ""
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise BadRow(f"{place} has {kind_of(value)} as '{key}'; it must be a string, or a list of text parts")
    return "".join(_part(part, key, place) for part in value)


def _part(part: object, key: str, place: str) -> str:
    value = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(value, str):
        kind = f"of type {shown(part.get('type'))}" if isinstance(part, Mapping) else f"that is {kind_of(part)}"
        raise BadRow(f"{place} has a part {kind} in '{key}'; only text can be trained on")
    return value


def _calls(turn: RawTurn, place: str) -> list[Message]:
    """The tools that a turn calls, as templates read them: OpenAI's, with the arguments as an object."""
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise BadRow(f"{place} has {kind_of(calls)} as 'tool_calls'; it must be a list of calls")
    single = turn.get("function_call")
    listed = [*calls, {"type": "function", "function": single}] if isinstance(single, Mapping) else list(calls)
    return [_call(call, f"{place}, tool_calls[{number}]") for number, call in enumerate(listed)]


def _call(call: object, place: str) -> Message:
    if not isinstance(call, Mapping):
        raise BadRow(f"{place} is {kind_of(call)}; a call must be an object {{function: {{name, arguments}}}}")
    function = call.get("function")
    if not isinstance(function, Mapping):
        return {name: value for name, value in call.items() if value is not None}
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI's JSON in a string; templates write it as JSON once more
        try:
            decoded = json.loads(arguments)
        except (ValueError, RecursionError):
            decoded = None
        arguments = decoded if isinstance(decoded, dict) else arguments
    rest = {name: value for name, value in call.items() if value is not None}
    return {"type": "function", **rest, "function": {**function, "arguments": arguments}}


def _spoken_call(value: object, key: str, place: str) -> Message:
    """A turn of ShareGPT that is a call as JSON, or a text where it is none."""
    text = _text(value, key, place, CALL, may_lack=False)
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return {"role": ASSISTANT, "content": text}
    function = {"name": call["name"], "arguments": call.get("arguments", call.get("parameters", {}))}
    return {"role": ASSISTANT, "content": "", "tool_calls": [_call({"function": function}, place)]}
