"""Chats are the tokens, and the masks, that transformers makes of them; without tags the same ones are found."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.chat_templates import BEGINS, HAS_SYSTEM, HAS_TOOLS, TEMPLATES, template, tokenizer_of

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import Collator, EncodedRows, Row, encode_rows
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.encoding import RefusedRow
from uniattn_pl.data.rows import map_row
from uniattn_pl.errors import UserError

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kraków", "days": 2}'}}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ROUND = [turn("user", "Why?"), turn("assistant", "Because it is.")]
MANY = [
    *ROUND,
    turn("user", "And now?"),
    turn("assistant", "Nothing."),
    turn("user", "Sure?"),
    turn("assistant", "Yes!"),
]
CONVERSATIONS = {
    "one round": ROUND,
    "many rounds": MANY,
    "system": [turn("system", "Be brief."), *MANY],
    "empty turns": [turn("user", ""), turn("assistant", "What?"), *ROUND, turn("user", " "), turn("assistant", "")],
    "unicode": [turn("user", "Gdańsk? 日本語 \u00e9\u0301"), turn("assistant", "🙂👩\u200d⚕️ naïve \u2028 ف"), *ROUND],
    "white space": [turn("user", "  a\n"), turn("assistant", "Two words, \n\nthen  more "), *ROUND],
    "text of tags": [turn("user", "{% generation %} {{ x }}"), turn("assistant", "<b>'\"\\n</b> & {%"), *ROUND],
    "tools": [
        *ROUND,
        turn("user", "Weather?"),
        turn("assistant", "", tool_calls=[CALL]),
        turn("tool", '{"sky": "grey"}', tool_call_id="1"),
        turn("assistant", "Grey."),
    ],
}
CASES = [
    (family, name)
    for family in TEMPLATES
    for name in CONVERSATIONS
    if (name != "tools" or family in HAS_TOOLS) and (name != "system" or family in HAS_SYSTEM)
]


def rows_of(*chats: list[dict[str, Any]], **more: Any) -> list[Row]:
    mapped = [map_row({"messages": chat, **more}, "chat", whole_chats=True) for chat in chats]
    return [row for row in mapped if row is not None]


def encoded(rows: list[Row], family: str, *, tagged: bool = True, length: int = 2_000, **options: Any) -> EncodedRows:
    tokenizer = tokenizer_of(family, tagged=tagged)
    of_rows = {key: options.pop(key) for key in ("with_choices", "skip_refused") if key in options}
    chat = ChatTemplate.of(DataConfig(template="chat", **options), tokenizer)
    return encode_rows(rows, tokenizer, length, template=chat, **of_rows)


def learned(rows: EncodedRows, index: int = 0) -> list[int]:
    """1 for each token of a row that is learned, as transformers has them."""
    labels = Collator(pad_id=0)([rows[index]])["labels"][0]
    return [int(label >= 0) for label in labels]


def texts(rows: EncodedRows, family: str, index: int = 0) -> list[str]:
    """What is learned of a row, span by span."""
    example, tokenizer = rows[index], tokenizer_of(family)
    return [tokenizer.decode(example.tokens[start:end]) for start, end in example.spans.tolist()]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_tokens_and_masks_are_those_of_transformers(family, name):
    tokenizer = tokenizer_of(family)
    [row] = rows_of(CONVERSATIONS[name], **({"tools": [TOOL]} if name == "tools" else {}))
    chat = row.conversation
    expected = tokenizer.apply_chat_template(
        chat.messages, chat.tools, return_assistant_tokens_mask=True, return_dict=True
    )
    for tagged in (True, False):
        found = encoded([row], family, tagged=tagged)
        assert found[0].tokens.tolist() == expected["input_ids"], tagged
        assert learned(found) == expected["assistant_masks"], tagged
        assert found.counts == type(found.counts)()
    assert sum(expected["assistant_masks"]) > 1
    if tokenizer.bos_token in BEGINS:
        assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        assert expected["input_ids"].count(tokenizer.bos_token_id) == 1, "BOS is there once"


def test_calls_are_learned_as_the_template_writes_them():
    [row] = rows_of(CONVERSATIONS["tools"], tools=json.dumps([TOOL["function"]]))  # as ShareGPT keeps them
    assert row.conversation.tools == [TOOL]
    for tagged in (True, False):
        assert texts(encoded([row], "qwen2.5", tagged=tagged), "qwen2.5") == [
            "Because it is.<|im_end|>",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Kraków", "days": 2}}\n</tool_call><|im_end|>',
            "Grey.<|im_end|>",
        ]


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("tagged", [True, False])
def test_the_last_turn_alone_can_be_learned(family, tagged):
    found = encoded(rows_of(MANY, ROUND), family, tagged=tagged, loss_turns="last")
    whole = encoded(rows_of(MANY, ROUND), family, tagged=tagged)
    for index, turns in ((0, 3), (1, 1)):
        assert torch.equal(found[index].tokens, whole[index].tokens)
        assert len(whole[index].spans) == turns
        assert found[index].spans.tolist() == whole[index].spans[-1:].tolist()
    assert found.contents != whole.contents


@pytest.mark.parametrize("tagged", [True, False])
def test_turns_that_are_not_to_be_learned_are_read_only(tagged):
    weighted = [MANY[0], {**MANY[1], "weight": 0}, *MANY[2:5], {**MANY[5], "weight": 1}]
    prompt = {"prompt": MANY[:4], "completion": MANY[4:]}
    rows = [*rows_of(weighted), map_row(prompt, "completion", whole_chats=True)]
    found = encoded(rows, "gemma", tagged=tagged)
    assert texts(found, "gemma", 0) == ["Nothing.<end_of_turn>", "Yes!<end_of_turn>"]
    assert texts(found, "gemma", 1) == ["Yes!<end_of_turn>"]
    assert torch.equal(found[0].tokens, found[1].tokens)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("tagged", [True, False])
def test_a_row_that_is_too_long_is_cut_between_turns(family, tagged):
    [row], tokenizer = rows_of(MANY), tokenizer_of(family)
    sizes = [len(tokenizer.apply_chat_template(MANY[:n], return_dict=False)) for n in (2, 4, 6)]
    for length in range(sizes[0], sizes[2] + 1):
        found = encoded([row], family, tagged=tagged, length=length)
        turns = 2 * sum(size <= length for size in sizes)
        assert found[0].tokens.tolist() == tokenizer.apply_chat_template(MANY[:turns], return_dict=False)
        assert len(found[0].spans) == turns // 2
        counts = found.counts
        assert (counts.shortened, counts.turns_cut, counts.truncated) == (int(turns < 6), 6 - turns, 0)
    last = encoded([row], family, tagged=tagged, length=sizes[1], loss_turns="last")
    assert texts(last, family)[0].strip().startswith("Nothing.")
    assert len(last[0].spans) == 1


@pytest.mark.parametrize("tagged", [True, False])
def test_a_first_answer_that_does_not_fit_is_cut_at_its_end_and_one_without_room_dropped(tagged):
    [row] = rows_of([MANY[0], turn("assistant", "Because " * 50), *MANY[2:]])
    prompt = len(tokenizer_of("smollm2").apply_chat_template(MANY[:1], add_generation_prompt=True, return_dict=False))
    found = encoded([row], "smollm2", tagged=tagged, length=prompt + 5)
    assert found[0].spans.tolist() == [[prompt, prompt + 5]]
    assert (found.counts.truncated, found.counts.shortened, found.counts.turns_cut) == (1, 1, 4)
    none = encoded([row], "smollm2", tagged=tagged, length=prompt)
    assert (len(none), none.counts.dropped) == (0, 1)


def test_rows_of_a_task_are_a_round_of_the_template():
    rows = [Row("Say why.", "Rain is wet.", "Because."), Row("", "", "A text.")]
    found = encoded(rows, "smollm2")
    [expected] = rows_of([turn("user", "Say why.\n\nRain is wet."), turn("assistant", "Because.")])
    assert torch.equal(found[0].tokens, encoded([expected], "smollm2")[0].tokens)
    assert tokenizer_of("smollm2").decode(found[1].tokens) == "<|im_start|>A text.<|im_end|>", "no template for texts"


def test_the_loss_of_a_chat_is_that_of_its_answers_computed_by_hand():
    from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss
    from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

    model, tokenizer = load_model("tiny-llama", dtype="float32"), load_tokenizer("tiny-llama")
    tokenizer.chat_template = template("mistral", tagged=True)
    found = encode_rows(rows_of(MANY), tokenizer, 500, template=ChatTemplate.of(DataConfig(template="chat"), tokenizer))
    batch = Collator(pad_id=0)([found[0]])
    loss = summed_response_loss(model, batch, ScoredTokens.of(batch["labels"]))
    # token by token, from the text of each answer alone, in which a token is a byte or special
    said, by_hand = tokenizer.bos_token, torch.zeros(())
    for asked, answer in zip(MANY[::2], MANY[1::2], strict=True):
        said += f"[INST] {asked['content']} [/INST]"
        for piece in [*f" {answer['content']}", tokenizer.eos_token]:
            ids = tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"]
            target = tokenizer(piece, add_special_tokens=False)["input_ids"]
            assert len(target) == 1
            by_hand = by_hand - model(ids).logits[0, -1].log_softmax(-1)[target[0]]
            said += piece
    torch.testing.assert_close(loss, by_hand, atol=1e-3, rtol=1e-5)
    assert int((batch["labels"] >= 0).sum()) == sum(len(answer["content"]) + 2 for answer in MANY[1::2])


def test_several_tags_in_a_turn_are_learned_and_told_from_those_of_other_turns():
    tokenizer = tokenizer_of("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content[:2] }}{% endgeneration %}--{% generation %}{{ m.content[2:] }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    weighted = [MANY[0], {**MANY[1], "weight": 0}, *MANY[2:]]
    for rows, options, expected in (
        (rows_of(MANY), {}, ["Be", "cause it is.<|im_end|>", "No", "thing.<|im_end|>", "Ye", "s!<|im_end|>"]),
        (rows_of(MANY), {"loss_turns": "last"}, ["Ye", "s!<|im_end|>"]),
        (rows_of(weighted), {}, ["No", "thing.<|im_end|>", "Ye", "s!<|im_end|>"]),
    ):
        chat = ChatTemplate.of(DataConfig(template="chat", **options), tokenizer)
        assert texts(encode_rows(rows, tokenizer, 500, template=chat), "smollm2") == expected


def test_a_template_that_tags_nothing_of_a_conversation_is_refused():
    tokenizer = tokenizer_of("smollm2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% if m.x %}{% generation %}{% endgeneration %}"
    tokenizer.chat_template += "{% endif %}{% endfor %}"
    chat = ChatTemplate.of(DataConfig(template="chat"), tokenizer)
    with pytest.raises(RefusedRow, match=r"marks nothing of this conversation by {% generation %}"):
        encode_rows(rows_of(ROUND), tokenizer, 500, template=chat)


REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_ways_out():
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer.chat_template = REWRITES
    chat = ChatTemplate.of(DataConfig(template="chat"), tokenizer)
    rows = rows_of(ROUND, MANY)
    with pytest.raises(RefusedRow) as refused:
        encode_rows(rows, tokenizer, 500, template=chat)
    assert refused.value.number == 1
    for words in ("turn 2", "'<think>", "data.loss_turns=last", "{% generation %}", "data.template=FILE"):
        assert words in str(refused.value)
    found = encode_rows(rows, tokenizer, 500, template=chat, skip_refused=True)
    assert (len(found), found.counts.refused, found.source_rows.tolist()) == (1, 1, [0])
    last = encode_rows(rows, tokenizer, 500, template=replace(chat, last_only=True))
    assert texts(last, "qwen2.5", 1) == ["<think></think>Yes!<|im_end|>"]


@pytest.mark.parametrize(
    ("family", "chat", "reason"),
    [
        ("mistral", [ROUND[0], *ROUND], "roles must alternate"),
        ("gemma", [turn("system", "Be brief."), *ROUND], "System role not supported"),
        ("gemma", [ROUND[1], *ROUND], "Conversation roles must alternate"),
    ],
)
@pytest.mark.parametrize("tagged", [True, False])
def test_a_conversation_that_the_template_does_not_take_is_refused_in_its_words(family, chat, reason, tagged):
    with pytest.raises(RefusedRow, match=f"the model's chat template refuses this conversation .*{reason}"):
        encoded(rows_of(chat), family, tagged=tagged)
    assert encoded(rows_of(chat, ROUND), family, tagged=tagged, skip_refused=True).counts.refused == 1


@pytest.mark.parametrize("family", ["llama3", "gemma"])
@pytest.mark.parametrize("tagged", [True, False])
def test_the_text_of_a_special_token_in_a_turn_stays_text(family, tagged):
    tokenizer = tokenizer_of(family)
    end = "<|eot_id|>" if family == "llama3" else "<end_of_turn>"
    chat = [turn("user", f"What is {end}?"), turn("assistant", f"{end} ends a turn."), *ROUND]
    found = encoded(rows_of(chat, ROUND), family, tagged=tagged)
    assert (found.counts.special_text, found.counts.special_tokens) == (1, 0)
    assert texts(found, family) == [f"{end} ends a turn.{end}", f"Because it is.{end}"]
    real = tokenizer.convert_tokens_to_ids(end)
    assert found[0].tokens.tolist().count(real) == 4, "one for each turn"
    assert found[0].tokens[found[0].spans[0, 0]] != real
    cut = encoded(rows_of(chat), family, tagged=tagged, length=len(found[0].tokens) - 1)
    assert (cut.counts.special_text, cut.counts.shortened) == (1, 1)
    assert cut[0].tokens.tolist().count(real) == 2, "where turns are cut, too"
    assert texts(cut, family) == [f"{end} ends a turn.{end}"]


def test_choices_are_told_by_the_first_token_of_the_first_answer():
    choices = {"answer": "Gout", "choices": ["Asthma", "Gout", "Eczema"]}
    [row] = rows_of([turn("user", "Which?"), turn("assistant", "Gout."), *ROUND], **choices)
    [same] = rows_of(
        [turn("user", "Which?"), turn("assistant", "Gout."), *ROUND], answer="Gout", choices=["Gas", "Gout"]
    )
    for tagged in (True, False):
        found = encoded([row, same], "smollm2", tagged=tagged, with_choices=True)
        batch = Collator(pad_id=0, with_choices=True)([found[0], found[1]])
        assert found.counts.ambiguous == (0 if found[1].choice_ids else 1)
        tokens = [tokenizer_of("smollm2").decode([token]) for token in batch["choice_ids"][0]]
        assert [token[0] for token in tokens] == ["A", "G", "E"]
        predicted = batch["input_ids"][0, batch["answer_position"][0] + 1]
        assert predicted == batch["choice_ids"][0, batch["answer_index"][0]]


def test_an_answer_that_goes_on_has_no_end():
    [row] = rows_of(MANY)
    for tagged in (True, False):
        found = encoded([replace(row, continues=True)], "smollm2", tagged=tagged)
        assert texts(found, "smollm2")[-1] == "Yes!"
        assert tokenizer_of("smollm2").decode(found[0].tokens).endswith("Yes!")
        assert found.counts.open_answers == 0


def test_a_template_without_an_end_is_told():
    tokenizer = tokenizer_of("smollm2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    chat = ChatTemplate.of(DataConfig(template="chat"), tokenizer)
    assert encode_rows(rows_of(ROUND), tokenizer, 500, template=chat).counts.open_answers == 1


def test_todays_date_is_that_of_one_day_so_that_rows_are_the_same_tomorrow():
    tokenizer = tokenizer_of("llama3")
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%Y\") }}{% endif %}"
    tokenizer.chat_template = dated + template("llama3", tagged=True)
    chat = ChatTemplate.of(DataConfig(template="chat"), tokenizer)
    found = encode_rows(rows_of(ROUND), tokenizer, 500, template=chat)
    assert tokenizer.decode(found[0].tokens).startswith("26 Jul 2024 2024<|begin_of_text|>")


def test_a_template_of_a_file_is_read_or_refused_with_its_line(tmp_path):
    tokenizer, file = tokenizer_of("gemma"), tmp_path / "own.jinja"
    file.write_text(template("smollm2", tagged=True).replace("<|im_end|>", "<end_of_turn>"), encoding="utf-8-sig")
    config = DataConfig(template=str(file))
    chat = ChatTemplate.of(config, tokenizer)
    assert "SmolLM" in tokenizer.decode(encode_rows(rows_of(ROUND), tokenizer, 500, template=chat)[0].tokens)
    file.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(UserError, match=r"own\.jinja', line 2: no Jinja template"):
        ChatTemplate.of(config, tokenizer)
    for content, words in ((b" \n", "is empty"), (b"\xff", "no UTF-8 text")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=words):
            ChatTemplate.of(config, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"the model has no chat template; give one as a Jinja file"):
        ChatTemplate.of(DataConfig(template="chat"), tokenizer)


def test_an_encoder_reads_all_in_front_of_the_last_answer():
    from tests.tiny_seq2seq import stock_seq2seq

    from uniattn_pl.families.encoder_decoder import tell_decoder_start

    tokenizer = tokenizer_of("smollm2")
    tell_decoder_start(tokenizer, stock_seq2seq("t5").config)
    with pytest.raises(UserError, match=r"data\.loss_turns=last"):
        ChatTemplate.of(DataConfig(template="chat"), tokenizer)
    chat = ChatTemplate.of(DataConfig(template="chat", loss_turns="last"), tokenizer)
    [example] = encode_rows(rows_of(MANY), tokenizer, 500, template=chat)
    prompt = tokenizer.apply_chat_template(MANY[:5], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(example.source) == prompt
    assert tokenizer.decode(example.tokens[1:]) == "Yes!<|im_end|>"
    assert example.spans.tolist() == [[1, len(example.tokens)]]
    small = encode_rows(rows_of(MANY), tokenizer, len(example.source) - 1, template=chat)
    assert tokenizer.decode(small[0].tokens[1:]) == "Nothing.<|im_end|>"
