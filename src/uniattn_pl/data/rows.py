"""The internal row and the mapping of public instruction formats onto it.

| format | keys | becomes |
|---|---|---|
| alpaca | instruction, input, output (optionally answer and choices) | the same |
| pmc | instruction, input, output, source | the same |
| tulu3 | `messages: [{role, content}]`, or the filtered form input, output | input, output; instruction empty |
| infinity_instruct | `conversations: [{from: human or gpt, value}]` | input, output; instruction empty |

Conversations follow the paper's filter (Appendix A: "only 1 round of conversation"): exactly one user turn
followed by one assistant turn, both with text. A leading system turn is *not* one round here: the paper's prompt
has no place for it, and leaving it out would train the model on an answer to another question.
A conversation the filter rejects is filtered (counted), not bad; a bad row raises `BadRow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniattn_pl.errors import did_you_mean

RawRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction-following example, whatever format it came from.

    Args:
        instruction: the task; empty where the data has none (Tulu-3).
        input: the context of the task; may be empty when there is an instruction.
        output: the response to learn, never empty.
        answer: the checkable answer `output` begins with, one of `choices`.
        choices: the admissible answers; empty when the row is not checkable.
    """

    instruction: str
    input: str
    output: str
    answer: str | None = None
    choices: tuple[str, ...] = ()


class BadRow(ValueError):
    """A row that cannot be mapped; the reader adds the file and the line."""


def map_row(raw: object, format_name: str) -> Row | None:
    """Return the `Row` of one raw record, or None when the format's filter leaves it out.

    Args:
        raw: what the file held: normally a dict.
        format_name: a key of `FORMATS`.

    Raises:
        BadRow: a missing key, a wrong type, an empty output, or not an object at all.
    """
    return FORMATS[format_name](_object(raw))


def detect_format(raw: object) -> str:
    """Return the format whose keys this record has (`data.format: auto`).

    Raises:
        BadRow: not an object, or no known format has such keys; names the keys found and the keys allowed.
    """
    keys = set(_object(raw))
    if "messages" in keys:
        return "tulu3"
    if "conversations" in keys:
        return "infinity_instruct"
    if {"instruction", "output"} <= keys:
        return "pmc" if "source" in keys else "alpaca"
    if {"input", "output"} <= keys:
        return "tulu3"
    key_list = ", ".join(sorted(map(str, keys))) or "none"
    raise BadRow(
        f"cannot tell the row format from its keys ({key_list}); "
        "expected instruction, input, output (alpaca; with source: pmc), messages or input, output (tulu3), "
        "or conversations (infinity_instruct)" + _nearest_key(keys, ("instruction", "output", "input"))
    )


def _object(raw: object) -> RawRow:
    if not isinstance(raw, Mapping):
        raise BadRow(f"the row is {_kind(raw)}; it must be an object (a dictionary of keys)")
    return raw


def _map_alpaca(raw: RawRow) -> Row:
    return _instruction_row(raw, "alpaca")


def _map_pmc(raw: RawRow) -> Row:
    return _instruction_row(raw, "pmc")


def _instruction_row(raw: RawRow, format_name: str) -> Row:
    required = ("instruction", "input", "output")
    instruction, context, output = (
        _text(raw, key, format_name, required, null_is_empty=key == "input") for key in required
    )
    if not instruction.strip() and not context.strip():
        raise BadRow("'instruction' and 'input' are both empty; at least one must have text")
    if not output.strip():
        raise BadRow("'output' is empty; it must hold the response to learn")
    answer, choices = _answer(raw, output)
    return Row(instruction, context, output, answer, choices)


def _answer(raw: RawRow, output: str) -> tuple[str | None, tuple[str, ...]]:
    """Read the optional `answer` and `choices`, by which answer accuracy is measured."""
    answer, choices = raw.get("answer"), raw.get("choices")
    if answer is None or choices is None:
        return None, ()
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not all(isinstance(c, str) for c in choices):
        raise BadRow(f"'choices' is {_kind(choices)}; it must be a list of strings")
    if answer not in choices:
        raise BadRow(f"'answer' is {answer!r}; it must be one of 'choices' ({', '.join(choices)})")
    if not output.startswith(answer):
        raise BadRow(f"'output' must begin with the text of 'answer' ({answer!r}) so that the answer can be checked")
    return answer, tuple(choices)


def _map_tulu3(raw: RawRow) -> Row | None:
    if "messages" in raw:
        return _one_round(_turns(raw, "messages", "role", "content", ("user", "assistant", "system", "tool")))
    required = ("input", "output")
    user, assistant = (_text(raw, key, "tulu3", required) for key in required)
    return _one_round([("user", user), ("assistant", assistant)])


def _map_infinity_instruct(raw: RawRow) -> Row | None:
    turns = _turns(raw, "conversations", "from", "value", ("human", "gpt", "system"))
    names = {"human": "user", "gpt": "assistant"}
    return _one_round([(names.get(role, role), text) for role, text in turns])


def _turns(raw: RawRow, key: str, role_key: str, text_key: str, roles: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return [(role, text)] of a conversation, having checked its types."""
    if key not in raw:
        raise BadRow(f"the key '{key}' is missing; it must hold the turns" + _nearest_key(set(raw), (key,)))
    turns = raw[key]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow(f"'{key}' is {_kind(turns)}; it must be a list of turns {{{role_key}, {text_key}}}")
    checked = []
    for number, turn in enumerate(turns):
        turn_key = f"'{key}[{number}]'"
        if not isinstance(turn, Mapping):
            raise BadRow(f"{turn_key} is {_kind(turn)}; a turn must be an object with '{role_key}' and '{text_key}'")
        role, text = turn.get(role_key), turn.get(text_key)
        if role not in roles:
            raise BadRow(f"{turn_key} has {role_key} {role!r}; allowed are {', '.join(roles)}")
        if not isinstance(text, str):
            raise BadRow(f"{turn_key} has {_kind(text)} as '{text_key}'; it must be a string")
        checked.append((role, text))
    return checked


def _one_round(turns: list[tuple[str, str]]) -> Row | None:
    """Return the row of a one-round conversation with text on both sides, else None (filtered)."""
    if [role for role, _ in turns] != ["user", "assistant"]:
        return None
    (_, user), (_, assistant) = turns
    return Row("", user, assistant) if user.strip() and assistant.strip() else None


def _text(raw: RawRow, key: str, format_name: str, required: tuple[str, ...], *, null_is_empty: bool = False) -> str:
    if key not in raw:
        needs = f"a row of format '{format_name}' needs {', '.join(required)}"
        raise BadRow(f"the key '{key}' is missing; {needs}" + _nearest_key(set(raw) - set(required), (key,)))
    value = raw[key]
    if value is None and null_is_empty:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"'{key}' is {_kind(value)}; it must be a string")
    return value


def _nearest_key(keys: set[str], missing: tuple[str, ...]) -> str:
    """Return " (is 'outptu' meant to be 'output'?)" when a key that is there resembles one that is missing."""
    for key in missing:
        for candidate in sorted(map(str, keys)):
            if candidate != key and did_you_mean(candidate, (key,)):
                return f" (is '{candidate}' meant to be '{key}'?)"
    return ""


def _kind(value: object) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


FORMATS: dict[str, Callable[[RawRow], Row | None]] = {
    "alpaca": _map_alpaca,
    "pmc": _map_pmc,
    "tulu3": _map_tulu3,
    "infinity_instruct": _map_infinity_instruct,
}
