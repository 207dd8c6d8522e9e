"""The internal row and the mapping of public formats onto it.

| format | keys | under the paper's prompt | under a chat template |
|---|---|---|---|
| alpaca | instruction, output, optionally input, optionally answer and choices | the same | a question, its answer |
| pmc | as alpaca, and source | the same | a question, its answer |
| tulu3 | `messages`, or the filtered form input, output | input, output; instruction empty | all turns |
| infinity_instruct | `conversations` (ShareGPT) | input, output; instruction empty | all turns |
| chat | turns under any key of `chats.TURN_KEYS` | input, output; instruction empty | all turns |
| completion | prompt and completion, texts or turns | input, output; instruction empty | all turns |
| preference | prompt, chosen, rejected (`data/preference_turns.py`) | as completion, of each response | all turns |
| text | text, optionally continues | output; no prompt at all | the same |

Turns are read in every spelling (`data/chat_turns.py`). Under the paper's prompt conversations follow its filter: one
round, with text on both sides (`chats.read_one_round`). A conversation that is filtered is counted, not bad; a bad row
raises `BadRow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from uniattn_pl.config.sections.data_section import PREFERENCE
from uniattn_pl.data.chat_turns import Turn
from uniattn_pl.data.chats import (
    COMPLETIONS,
    PROMPT,
    TURN_KEYS,
    Chat,
    RawRow,
    chat_of,
    one_round_of,
    read_chat,
    read_one_round,
)
from uniattn_pl.data.preference_turns import SIDES, read_preference
from uniattn_pl.data.row_problems import BadRow, check_unicode, kind_of, nearest_key, shortened, shown


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
        chat: a conversation for a chat template, as `chats.Chat.to_json` writes it; of such a row the texts above are
            empty, and its first turn that is learned begins with `answer`.
        rejected: the same question with a worse response, where preferences are told; this row has the chosen one.
    """

    instruction: str
    input: str
    output: str
    answer: str | None = None
    choices: tuple[str, ...] = ()
    continues: bool = False
    chat: str = ""
    rejected: Row | None = None

    @property
    def plain(self) -> bool:
        """Whether this is a text without a prompt, of which every token is learned."""
        return not (self.chat or self.instruction.strip() or self.input.strip())

    @property
    def answers(self) -> bool:
        """Whether there is text in its answer."""
        text = self.output if not self.chat else self.conversation.messages[-1]["content"]
        return bool(text.strip())

    @property
    def question(self) -> Row:
        """What is asked, without any answer: what text of a model is sampled for."""
        if self.chat:
            chat = self.conversation
            return Row("", "", "", chat=Chat(chat.asked, (), chat.tools).to_json())
        return Row(self.instruction, self.input, "")

    @property
    def conversation(self) -> Chat:
        """The row as a chat template takes it: instruction and input are what is asked, one below the other."""
        if self.chat:
            return Chat.read(self.chat)
        return Chat.one_round("\n\n".join(text for text in (self.instruction, self.input) if text.strip()), self.output)


def map_row(
    raw: object, format_name: str, *, whole_chats: bool = False, roles: Mapping[str, str] | None = None
) -> Row | None:
    """Return the `Row` of one raw record, or None when the format's filter leaves it out.

    Args:
        raw: what the file held: normally a dict.
        format_name: a key of `FORMATS` or one of `CHAT_FORMATS`.
        whole_chats: take conversations whole, for a chat template; False: those of one round, for the paper's prompt.
        roles: further names of who speaks, and the role of each.

    Raises:
        BadRow: a missing key, a wrong type, an empty output, or not an object at all.
    """
    record = _object(raw)
    if format_name == PREFERENCE:
        row = _map_preference(record, whole_chats, roles or {})
    elif format_name in CHAT_FORMATS:
        row = _map_chat(record, format_name, whole_chats, roles or {})
    else:
        row = FORMATS[format_name](record)
    for one in (row, row and row.rejected):
        for key in ("instruction", "input", "output", "chat") if one is not None else ():
            check_unicode(getattr(one, key), "turns" if key == "chat" else key)
    return row


def has_row_keys(raw: RawRow) -> bool:
    """Whether these are the keys of a row of some format."""
    keys = set(raw)
    return bool({*TURN_KEYS, "text"} & keys) or {"output"} < keys or _is_pair(keys) or _has_sides(raw)


def detect_format(raw: object, *, whole_chats: bool = False) -> str:
    """Return the format whose keys this record has (`data.format: auto`).

    Args:
        whole_chats: as of `map_row`; conversations are then of one format, whatever the key of their turns.

    Raises:
        BadRow: not an object, or no known format has such keys; names the keys found and the keys allowed.
    """
    record = _object(raw)
    keys = set(record)
    if _has_sides(record):
        return PREFERENCE
    if whole_chats and any(isinstance(record.get(key), list) for key in TURN_KEYS):
        return "chat"
    if "messages" in keys:
        return "tulu3"
    if "conversations" in keys:
        return "infinity_instruct"
    if {"instruction", "output"} <= keys:
        return "pmc" if "source" in keys else "alpaca"
    if {"input", "output"} <= keys:
        return "tulu3"
    if any(isinstance(record.get(key), list) for key in TURN_KEYS):
        return "chat"
    if _is_pair(keys):
        return "completion"
    if "text" in keys:
        return "text"
    key_list = shortened(", ".join(sorted(map(str, keys))) or "none")
    raise BadRow(
        f"cannot tell the row format from its keys ({key_list}); "
        "expected instruction, input, output (alpaca; with source: pmc), messages or input, output (tulu3), "
        f"conversations (infinity_instruct), {', '.join(TURN_KEYS[2:])} (chat), prompt, completion (completion), "
        "prompt, chosen, rejected (preference) or text (text)" + nearest_key(keys, ("instruction", "output", "input"))
    )


