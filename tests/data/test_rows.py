import json

import pytest

from uniattn_pl.data.row_problems import BadRow
from uniattn_pl.data.rows import Row, detect_format, map_row

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("format_name", "raw", "expected"),
    [
        ("alpaca", {"instruction": "a", "input": "b", "output": "c"}, Row("a", "b", "c")),
        ("alpaca", {"instruction": "a", "input": None, "output": "c"}, Row("a", "", "c")),
        (
            "alpaca",
            {"instruction": "a", "input": "b", "output": "Yes. So.", "answer": "Yes", "choices": ["Yes", "No"]},
            Row("a", "b", "Yes. So.", "Yes", ("Yes", "No")),
        ),
        ("pmc", {"instruction": "a", "input": "b", "output": "c", "source": "medmcqa"}, Row("a", "b", "c")),
        ("tulu3", {"id": "1", "messages": [USER, ASSISTANT], "source": "x"}, Row("", "Why?", "Because.")),
        ("tulu3", {"id": "1", "input": "Why?", "output": "Because."}, Row("", "Why?", "Because.")),
        (
            "infinity_instruct",
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
            Row("", "Why?", "Because."),
        ),
        ("text", {"text": "It rains."}, Row("", "", "It rains.")),
        ("text", {"text": "It ra", "continues": True}, Row("", "", "It ra", continues=True)),
    ],
)
def test_each_format_maps_to_a_row_and_is_detected(format_name, raw, expected):
    assert map_row(raw, format_name) == expected
    assert detect_format(raw) == format_name


def parts(text):
    return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]


@pytest.mark.parametrize(
    "raw",
    [
        {"conversations": [{"from": "user", "value": "Why?"}, {"from": "assistant", "value": "Because."}]},
        {"conversations": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {"conversations": [{"role": "human", "value": "Why?"}, {"from": "gpt", "content": "Because."}]},
        {"messages": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"messages": [{"role": "user", "content": parts("Why?")}, {"role": "assistant", "content": parts("Because.")}]},
        {"messages": [{"role": "user", "content": ["Why?"]}, {**ASSISTANT, "tool_calls": None}]},
        {"messages": [{"role": "user", "content": "Why?", "from": None, "value": None}, ASSISTANT]},
    ],
)
def test_a_conversation_reads_the_same_in_every_spelling(raw):
    assert map_row(raw, detect_format(raw)) == Row("", "Why?", "Because.")


def test_a_task_without_an_input_needs_no_key_for_it():
    for extra, name in (({}, "alpaca"), ({"source": "x"}, "pmc")):
        raw = {"instruction": "a", "output": "c", **extra}
        assert (detect_format(raw), map_row(raw, name)) == (name, Row("a", "", "c"))
    with pytest.raises(BadRow, match="is 'inptu' meant to be 'input'"):
        map_row({"instruction": "a", "inptu": "b", "output": "c"}, "alpaca")


def test_a_turn_that_calls_a_tool_is_no_round_of_text():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert map_row({"messages": [USER, call]}, "tulu3") is None
    assert map_row({"messages": [USER, call, {"role": "tool", "content": "7"}, ASSISTANT]}, "tulu3") is None


def test_a_part_that_is_no_text_is_named():
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(BadRow, match=r"'messages\[0\]' has a part of type 'image_url' in 'content'"):
        map_row({"messages": [{"role": "user", "content": [image]}, ASSISTANT]}, "tulu3")


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ASSISTANT, USER, ASSISTANT],
        [SYSTEM, USER, ASSISTANT],
        [USER],
        [ASSISTANT, USER],
        [],
        [{**USER, "content": " \n"}, ASSISTANT],
        [USER, {**ASSISTANT, "content": ""}],
    ],
)
def test_conversations_that_are_not_one_round_with_text_are_filtered(messages):
    assert map_row({"messages": messages}, "tulu3") is None


GOOD = {"instruction": "a", "input": "b", "output": "c"}


@pytest.mark.parametrize(
    ("format_name", "raw", "message"),
    [
        ("alpaca", ["a"], "the row is a list; it must be an object"),
        ("alpaca", {"instruction": "a", "input": "b"}, "'output' is missing; a row of format 'alpaca' needs"),
        ("alpaca", {"instruction": "a", "input": "b", "outptu": "c"}, "is 'outptu' meant to be 'output'?"),
        ("pmc", {**GOOD, "output": 3}, "'output' is a number; it must be a string"),
        ("pmc", {**GOOD, "output": " "}, "'output' is empty"),
        ("alpaca", {**GOOD, "instruction": None}, "'instruction' is null"),
        ("alpaca", {**GOOD, "instruction": "", "input": " "}, "'instruction' and 'input' are both empty"),
        ("alpaca", {**GOOD, "answer": "d", "choices": ["a"]}, "'answer' is 'd'; it must be one of 'choices' (a)"),
        ("alpaca", {**GOOD, "answer": "a", "choices": ["a"]}, "'output' must begin with the text of 'answer'"),
        ("alpaca", {**GOOD, "answer": "a", "choices": {"a": 1}}, "'choices' is an object; it must be a list"),
        ("tulu3", {"input": "a"}, "the key 'output' is missing"),
        ("tulu3", {"messages": "hi"}, "'messages' is a string; it must be a list of turns"),
        (
            "tulu3",
            {"messages": [{"role": "narrator", "content": ""}]},
            "has role 'narrator'; allowed are user, human, prom",
        ),
        ("tulu3", {"messages": [{"role": "user"}]}, "has null as 'content'; it must be a string"),
        ("infinity_instruct", {"conversatoins": []}, "is 'conversatoins' meant to be 'conversations'?"),
        ("infinity_instruct", {"conversations": ["x"]}, "'conversations[0]' is a string"),
    ],
)
def test_a_bad_row_says_what_is_wrong_and_what_is_allowed(format_name, raw, message):
    with pytest.raises(BadRow) as caught:
        map_row(raw, format_name)
    assert message in str(caught.value), json.dumps(raw)


def test_unknown_keys_are_listed_with_the_formats():
    with pytest.raises(BadRow, match=r"keys \(question, reply\); expected instruction, input, output \(alpaca"):
        detect_format({"question": "a", "reply": "b"})
