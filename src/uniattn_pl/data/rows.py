"""The internal row and the mapping of public instruction formats onto it.

| format | keys | becomes |
|---|---|---|
| alpaca | instruction, output, optionally input, optionally answer and choices | the same |
| pmc | as alpaca, and source | the same |
| tulu3 | `messages: [{role, content}]`, or the filtered form input, output | input, output; instruction empty |
| infinity_instruct | `conversations: [{from, value}]` (ShareGPT) | input, output; instruction empty |
| text | text, optionally continues | output; no prompt at all |

Turns of either format may be spelled as in the other, with user or human, assistant or gpt; a text may be in parts
(OpenAI's `[{type: text, text}]`).

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
        output: the response to learn, never empty; of a plain text (neither instruction nor input) all of it.
        answer: the checkable answer `output` begins with, one of `choices`.
        choices: the admissible answers; empty when the row is not checkable.
        continues: the text goes on behind the end of `output`, where it was cut: no EOS is learned there.
    """

    instruction: str
    input: str
    output: str
    answer: str | None = None
    choices: tuple[str, ...] = ()
    continues: bool = False

    @property
    def plain(self) -> bool:
        """Whether this is a text without a prompt, of which every token is learned."""
        return not (self.instruction.strip() or self.input.strip())


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
    row = FORMATS[format_name](_object(raw))
    if row is not None:
        _check_unicode(row)
    return row


def _check_unicode(row: Row) -> None:
    """Refuse half characters (`"\\ud83d"`), which JSON can say and no tokenizer can read."""
    for key, text in (("instruction", row.instruction), ("input", row.input), ("output", row.output)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise BadRow(
                f"the text of its {key} has half a character ({half}, at character {error.start + 1}): a surrogate "
                "without its other half, as when a text is cut inside an emoji"
            ) from None


def has_row_keys(raw: RawRow) -> bool:
    """Whether these are the keys of a row of some format."""
    return bool({"messages", "conversations", "text"} & set(raw)) or {"output"} < set(raw)


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
    if "text" in keys:
        return "text"
    key_list = ", ".join(sorted(map(str, keys))) or "none"
    raise BadRow(
        f"cannot tell the row format from its keys ({key_list}); "
        "expected instruction, input, output (alpaca; with source: pmc), messages or input, output (tulu3), "
        "conversations (infinity_instruct) or text (text)" + _nearest_key(keys, ("instruction", "output", "input"))
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
    if "input" not in raw and not _nearest_key(set(raw) - set(required), ("input",)):
        raw = {**raw, "input": ""}  # tasks without an input are often written without the key
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
        return _one_round(_turns(raw, "messages"))
    required = ("input", "output")
    user, assistant = (_text(raw, key, "tulu3", required) for key in required)
    return _one_round([("user", user), ("assistant", assistant)])


def _map_infinity_instruct(raw: RawRow) -> Row | None:
    return _one_round(_turns(raw, "conversations"))


def _map_text(raw: RawRow) -> Row | None:
    text, continues = _text(raw, "text", "text", ("text",)), raw.get("continues", False)
    if not isinstance(continues, bool):
        raise BadRow(f"'continues' is {_kind(continues)}; it must be true or false")
    return Row("", "", text, continues=continues) if text.strip() else None


def _turns(raw: RawRow, key: str) -> list[tuple[str, str]]:
    """Return [(role, text)] of a conversation, each role by its first name in `ROLES`, having checked its types."""
    if key not in raw:
        raise BadRow(f"the key '{key}' is missing; it must hold the turns" + _nearest_key(set(raw), (key,)))
    turns = raw[key]
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise BadRow(f"'{key}' is {_kind(turns)}; it must be a list of turns {{role, content}} or {{from, value}}")
    checked = []
    for number, turn in enumerate(turns):
        turn_key = f"'{key}[{number}]'"
        if not isinstance(turn, Mapping):
            raise BadRow(f"{turn_key} is {_kind(turn)}; a turn must be an object with role, content or from, value")
        role_key = "from" if turn.get("role") is None and "from" in turn else "role"
        text_key = "value" if turn.get("content") is None and "value" in turn else "content"
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in _ROLE_OF:
            allowed = ", ".join(_ROLE_OF)
            raise BadRow(f"{turn_key} has {role_key} {role!r}; allowed are {allowed}")
        checked.append((_ROLE_OF[role], _turn_text(turn, text_key, turn_key)))
    return checked


def _turn_text(turn: RawRow, text_key: str, turn_key: str) -> str:
    """The text of a turn; empty where it calls a tool instead, which filters the conversation."""
    text = turn.get(text_key)
    if isinstance(text, str):
        return text
    if text is None and any(turn.get(call) for call in ("tool_calls", "function_call")):
        return ""
    if not isinstance(text, Sequence) or isinstance(text, bytes):
        raise BadRow(f"{turn_key} has {_kind(text)} as '{text_key}'; it must be a string, or a list of text parts")
    parts = []
    for part in text:
        value = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(value, str):
            kind = f"of type {part.get('type')!r}" if isinstance(part, Mapping) else f"that is {_kind(part)}"
            raise BadRow(f"{turn_key} has a part {kind} in '{text_key}'; only text can be trained on")
        parts.append(value)
    return "".join(parts)


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


# What public data sets call who speaks, the first of each line being the name here.
ROLES = (
    ("user", "human"),
    ("assistant", "gpt", "chatgpt", "model"),
    ("system", "developer"),
    ("tool", "function", "function_call", "function_response", "observation"),
)
_ROLE_OF = {name: names[0] for names in ROLES for name in names}


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
    "text": _map_text,
}
