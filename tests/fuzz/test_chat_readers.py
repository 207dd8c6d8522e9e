"""Whatever is in a row of turns, a packed file or a chat template: chats, or one sentence that names the file."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.chat_templates import HAS_SYSTEM, HAS_TOOLS, TEMPLATES, template, tokenizer_of
from tests.fuzz.drawn import changed_bytes, changed_json, in_bounds, used_or_refused, values, written
from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import EncodedRows, Row, encode_rows, read_source
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.chats import Chat
from uniattn_pl.data.prompt_file import read_prompts
from uniattn_pl.data.rows import map_row
from uniattn_pl.errors import UserError

CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "ż"]}'}}]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}, "Say."]},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Sure?", "name": "Ada"},
    {"role": "assistant", "content": None, "tool_calls": CALLS, "reasoning_content": "Hm."},
    {"role": "tool", "content": "1", "tool_call_id": "1"},
    {"role": "assistant", "content": "Yes.", "weight": 1},
    {"role": "assistant", "content": "No.", "train": False},
]
SHARED = [
    {"from": "human", "value": "Why?"},
    {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
    {"from": "observation", "value": "1"},
    {"from": "gpt", "value": "Because."},
]
TOOLS = [{"name": "f", "parameters": {"a": {"type": "integer"}}}]
ROWS: list[dict[str, Any]] = [
    {"messages": TURNS, "tools": TOOLS},
    {"messages": TURNS, "answer": "Because", "choices": ["Because", "No"]},
    {"conversations": SHARED, "system": "Be brief.", "tools": json.dumps(TOOLS)},
    {"dialog": [{"speaker": "user", "text": "a"}, {"speaker": "bot", "text": "b"}]},
    {"prompt": "a", "completion": "b"},
    {"prompt": TURNS[:2], "response": TURNS[2:3]},
    {"instruction": "a", "input": "", "output": "b"},
    {"prompt": "a", "chosen": "b", "rejected": TURNS[2:3], "answer": "b", "choices": ["b", "c"]},
    {"chosen": TURNS[:3], "rejected": [*TURNS[:2], {"role": "assistant", "content": "No."}]},
]
rows = st.one_of(changed_json(row) for row in ROWS) | values
formats = st.sampled_from(["auto", "chat", "completion", "tulu3", "infinity_instruct", "preference"])
families, tags, turns = st.sampled_from(list(TEMPLATES)), st.booleans(), st.sampled_from(["all", "last"])
skipping = st.sampled_from(["error", "skip"])


@cache
def chat_template(family: str, tagged: bool, loss_turns: str) -> ChatTemplate:
    config = DataConfig(template="chat", loss_turns=loss_turns)
    found = ChatTemplate.of(config, tokenizer_of(family, tagged=tagged))
    assert found is not None
    return found


def encoded(found: list[Row], chat: ChatTemplate, length: int) -> EncodedRows:
    """The rows as tokens, having looked at what holds of any."""
    result = encode_rows(found, chat.tokenizer, length, with_choices=True, template=chat, skip_refused=True)
    assert len(result) + result.counts.dropped + result.counts.refused >= len(found)
    for index in range(len(result)):
        example = result[index]
        bounds = example.spans.flatten().tolist()
        assert bounds == sorted(bounds)
        assert bounds[0] >= 0
        assert bounds[-1] <= len(example.tokens) <= length
        assert all(start < end for start, end in example.spans.tolist())
    return result


@in_bounds
@given(
    st.lists(rows, min_size=1, max_size=4), formats, skipping, families, tags, turns, st.sampled_from([24, 90, 4000])
)
def test_rows_of_turns_of_any_values(
    folder: Path,
    drawn: list[object],
    format: str,
    on_bad_row: str,
    family: str,
    tagged: bool,
    loss_turns: str,
    length: int,
) -> None:
    path = folder / "chats.jsonl"
    path.write_bytes(b"\n".join(map(written, drawn)))

    def use() -> None:
        for whole in (False, True):
            found = read_source(str(path), format=format, on_bad_row=on_bad_row, whole_chats=whole)
            assert found.read == len(found.rows) + found.skipped + found.filtered
        encoded(found.rows, chat_template(family, tagged, loss_turns), length)

    used_or_refused(path.name, use)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\n", " a ", "{{ x }}", "🙂\u200d"]
)


@st.composite
def conversations(draw: st.DrawFn, family: str) -> Chat:
    messages = [
        {"role": role, "content": draw(texts)} for _ in range(draw(st.integers(1, 4))) for role in ("user", "assistant")
    ]
    if family in HAS_SYSTEM and draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(texts)})
    tools = [{"type": "function", "function": TOOLS[0]}] if family in HAS_TOOLS and draw(st.booleans()) else None
    learned = tuple(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return Chat(messages, learned, tools)


@in_bounds
@given(st.data(), families)
def test_any_conversation_has_the_tokens_and_masks_of_transformers(data: st.DataObject, family: str) -> None:
    chat = data.draw(conversations(family))
    assume(not chat_template(family, True, "all").special.search(chat.to_json()))  # which stays text here
    tokenizer: Any = tokenizer_of_once(family)
    expected = tokenizer.apply_chat_template(
        chat.messages, chat.tools, return_assistant_tokens_mask=True, return_dict=True
    )
    for tagged in (True, False):
        result = encoded([Row("", "", "", chat=chat.to_json())], chat_template(family, tagged, "all"), 10_000)
        assert result[0].tokens.tolist() == expected["input_ids"]
        mask = [0] * len(expected["input_ids"])
        for start, end in result[0].spans.tolist():
            mask[start:end] = [1] * (end - start)
        assert mask == expected["assistant_masks"], tagged


@cache
def tokenizer_of_once(family: str) -> Any:
    return tokenizer_of(family)


LINES = "\n".join(map(json.dumps, ROWS)).encode()
PACKED = {".gz": gzip.compress(LINES, mtime=0), ".zst": bytes(pa.compress(LINES, "zstd"))}


@in_bounds
@given(st.data(), st.sampled_from(list(PACKED)), st.sampled_from([".json", ".jsonl"]), skipping)
def test_packed_files_of_any_bytes(folder: Path, data: st.DataObject, packing: str, kind: str, on_bad_row: str) -> None:
    path = folder / f"packed{kind}{packing}"
    path.write_bytes(data.draw(changed_bytes([PACKED[packing]])))
    used_or_refused(path.name, lambda: read_source(str(path), on_bad_row=on_bad_row, whole_chats=True))


JINJA = [template(family, tagged=tagged).encode() for family in TEMPLATES for tagged in (True, False)]
GOOD = [
    row
    for raw in ROWS[:5]
    if (row := map_row(raw, "completion" if "prompt" in raw else "chat", whole_chats=True)) is not None
]


@in_bounds
@given(changed_bytes(JINJA), turns, st.booleans())
def test_template_files_of_any_bytes(folder: Path, content: bytes, loss_turns: str, skip: bool) -> None:
    path = folder / "drawn.jinja"
    path.write_bytes(content)
    tokenizer = tokenizer_of_once("smollm2")

    def use() -> None:
        chat = ChatTemplate.of(DataConfig(template=str(path), loss_turns=loss_turns), tokenizer)
        try:
            encode_rows(GOOD, tokenizer, 200, template=chat, skip_refused=skip)
        except ValueError as refused:
            assert not skip
            raise UserError(str(refused)) from refused

    used_or_refused(path.name, use)


PROMPTS = [{"messages": TURNS[:2]}, {"prompt": "a"}, {"instruction": "a", "input": "b"}]


@in_bounds
@given(st.lists(st.one_of(changed_json(row) for row in PROMPTS) | values, min_size=1, max_size=3))
def test_prompt_files_of_any_values(folder: Path, drawn: list[object]) -> None:
    path = folder / "asked.jsonl"
    path.write_bytes(b"\n".join(map(written, drawn)))
    used_or_refused(path.name, lambda: read_prompts(path, instruction=True))
