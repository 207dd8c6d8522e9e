"""What a model is asked with is what it learned to answer: the same tokens up to the answer, special text included."""

from __future__ import annotations

import pytest
from tests.chat_templates import SPECIAL, TEMPLATES, tokenizer_of

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import encode_rows
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.rows import map_row
from uniattn_pl.errors import UserError
from uniattn_pl.inference.chat_prompt import chat_ids


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_is_asked_for_with_the_tokens_in_front_of_it_in_training(family):
    tokenizer = tokenizer_of(family, tagged=False)
    end = SPECIAL[family][2][-1]
    said = [("user", "Why?"), ("assistant", "So."), ("user", f"What does {end} say?"), ("assistant", "It ends.")]
    messages = [{"role": role, "content": content} for role, content in said]
    chat = ChatTemplate.of(DataConfig(template="chat"), tokenizer)
    encoded = encode_rows([map_row({"messages": messages}, "chat", whole_chats=True)], tokenizer, 500, template=chat)
    assert encoded.counts.special_text == 1
    for turn, (start, _) in zip((1, 3), encoded[0].spans.tolist(), strict=True):
        assert chat_ids(tokenizer, messages[:turn]) == encoded[0].tokens[:start].tolist()
    assert end in tokenizer.decode(chat_ids(tokenizer, messages[:3])).partition("What does")[2]
    written = chat_ids(tokenizer, messages[:1]).count(tokenizer.convert_tokens_to_ids(end))
    assert (
        chat_ids(tokenizer, [{"role": "user", "content": f"What does {end} say?"}]).count(
            tokenizer.convert_tokens_to_ids(end)
        )
        == written
    ), "the text is not the token"


def test_a_conversation_that_the_template_does_not_take_is_refused_whatever_it_raises():
    tokenizer = tokenizer_of("gemma")
    for template, message in (
        (tokenizer.chat_template, {"role": "system", "content": "Be brief."}),
        ("{{ messages[0].content + 1 }}", {"role": "user", "content": "Why?"}),
    ):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="the model's chat template refuses this conversation"):
            chat_ids(tokenizer, [message])