def _is_pair(keys: set[str]) -> bool:
    return PROMPT in keys and any(key in keys for key in COMPLETIONS)


def _has_sides(raw: RawRow) -> bool:
    return all(isinstance(raw.get(side), str | list) for side in SIDES)


def _object(raw: object) -> RawRow:
    if not isinstance(raw, Mapping):
        raise BadRow(f"the row is {kind_of(raw)}; it must be an object (a dictionary of keys)")
    return raw


def _map_alpaca(raw: RawRow) -> Row:
    return _instruction_row(raw, "alpaca")


def _map_pmc(raw: RawRow) -> Row:
    return _instruction_row(raw, "pmc")


def _instruction_row(raw: RawRow, format_name: str) -> Row:
    required = ("instruction", "input", "output")
    if "input" not in raw and not nearest_key(set(raw) - set(required), ("input",)):
        raw = {**raw, "input": ""}  # tasks without an input are often written without the key
    instruction, context, output = (
        _text(raw, key, format_name, required, null_is_empty=key == "input") for key in required
    )
    if not instruction.strip() and not context.strip():
        raise BadRow("'instruction' and 'input' are both empty; at least one must have text")
    if not output.strip():
        raise BadRow("'output' is empty; it must hold the response to learn")
    answer, choices = _answer(raw, output, "'output'")
    return Row(instruction, context, output, answer, choices)


def _answer(raw: RawRow, output: str, what: str) -> tuple[str | None, tuple[str, ...]]:
    """Read the optional `answer` and `choices`, by which accuracy is measured; `output` is `what` of the row."""
    answer, choices = raw.get("answer"), raw.get("choices")
    if answer is None or choices is None:
        return None, ()
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not all(isinstance(c, str) for c in choices):
        raise BadRow(f"'choices' is {kind_of(choices)}; it must be a list of strings")
    if answer not in choices:
        raise BadRow(f"'answer' is {shown(answer)}; it must be one of 'choices' ({shortened(', '.join(choices))})")
    if not output.startswith(answer):
        raise BadRow(f"{what} must begin with the text of 'answer' ({shown(answer)}) so that the answer can be checked")
    return answer, tuple(choices)


def _map_chat(raw: RawRow, format_name: str, whole: bool, roles: Mapping[str, str]) -> Row | None:
    """A conversation, whole or as the paper filters them; of Tulu-3's filtered form the pair that it is."""
    if format_name == "tulu3" and not any(key in raw for key in TURN_KEYS):
        user, assistant = (_text(raw, key, "tulu3", ("input", "output")) for key in ("input", "output"))
        return Row("", user, assistant) if user.strip() and assistant.strip() else None
    if not whole:
        pair = read_one_round(raw, roles)
        return None if pair is None else Row("", *pair)
    chat = read_chat(raw, roles)
    return None if chat is None else _chat_row(raw, chat)


def _chat_row(raw: RawRow, chat: Chat) -> Row:
    first = chat.learned[0]
    answer, choices = _answer(raw, chat.messages[first]["content"], f"what is learned first (turn {first + 1})")
    return Row("", "", "", answer, choices, chat=chat.to_json())


def _map_preference(raw: RawRow, whole: bool, roles: Mapping[str, str]) -> Row | None:
    """The chosen conversation, which may have a checkable answer, with the rejected one."""
    pair = read_preference(raw, roles)
    if pair is None:
        return None
    chosen = _conversation(raw, pair.chosen, pair.first, whole)
    rejected = _conversation({**raw, "answer": None}, pair.rejected, pair.first, whole)
    return None if chosen is None or rejected is None else replace(chosen, rejected=rejected)


def _conversation(raw: RawRow, turns: Sequence[Turn], first: int, whole: bool) -> Row | None:
    if whole:
        chat = chat_of(raw, turns, first)
        return None if chat is None else _chat_row(raw, chat)
    pair = one_round_of(turns)
    return None if pair is None else Row("", *pair, *_answer(raw, pair[1], "the response"))


def _map_text(raw: RawRow) -> Row | None:
    text, continues = _text(raw, "text", "text", ("text",)), raw.get("continues", False)
    if not isinstance(continues, bool):
        raise BadRow(f"'continues' is {kind_of(continues)}; it must be true or false")
    return Row("", "", text, continues=continues) if text.strip() else None


def _text(raw: RawRow, key: str, format_name: str, required: tuple[str, ...], *, null_is_empty: bool = False) -> str:
    if key not in raw:
        needs = f"a row of format '{format_name}' needs {', '.join(required)}"
        raise BadRow(f"the key '{key}' is missing; {needs}" + nearest_key(set(raw) - set(required), (key,)))
    value = raw[key]
    if value is None and null_is_empty:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"'{key}' is {kind_of(value)}; it must be a string")
    return value


FORMATS: dict[str, Callable[[RawRow], Row | None]] = {
    "alpaca": _map_alpaca,
    "pmc": _map_pmc,
    "text": _map_text,
}
CHAT_FORMATS = ("tulu3", "infinity_instruct", "chat", "completion", PREFERENCE)
"""Formats of conversations, whose mapping depends on the prompt that rows are put into."""
