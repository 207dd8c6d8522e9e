"""Conversations in the spellings that people have, read as chat templates take them, or refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from uniattn_pl.data import Row, read_source
from uniattn_pl.data.embedded_chats import CHATS, embedded_chats
from uniattn_pl.data.row_problems import BadRow
from uniattn_pl.data.rows import detect_format, map_row
from uniattn_pl.errors import UserError

MESSAGES = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def spoken(user: str, assistant: str, role: str = "from", text: str = "value") -> list[dict[str, str]]:
    names = {"user": user, "assistant": assistant}
    return [{role: names[message["role"]], text: message["content"]} for message in MESSAGES]


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]


def read(raw: dict[str, Any], **options: Any) -> Row | None:
    return map_row(raw, detect_format(raw), whole_chats=True, **options)


@pytest.mark.parametrize(
    "raw",
    [
        {"messages": MESSAGES},
        {"messages": [{**message, "content": parts(message["content"])} for message in MESSAGES]},
        {"messages": [{**message, "tool_calls": None, "name": None, "id": 3} for message in MESSAGES]},
        {"conversations": spoken("human", "gpt")},
        {"conversations": spoken("Human", "GPT")},
        {"conversations": spoken("user", "bing")},
        {"conversations": spoken("prompter", "model", "role", "text")},
        {"conversation": spoken("user", "chatgpt", "role", "content")},
        {"dialog": spoken("customer", "bot", "speaker", "text")},
        {"turns": spoken("user", "assistant", "role", "content"), "source": "x"},
        {"prompt": MESSAGES[:3], "completion": MESSAGES[3:], "weights": 1},
        {"messages": [*MESSAGES, {"role": "user", "content": "Nothing is learned behind the last answer."}]},
    ],
)
def test_a_conversation_reads_the_same_in_every_spelling(raw):
    row = read(raw)
    assert row is not None
    assert row.conversation.messages == MESSAGES
    assert row.conversation.learned == ((3,) if "prompt" in raw else (1, 3))


def test_prompt_and_completion_may_be_texts_or_turns():
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    for raw in (
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": "Why?", "response": "Because."},
        {"prompt": "Why?", "completion": said[1:]},
        {"prompt": said[:1], "completion": "Because."},
    ):
        row = read(raw)
        assert row is not None
        assert (row.conversation.messages, row.conversation.learned) == (said, (1,))
        assert map_row(raw, "completion") == Row("", "Why?", "Because."), "in the paper's prompt"


def test_speakers_of_any_name_are_told_by_the_config():
    raw = {"conversations": spoken("Patient", "Dr. Who")}
    with pytest.raises(BadRow, match=r"has from 'Patient'; allowed are user, .*data\.roles"):
        read(raw)
    row = read(raw, roles={"Patient": "user", "Dr. Who": "assistant"})
    assert row is not None
    assert row.conversation.messages == MESSAGES


def test_a_system_turn_may_stand_beside_the_turns():
    system = {"role": "system", "content": "Be brief."}
    for raw in (
        {"system": "Be brief.", "conversations": spoken("human", "gpt")},
        {"system": "Another.", "messages": [{**system, "role": "developer"}, *MESSAGES]},
    ):
        row = read(raw)
        assert row is not None
        assert row.conversation.messages == [system, *MESSAGES]
        assert row.conversation.learned == (2, 4)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


@pytest.mark.parametrize(
    "call",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    ],
)
def test_calls_of_tools_are_kept_as_templates_take_them(call):
    raw = {
        "conversations": [MESSAGES[0], call, {"from": "observation", "value": "Rain."}, MESSAGES[3]],
        "tools": '[{"name": "weather", "parameters": {}}]',
    }
    row = read(raw)
    assert row is not None
    chat = row.conversation
    assert chat.messages == [
        MESSAGES[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "Rain."},
        MESSAGES[3],
    ]
    assert chat.tools == [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert chat.learned == (1, 3)
    assert map_row(raw, "infinity_instruct") is None, "no round of text for the paper's prompt"


@pytest.mark.parametrize(
    "messages",
    [[], MESSAGES[:1], [MESSAGES[0], {**MESSAGES[1], "content": " "}], [MESSAGES[0], {**MESSAGES[1], "weight": 0}]],
)
def test_a_conversation_without_an_answer_is_left_out(messages):
    assert read({"messages": messages}) is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"messages": 3}, "'messages' is a number; it must be a list of turns"),
        ({"messages": [{"content": "x"}]}, "'messages[0]' has role None; allowed are user, human"),
        ({"dialog": [{"speaker": "x", "text": "y"}]}, "'dialog[0]' has speaker 'x'; allowed are user"),
        (
            {"messages": [MESSAGES[0], {"role": "assistant"}]},
            "'messages[1]' has null as 'content'; it must be a string",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "has a part of type 'image' in 'content'"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "has an object as 'content'; it must be a string"),
        (
            {"messages": [{**MESSAGES[1], "tool_calls": "x"}]},
            "has a string as 'tool_calls'; it must be a list of calls",
        ),
        ({"messages": [{**MESSAGES[1], "tool_calls": [1]}]}, "tool_calls[0] is a number; a call must be an object"),
        ({"messages": MESSAGES, "tools": "["}, "'tools' is a string that is no JSON"),
        ({"messages": MESSAGES, "tools": {"a": 1}}, "'tools' is an object; it must be a list of objects"),
        ({"messages": MESSAGES, "tools": ["a"]}, "'tools[0]' is a string; a tool must be an object"),
        (
            {"messages": [{"role": "user", "content": "\ud83d"}, MESSAGES[1]]},
            "the text of its turns has half a character",
        ),
        ({"prompt": "a", "completion": " "}, "'completion' is empty; it must have text"),
        ({"prompt": "", "completion": "a"}, "'prompt' is empty; it must have text"),
        ({"prompt": "a", "response": 3}, "'response' is a number; it must be a string, or a list of turns"),
        ({"prompt": "a", "completoin": "b"}, "cannot tell the row format from its keys (completoin, prompt)"),
    ],
)
def test_a_bad_row_names_file_and_line_and_what_is_allowed(tmp_path, raw, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [raw, {"messages": MESSAGES}])))
    with pytest.raises(UserError) as caught:
        read_source(str(path), whole_chats=True)
    said = str(caught.value)
    assert message in said
    assert "data.on_bad_row=skip" in said
    assert said.startswith(f"{path}, line 1: ")
    if "completoin" not in message:
        found = read_source(str(path), format="chat", whole_chats=True, on_bad_row="skip")
        assert (len(found.rows), found.skipped) == (1, 1)


def test_the_embedded_chats_are_the_same_everywhere_and_ask_nothing_twice():
    chats = list(embedded_chats())
    assert len(chats) == CHATS
    asked = [m["content"] for chat in chats for m in chat["messages"] if "\n" in m["content"]]
    assert len(set(asked)) == len(asked)
    rows = read_source("embedded_chats", whole_chats=True)
    assert (rows.format, rows.read, rows.skipped, rows.filtered) == ("chat", CHATS, 0, 0)
    lengths = {len(row.conversation.learned) for row in rows.rows}
    assert lengths == {2, 3}
    for row in rows.rows:
        chat = row.conversation
        assert chat.messages[chat.learned[0]]["content"] == f"{row.answer}."
        assert row.answer in row.choices
    assert rows.rows[0].conversation.messages[-1]["content"].startswith("The finding that points to it is")


def test_without_a_chat_template_conversations_are_as_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": rounds}) for rounds in (MESSAGES, MESSAGES[:2])))
    found = read_source(str(path))
    assert (found.rows, found.format, found.filtered) == ([Row("", "Why?", "Because.")], "tulu3", 1)
    path.write_text(json.dumps({"messages": MESSAGES}))
    with pytest.raises(UserError, match=r"not one-round conversations; data\.template=chat takes those of any length"):
        read_source(str(path))
